package zlint_test

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/lint/zlint"
)

// A CA without a name is what Go's own parser and verifier let pass.
func TestFindsError(t *testing.T) {
	key := catest.Key(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	err = zlint.Check(der)
	if err == nil || !strings.Contains(err.Error(), "e_ca_subject_field_empty") {
		t.Errorf("Check of a CA without a name: %v, want e_ca_subject_field_empty", err)
	}
	if err := zlint.Check([]byte("no certificate")); err == nil {
		t.Error("Check takes what is no certificate")
	}
}

func TestAuthorities(t *testing.T) {
	td := attesttest.Domain(t, "cluster.local")
	now := time.Now()
	for _, issuer := range catest.AuthorityKeys(t) {
		t.Run(issuer.Name, func(t *testing.T) {
			root := catest.Certify(t, ca.Root, td, issuer.Key, ca.Parent{}, catest.RootLifetime, now)
			issuing := catest.Certify(t, ca.Issuing, td, catest.Key(t), ca.Parent{Certificate: root, Signer: issuer.Key}, catest.IssuingLifetime, now)
			for _, cert := range []*x509.Certificate{root, issuing} {
				if err := zlint.Check(cert.Raw); err != nil {
					t.Errorf("%s: %v", cert.Subject, err)
				}
			}
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	root := catest.Certify(b, ca.Root, attesttest.Domain(b, "cluster.local"), catest.Key(b), ca.Parent{}, catest.RootLifetime, time.Now())
	for b.Loop() {
		if err := zlint.Check(root.Raw); err != nil {
			b.Fatal(err)
		}
	}
}
