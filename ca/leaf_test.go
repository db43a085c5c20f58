package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/lint/zlint"
)

// world is an authority with a cluster whose pods can ask it.
type world struct {
	*catest.Authority
	cluster   *attesttest.Cluster
	gate      *attesttest.Gate
	registrar *attest.Registrar
	token     string
	identity  attest.Identity
}

func newWorld(tb testing.TB, now func() time.Time, change func(*ca.Config)) *world {
	tb.Helper()
	td := attesttest.Domain(tb, "cluster.local")
	w := &world{
		Authority: catest.New(tb, td, now, change),
		cluster:   attesttest.NewCluster(td, now),
		gate:      &attesttest.Gate{},
	}
	w.registrar = attesttest.NewRegistrar(tb, w.cluster, w.gate, now)
	w.token = w.cluster.Add(attesttest.Pod("shop", "web-0", "web", "registry.example/web@sha256:aa"))
	w.identity = attesttest.Caller(tb, w.registrar, w.token).Identity
	return w
}

func (w *world) grant(tb testing.TB) *attest.Grant {
	tb.Helper()
	return attesttest.Grant(tb, w.registrar, w.token)
}

func (w *world) issue(tb testing.TB, req ca.Request) *ca.Issued {
	tb.Helper()
	issued, err := w.Issue(context.Background(), w.grant(tb), req)
	if err != nil {
		tb.Fatal(err)
	}
	return issued
}

// TestLeaves issues one certificate for each kind of leaf key, way in and
// issuer, and has each verified by five readers.
func TestLeaves(t *testing.T) {
	w := newWorld(t, time.Now, func(cfg *ca.Config) { cfg.LintShape = zlint.Check })
	leafKeys := catest.LeafKeys(t)
	for _, issuer := range catest.AuthorityKeys(t) {
		t.Run(issuer.Name, func(t *testing.T) {
			w.RenewUnder(t, catest.Key(t), issuer.Key)
			var issued []*ca.Issued
			for _, key := range leafKeys {
				for way, req := range map[string]ca.Request{
					"ztunnel":     {CSR: catest.CSR(t, key.Key, w.identity)},
					"pilot-agent": {CSR: catest.PilotCSR(t, key.Key, w.identity)},
					"nameless":    {CSR: catest.CSR(t, key.Key, attest.Identity{})},
					"own key":     {Key: key.Key.Public()},
				} {
					t.Run(key.Name+"/"+way, func(t *testing.T) {
						before := time.Now().Truncate(time.Second)
						got := w.issue(t, req)
						checkLeaf(t, w, got, key.Key.Public(), before)
						issued = append(issued, got)
					})
				}
			}
			verifyByOpenSSL(t, issued)
		})
	}
}

