package sds_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/sds"
)

func TestNewSVIDRefuses(t *testing.T) {
	t.Parallel()
	m, stranger := newMint(t), newMint(t)
	chain, key := m.chain()
	leaf := chain[:bytes.Index(chain, []byte("-----END CERTIFICATE-----\n"))+len("-----END CERTIFICATE-----\n")]
	other, err := attest.NewIdentity(m.identity.TrustDomain(), "shop", "other")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := attest.NewIdentity(attesttest.Domain(t, "elsewhere.example"), "shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		identity attest.Identity
		chain    []byte
		key      crypto.Signer
		bundle   *sds.Bundle
		at       time.Time
		want     string
	}{
		{"good", m.identity, chain, key, m.bundle(), time.Now(), ""},
		{"another's key", m.identity, chain, catest.Key(t), m.bundle(), time.Now(), "not the certificate's"},
		{"weak key", m.identity, chain, catest.Curve(t, elliptic.P224()), m.bundle(), time.Now(), "CSRKeyRefused"},
		{"no key", m.identity, chain, nil, m.bundle(), time.Now(), "required"},
		{"no bundle", m.identity, chain, key, nil, time.Now(), "required"},
		{"another's identity", other, chain, key, m.bundle(), time.Now(), "the certificate names"},
		{"another trust domain", elsewhere, chain, key, m.bundle(), time.Now(), "the certificate names"},
		{"without the issuing CA", m.identity, leaf, key, m.bundle(), time.Now(), "does not lead"},
		{"leaf last", m.identity, append(slices.Clone(chain[len(leaf):]), leaf...), key, m.bundle(), time.Now(), "not the certificate's"},
		{"another's root", m.identity, chain, key, stranger.bundle(), time.Now(), "does not lead"},
		{"a stranger in the chain", m.identity, append(slices.Clone(chain), stranger.Current().BundlePEM()...), key, m.bundle(), time.Now(), "did not issue"},
		{"ended", m.identity, chain, key, m.bundle(), time.Now().Add(7 * time.Hour), "ended at"},
		{"not begun", m.identity, chain, key, m.bundle(), time.Now().Add(-time.Hour), "does not lead"},
		{"nothing", m.identity, nil, key, m.bundle(), time.Now(), "no certificate"},
		{"text behind", m.identity, append(slices.Clone(chain), "and more"...), key, m.bundle(), time.Now(), "text that is no certificate"},
		{"a broken block", m.identity, append([]byte("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"), chain...), key, m.bundle(), time.Now(), "cannot be read"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := sds.NewSVID(test.identity, test.chain, test.key, test.bundle, test.at)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, %v; want an error with %q", got, err, test.want)
			}
		})
	}
}

func TestNewBundleRefuses(t *testing.T) {
	t.Parallel()
	m := newMint(t)
	td := m.Current().TrustDomain()
	chain, _ := m.chain()
	tests := []struct {
		name  string
		td    attest.TrustDomain
		roots []byte
		at    time.Time
		want  string
	}{
		{"nothing", td, nil, time.Now(), "no certificate"},
		{"white space", td, []byte(" \n"), time.Now(), "no certificate"},
		{"no trust domain", attest.TrustDomain{}, m.Current().BundlePEM(), time.Now(), "no trust domain"},
		{"a leaf", td, chain, time.Now(), "no CA"},
		{"ended", td, m.Current().BundlePEM(), time.Now().Add(2 * catest.RootLifetime), "every root has ended"},
		{"a key", td, append(slices.Clone(m.Current().BundlePEM()), "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"...), time.Now(), "text that is no certificate"},
		{"too many", td, bytes.Repeat(m.Current().BundlePEM(), 101), time.Now(), "more than 100"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := sds.NewBundle(test.td, test.roots, test.at); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v; want an error with %q", err, test.want)
			}
		})
	}
}

// TestBundleIsTheSameEverywhere gives the roots in another order, and twice.
func TestBundleIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	m := newMint(t)
	m.AddRoot(t)
	m.AddRoot(t)
	var blocks [][]byte
	for rest := m.Current().BundlePEM(); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		blocks = append(blocks, pem.EncodeToMemory(block))
	}
	slices.Reverse(blocks)
	blocks = append(blocks, blocks[0])
	other, err := sds.NewBundle(m.Current().TrustDomain(), bytes.Join(blocks, nil), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if want := m.bundle(); other.Version() != want.Version() {
		t.Errorf("version %s, want %s", other.Version(), want.Version())
	}
}

// TestKeyIsNeverShown formats an SVID in every way.
func TestKeyIsNeverShown(t *testing.T) {
	t.Parallel()
	v := newMint(t).svid()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if text := fmt.Sprintf(verb, v); len(text) > 300 || strings.Contains(text, "PRIVATE") {
			t.Errorf("%s shows %d bytes: %.80s", verb, len(text), text)
		}
	}
}
