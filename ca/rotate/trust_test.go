package rotate_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// A root of another mesh: in, seen to be held, and out.
func TestTrust(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		w.summary = func(q census.Question) census.Summary {
			if q.Sequence != 2 {
				return census.Summary{Consumers: 4, Confirmed: 4}
			}
			return census.Summary{Consumers: 4, Confirmed: 3, BehindCount: 1, Behind: []census.Consumer{consumer(t, "cart")}}
		}
		der := foreignRoot(t, "another mesh", nil)
		must(t, r.Trust(t.Context(), who, der))
		want(t, w, journal.Active, journal.Trusted)
		if len(w.bundle) != 2 || w.sequence != 2 || w.issuing != w.root(0).ID {
			t.Errorf("given out: %d roots at sequence %d", len(w.bundle), w.sequence)
		}
		if gate := gateOf(t, r, "trust"); gate.Open || gate.Behind[0].Pod != "cart" || !strings.Contains(gate.Mend, "do not present") {
			t.Errorf("its gate is %+v", gate)
		}
		refused(t, r.Trust(t.Context(), who, der), "is in the journal already: it is trusted", "")
		must(t, r.Untrust(t.Context(), who, w.root(1).ID, forced))
		want(t, w, journal.Active, journal.Retired)
		refused(t, r.Trust(t.Context(), who, der), "is in the journal already: it is retired", "")
		<-time.After(2 * keyHold)
		looks(t, r, 2)
		if count(w, "destroy") > 0 {
			t.Error("a key that was never ours was destroyed")
		}
	})
}

// istiod's own root is RSA of 2048 bits, and must be let in for a migration.
func TestTrustIstio(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		key := catest.RSA(t, 2048)
		template := template("Istio")
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		must(t, err)
		must(t, r.Trust(t.Context(), who, der))
	})
}

func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{Organization: []string{"cluster.local"}, CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
}

// What a Snapshot would refuse never enters the journal.
func TestTrustRefuses(t *testing.T) {
	t.Parallel()
	weak := func() []byte {
		key, template := catest.RSA(t, 1024), template("weak")
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		must(t, err)
		return der
	}
	unusual := func() []byte {
		key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
		must(t, err)
		template := template("unusual")
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		must(t, err)
		return der
	}
	below := func() []byte {
		up := catest.RSA(t, 2048)
		der, err := x509.CreateCertificate(rand.Reader, template("below"), template("above"), catest.Key(t).Public(), up)
		must(t, err)
		return der
	}
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		ours, err := x509.ParseCertificate(w.root(0).Certificate)
		must(t, err)
		good := foreignRoot(t, "good", nil)
		for _, tt := range []struct {
			name, why string
			der       []byte
		}{
			{"nothing", "not read", nil},
			{"noise", "not read", []byte("noise")},
			{"too large", "at most 16384", make([]byte, 16385)},
			{"a leaf", "no CA", foreignRoot(t, "leaf", func(c *x509.Certificate) { c.IsCA = false })},
			{"a CA that may not sign", "no CA that may sign", foreignRoot(t, "mute", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })},
			{"an intermediate", "not signed by itself", below()},
			{"a forged one", "not signed by itself", append(good[:len(good)-1:len(good)-1], good[len(good)-1]^1)},
			{"weak", "too weak", weak()},
			{"unusual", "of a kind", unusual()},
			{"expired", "is valid from", foreignRoot(t, "old", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })},
			{"not yet valid", "is valid from", foreignRoot(t, "new", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })},
			{"named as ours", "is named", foreignRoot(t, "", func(c *x509.Certificate) { c.RawSubject = ours.RawSubject })},
			{"with the key of ours", "in the journal already", foreignRoot(t, "alias", func(c *x509.Certificate) { c.SubjectKeyId = ours.SubjectKeyId })},
			{"with a long key identifier", "key identifier", foreignRoot(t, "long", func(c *x509.Certificate) { c.SubjectKeyId = make([]byte, 65) })},
		} {
			if tt.name == "too large" && w.sequence > 1 {
				t.Fatal("something was let in")
			}
			err := r.Trust(t.Context(), who, tt.der)
			refused(t, err, tt.why, "")
			if err == nil {
				t.Errorf("%s was let in", tt.name)
			}
		}
		want(t, w, journal.Active)
	})
}

// The bundle is read by every proxy, and does not grow for ever.
func TestTrustIsBounded(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		for n := range 31 {
			must(t, r.Trust(t.Context(), who, foreignRoot(t, "mesh "+string(rune('A'+n)), nil)))
		}
		refused(t, r.Trust(t.Context(), who, foreignRoot(t, "one more", nil)), "has 32 roots", "untrust")
	})
}