// checkLeaf holds a leaf against contracts of SPIFFE, and has it
// verified by Go, go-spiffe and zlint.
func checkLeaf(t *testing.T, w *world, got *ca.Issued, pub crypto.PublicKey, before time.Time) {
	t.Helper()
	cert, err := x509.ParseCertificate(got.DER)
	if err != nil {
		t.Fatal(err)
	}
	issuer := got.Snapshot.Issuer()
	expect := func(ok bool, rule string) {
		t.Helper()
		if !ok {
			t.Errorf("%s does not hold", rule)
		}
	}
	expect(len(cert.URIs) == 1 && cert.URIs[0].String() == w.identity.String(), "X-1: one URI SAN, the identity")
	expect(len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) == 0, "X-2: no other names")
	expect(bytes.Equal(cert.RawSubject, []byte{0x30, 0}), "X-3: empty subject")
	expect(extension(t, cert, 2, 5, 29, 17).critical, "X-3: critical SAN")
	expect(cert.BasicConstraintsValid && !cert.IsCA && extension(t, cert, 2, 5, 29, 19).critical, "X-4: no CA")
	expect(cert.KeyUsage == x509.KeyUsageDigitalSignature && extension(t, cert, 2, 5, 29, 15).critical, "X-5: digitalSignature alone, critical")
	expect(slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) && len(cert.UnknownExtKeyUsage) == 0, "X-6: both usages")
	expect(len(cert.AuthorityKeyId) > 0 && bytes.Equal(cert.AuthorityKeyId, issuer.SubjectKeyId) && len(cert.SubjectKeyId) == 20, "X-7: key identifiers")
	expect(cert.SerialNumber.Sign() > 0 && cert.SerialNumber.BitLen() > 120 && cert.SerialNumber.BitLen() <= 127, "X-8: serial")
	expect(got.Serial == hex.EncodeToString(cert.SerialNumber.Bytes()), "the serial that is told")
	expect(!got.IssuedAt.Before(before) && cert.NotBefore.Equal(got.IssuedAt.Add(-2*time.Minute)) && cert.NotAfter.Equal(got.NotAfter), "X-9: validity")
	life := got.NotAfter.Sub(got.IssuedAt)
	expect(life <= 6*time.Hour && life >= 6*time.Hour*95/100, "X-9: lifetime with jitter, was "+life.String())
	expect(!cert.NotAfter.After(issuer.NotAfter), "X-9: within the issuer's")
	expect(cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(pub), "X-11: the caller's key")
	if key, ok := cert.PublicKey.(*rsa.PublicKey); ok {
		expect(key.N.BitLen() >= 2048 && key.E >= 65537, "X-10: RSA")
	}
	expect(len(cert.Extensions) == 6, "nothing more in it")

	intermediates := x509.NewCertPool()
	intermediates.AddCert(issuer)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: w.Roots(), Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("Go: %v", err)
		}
	}
	bundle := x509bundle.FromX509Authorities(w.identity.ID().TrustDomain(), got.Snapshot.Roots())
	if id, _, err := x509svid.Verify([]*x509.Certificate{cert, issuer}, bundle); err != nil || id != w.identity.ID() {
		t.Errorf("go-spiffe: %v %v", id, err)
	}
	if err := zlint.Check(got.DER); err != nil {
		t.Error(err)
	}
	checkRecord(t, w, got, cert)
}

// checkRecord finds the certificate in the ledger, with what it rests on.
func checkRecord(t *testing.T, w *world, got *ca.Issued, cert *x509.Certificate) {
	t.Helper()
	intents, outcomes := w.Ledger.Intents(), w.Ledger.Outcomes()
	intent, outcome := intents[len(intents)-1], outcomes[len(outcomes)-1]
	sum := func(data []byte) string {
		s := sha256.Sum256(data)
		return hex.EncodeToString(s[:])
	}
	for what, pair := range map[string][2]string{
		"serial":            {intent.Serial, got.Serial},
		"identity":          {intent.Identity, w.identity.String()},
		"pod":               {intent.Namespace + "/" + intent.Pod + " " + intent.PodUID, "shop/web-0 uid-shop-web-0"},
		"node":              {intent.Node, "node-1"},
		"cluster":           {intent.Cluster, attesttest.ClusterID},
		"key":               {intent.KeySHA256, sum(cert.RawSubjectPublicKeyInfo)},
		"to-be-signed":      {intent.TBSSHA256, sum(cert.RawTBSCertificate)},
		"authority":         {intent.Authority, hex.EncodeToString(cert.AuthorityKeyId)},
		"root":              {intent.Root, got.Snapshot.RootID()},
		"notBefore":         {intent.NotBefore.String(), cert.NotBefore.String()},
		"notAfter":          {intent.NotAfter.String(), cert.NotAfter.String()},
		"images":            {fmt.Sprint(len(intent.Images), " ", intent.Images[0].Verdict), "1 pass"},
		"outcome's serial":  {outcome.Serial, got.Serial},
		"outcome's status":  {outcome.Status, "issued"},
		"outcome's content": {outcome.CertSHA256, sum(got.DER)},
	} {
		if pair[0] != pair[1] {
			t.Errorf("ledger: %s is %q, want %q", what, pair[0], pair[1])
		}
	}
}

type criticality struct{ critical bool }

func extension(t *testing.T, cert *x509.Certificate, oid ...int) criticality {
	t.Helper()
	for _, ext := range cert.Extensions {
		if slices.Equal(ext.Id, oid) {
			return criticality{ext.Critical}
		}
	}
	t.Errorf("extension %v is missing", oid)
	return criticality{}
}

// verifyByOpenSSL checks all certificates of one issuer in one strict run.
func verifyByOpenSSL(t *testing.T, all []*ca.Issued) {
	t.Helper()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	snap := all[0].Snapshot
	args := []string{"verify", "-x509_strict", "-CAfile", file("bundle.pem", snap.BundlePEM()), "-untrusted", file("chain.pem", bytes.Join(snap.ChainPEM(), nil))}
	for i, issued := range all {
		args = append(args, file(fmt.Sprintf("leaf%d.pem", i), issued.LeafPEM()))
	}
	out, err := exec.Command(openssl, args...).CombinedOutput()
	if n := strings.Count(string(out), ": OK\n"); err != nil || n != len(all) {
		t.Errorf("openssl verify: %v, %d of %d are OK:\n%s", err, n, len(all), out)
	}
}

func TestMint(t *testing.T) {
	w := newWorld(t, time.Now, func(cfg *ca.Config) { cfg.LintShape = zlint.Check })
	names := ca.Serving{ID: "self-1", DNS: []string{"hallmark.hallmark-system.svc", "istiod.istio-system.svc"}, IPs: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP("::1")}, Lifetime: 24 * time.Hour}
	got, err := w.Mint(context.Background(), names, catest.Key(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(got.DER)
	if err != nil {
		t.Fatal(err)
	}
	intermediates := x509.NewCertPool()
	intermediates.AddCert(got.Snapshot.Issuer())
	for _, name := range []string{"istiod.istio-system.svc", "127.0.0.1", "::1"} {
		if _, err := cert.Verify(x509.VerifyOptions{DNSName: name, Roots: w.Roots(), Intermediates: intermediates}); err != nil {
			t.Errorf("as %s: %v", name, err)
		}
	}
	if len(cert.URIs) != 0 {
		t.Errorf("a serving certificate carries an identity: %v", cert.URIs)
	}
	if err := zlint.Check(got.DER); err != nil {
		t.Error(err)
	}
	intents := w.Ledger.Intents()
	if i := intents[len(intents)-1]; i.Door != ca.DoorSelf || i.Serial != got.Serial || i.Identity != "hallmark.hallmark-system.svc,istiod.istio-system.svc,127.0.0.1,::1" {
		t.Errorf("ledger: %+v", i)
	}
	if _, err := w.Mint(context.Background(), ca.Serving{ID: "self-2"}, catest.Key(t).Public()); err == nil {
		t.Error("Mint made a certificate without a name")
	}
}

// What goes out for one leaf is what clients read: one block an element, each
// with its newline, leaf first and the bundle apart.
func TestChainOrder(t *testing.T) {
	w := newWorld(t, time.Now, nil)
	got := w.issue(t, ca.Request{Key: catest.Key(t).Public()})
	var certs []*x509.Certificate
	for rest := got.FullChainPEM(); len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			t.Fatalf("%d bytes behind the last block", len(rest))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, cert)
	}
	if len(certs) != 2 || !bytes.Equal(certs[0].Raw, got.DER) || !certs[1].Equal(got.Snapshot.Issuer()) {
		t.Errorf("chain of %d certificates, want the leaf and its issuing CA", len(certs))
	}
	if err := certs[0].CheckSignatureFrom(certs[1]); err != nil {
		t.Error(err)
	}
	if again := got.FullChainPEM(); !bytes.Equal(again, got.FullChainPEM()) {
		t.Error("the chain changes when it is read")
	}
}
