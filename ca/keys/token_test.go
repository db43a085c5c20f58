//go:build cgo && !nopkcs11

package keys_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/ceremony"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/keys"
	"github.com/hallmark-ca/hallmark/ca/keys/keystest"
)

// inToken returns a store that makes its keys in the token.
func inToken(tb testing.TB, uri string, change func(*keys.Config)) *keys.Store {
	tb.Helper()
	cfg := keys.Config{Dir: tb.TempDir(), URI: uri}
	if change != nil {
		change(&cfg)
	}
	s, err := keys.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func makeRoot(tb testing.TB, s *keys.Store) journal.Root {
	tb.Helper()
	root, _, err := ceremony.Roots{Keys: s}.Make(tb.Context(), attesttest.Domain(tb, "cluster.local"), catest.RootLifetime, time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	return root
}

func certOf(tb testing.TB, root journal.Root) *x509.Certificate {
	tb.Helper()
	cert, err := x509.ParseCertificate(root.Certificate)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// certify opens the root's key and has it sign an issuing CA.
func certify(tb testing.TB, s *keys.Store, root journal.Root) error {
	tb.Helper()
	key, err := ceremony.Roots{Keys: s}.Open(tb.Context(), root)
	if err != nil {
		return err
	}
	_, err = ca.Certify(ca.Issuing, attesttest.Domain(tb, "cluster.local"), catest.Key(tb).Public(),
		ca.Parent{Certificate: certOf(tb, root), Signer: key}, catest.IssuingLifetime, time.Now())
	return err
}

// Roots of every algorithm, all in one token, are opened by another process by
// what the journal says alone.
func TestTokenHoldsRoots(t *testing.T) {
	token := keystest.New(t)
	var roots []journal.Root
	for _, algorithm := range keys.Algorithms() {
		s := inToken(t, token.URI(), func(c *keys.Config) { c.Algorithm = algorithm })
		root := makeRoot(t, s)
		if got := kindOf(certOf(t, root).PublicKey); got != algorithm {
			t.Errorf("a key of %s was made, want %s", got, algorithm)
		}
		if root.Phase != journal.Prepared || strings.Contains(root.KeyURI, keystest.PIN) {
			t.Errorf("%s: %s, %s", algorithm, root.Phase, root.KeyURI)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
	}
	later := inToken(t, "", nil)
	for i, root := range roots {
		if err := certify(t, later, root); err != nil {
			t.Errorf("%s: %v", keys.Algorithms()[i], err)
		}
	}
	// Under the name of one is never the key of another.
	crossed := roots[0]
	crossed.KeyURI = roots[1].KeyURI
	if err := certify(t, later, crossed); err == nil || !strings.Contains(err.Error(), "not the key of") {
		t.Errorf("a key was opened for another's certificate: %v", err)
	}
	// One is destroyed, and the others are not. A second time is no error.
	for range 2 {
		if err := (ceremony.Roots{Keys: later}).Destroy(t.Context(), roots[0]); err != nil {
			t.Fatal(err)
		}
	}
	if err := (ceremony.Roots{Keys: later}).Destroy(t.Context(), journal.Root{KeyURI: roots[1].KeyURI, Certificate: roots[2].Certificate}); err == nil {
		t.Error("a key was destroyed in the name of another")
	}
	for i, root := range roots {
		if err := certify(t, later, root); (err == nil) != (i > 0) {
			t.Errorf("%s after one was destroyed: %v", keys.Algorithms()[i], err)
		}
	}
	if n := token.Objects(t); n != 2*(len(roots)-1) {
		t.Errorf("%d objects are in the token", n)
	}
}

func kindOf(public crypto.PublicKey) keys.Algorithm {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return keys.Algorithm(fmt.Sprintf("RSA-%d", key.N.BitLen()))
	case *ecdsa.PublicKey:
		return keys.Algorithm(key.Params().Name)
	}
	return ""
}

// module is the token seen without our code: in the same process, so that both
// are the same PKCS #11 application.
func module(tb testing.TB, path string) *pkcs11.Ctx {
	tb.Helper()
	p := pkcs11.New(path)
	if p == nil {
		tb.Fatalf("%s cannot be loaded", path)
	}
	tb.Cleanup(p.Destroy)
	return p
}

// loggedIn runs f on the token. Nobody else may use it meanwhile: what one does,
// the library does for all of the process.
func loggedIn(tb testing.TB, token *keystest.Token, f func(*pkcs11.Ctx, pkcs11.SessionHandle)) {
	tb.Helper()
	p := module(tb, token.Module)
	if err := p.Initialize(); err == nil {
		defer p.Finalize()
	} else if !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		tb.Fatal(err)
	}
	session, err := p.OpenSession(slotOf(tb, p), pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(tb, err)
	defer p.CloseSession(session)
	if err := p.Login(session, pkcs11.CKU_USER, keystest.PIN); err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		tb.Fatal(err)
	}
	f(p, session)
}

// slotOf returns the slot of the token: SoftHSM has one more, for the next token.
func slotOf(tb testing.TB, p *pkcs11.Ctx) uint {
	tb.Helper()
	slots, err := p.GetSlotList(true)
	must(tb, err)
	for _, slot := range slots {
		info, err := p.GetTokenInfo(slot)
		must(tb, err)
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			return slot
		}
	}
	tb.Fatal("no token is there")
	return 0
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// The token itself says that the key was made in it, has never been outside, and
// cannot be taken out: neither read nor wrapped.
func TestTokenKeyCannotBeTakenOut(t *testing.T) {
	token := keystest.New(t)
	for _, algorithm := range []keys.Algorithm{keys.P256, keys.RSA3072} {
		s := inToken(t, token.URI(), func(c *keys.Config) { c.Algorithm = algorithm })
		makeRoot(t, s)
		must(t, s.Close())
	}
	loggedIn(t, token, func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		must(t, p.FindObjectsInit(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}))
		found, _, err := p.FindObjects(session, 10)
		must(t, err)
		must(t, p.FindObjectsFinal(session))
		if len(found) != 2 {
			t.Fatalf("%d private keys", len(found))
		}
		wrapping, err := p.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_WRAP, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		})
		must(t, err)
		for _, key := range found {
			for name, want := range map[uint]byte{
				pkcs11.CKA_LOCAL: 1, pkcs11.CKA_SENSITIVE: 1, pkcs11.CKA_ALWAYS_SENSITIVE: 1, pkcs11.CKA_PRIVATE: 1,
				pkcs11.CKA_EXTRACTABLE: 0, pkcs11.CKA_NEVER_EXTRACTABLE: 1, pkcs11.CKA_TOKEN: 1,
			} {
				got, err := p.GetAttributeValue(session, key, []*pkcs11.Attribute{pkcs11.NewAttribute(name, nil)})
				must(t, err)
				if len(got[0].Value) != 1 || got[0].Value[0] != want {
					t.Errorf("attribute %#x is %v, want %d", name, got[0].Value, want)
				}
			}
			for _, secret := range []uint{pkcs11.CKA_VALUE, pkcs11.CKA_PRIVATE_EXPONENT, pkcs11.CKA_PRIME_1} {
				if got, err := p.GetAttributeValue(session, key, []*pkcs11.Attribute{pkcs11.NewAttribute(secret, nil)}); err == nil && len(got[0].Value) > 0 {
					t.Errorf("secret attribute %#x can be read", secret)
				}
			}
			if _, err := p.WrapKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_WRAP_PAD, nil)}, wrapping, key); !errors.Is(err, pkcs11.Error(pkcs11.CKR_KEY_UNEXTRACTABLE)) {
				t.Errorf("wrapping the key: %v", err)
			}
		}
	})
}

// The token's folder is moved away and put back, again and again, while a root
// signs: each signature is right or an error, and once the token is back the
// next one is right, by the signer that was opened before.
func TestTokenTakenAwayAndPutBack(t *testing.T) {
	token := keystest.New(t)
	s := inToken(t, token.URI(), nil)
	root := makeRoot(t, s)
	signer, err := ceremony.Roots{Keys: s}.Open(t.Context(), root)
	must(t, err)
	away := token.Dir + ".away"
	for round := range 3 {
		must(t, sign(signer))
		must(t, os.Rename(token.Dir, away))
		if round > 0 { // so that nothing is kept from before
			must(t, s.Close())
		}
		// SoftHSM may hold the key in memory for a while, but not through a
		// reopening.
		lost := false
		for range 50 {
			if lost = certify(t, s, root) != nil; lost {
				break
			}
		}
		if round > 0 && !lost {
			t.Error("signing goes on without a token")
		}
		must(t, os.Rename(away, token.Dir))
		if err := sign(signer); err != nil {
			t.Errorf("round %d, token back: %v", round, err)
		}
		if err := certify(t, s, root); err != nil {
			t.Errorf("round %d, token back: %v", round, err)
		}
	}
}

func sign(signer crypto.Signer) error {
	sum := sha256.Sum256([]byte(time.Now().String()))
	_, err := signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	return err
}

// Another part of the process ends the sessions, or the whole library, under the
// store's feet. The next signature is made as if nothing had been.
func TestTokenSessionsEndedByAnother(t *testing.T) {
	token := keystest.New(t)
	s := inToken(t, token.URI(), nil)
	root := makeRoot(t, s)
	signer, err := ceremony.Roots{Keys: s}.Open(t.Context(), root)
	must(t, err)
	for name, end := range map[string]func(*pkcs11.Ctx) error{
		"sessions": func(p *pkcs11.Ctx) error {
			return p.CloseAllSessions(slotOf(t, p))
		},
		"library": func(p *pkcs11.Ctx) error { return p.Finalize() },
	} {
		must(t, sign(signer))
		must(t, end(module(t, token.Module)))
		if err := sign(signer); err != nil {
			t.Errorf("%s ended: %v", name, err)
		}
		must(t, end(module(t, token.Module)))
		if err := certify(t, s, root); err != nil {
			t.Errorf("%s ended: %v", name, err)
		}
		must(t, end(module(t, token.Module)))
		makeRoot(t, s)
	}
	if n := token.Objects(t); n != 2*3 {
		t.Errorf("%d objects are in the token: a lost session left a key behind", n)
	}
}

// A key whose private half is not that of the public half beside it is found out
// when it is opened.
func TestTokenWithSwappedHalf(t *testing.T) {
	token := keystest.New(t)
	s := inToken(t, token.URI(), nil)
	a, b := makeRoot(t, s), makeRoot(t, s)
	must(t, s.Close())
	loggedIn(t, token, func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		private := find(t, p, session, pkcs11.CKO_PRIVATE_KEY, objectOf(a))
		own := find(t, p, session, pkcs11.CKO_PRIVATE_KEY, objectOf(b))
		id, err := p.GetAttributeValue(session, private, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, nil)})
		must(t, err)
		must(t, p.DestroyObject(session, private))
		must(t, p.SetAttributeValue(session, own, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id[0].Value), pkcs11.NewAttribute(pkcs11.CKA_LABEL, objectOf(a))}))
	})
	if _, err := s.Open(t.Context(), a.KeyURI, certOf(t, a)); err == nil || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("opened: %v", err)
	}
}

func objectOf(root journal.Root) string {
	_, label, _ := strings.Cut(root.KeyURI, "object=")
	label, _, _ = strings.Cut(label, "?")
	return label
}

func find(tb testing.TB, p *pkcs11.Ctx, session pkcs11.SessionHandle, class uint, label string) pkcs11.ObjectHandle {
	tb.Helper()
	must(tb, p.FindObjectsInit(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}))
	found, _, err := p.FindObjects(session, 2)
	must(tb, err)
	must(tb, p.FindObjectsFinal(session))
	if len(found) != 1 {
		tb.Fatalf("%d objects are named %s", len(found), label)
	}
	return found[0]
}

// A file of keys or modules may move: for keys of the configured token, its
// module and PIN file are used.
func TestTokenModuleMoved(t *testing.T) {
	token := keystest.New(t)
	s := inToken(t, token.URI(), nil)
	root := makeRoot(t, s)
	must(t, s.Close())
	moved := token.PINFile + ".new"
	must(t, os.Rename(token.PINFile, moved))
	if err := certify(t, s, root); err == nil {
		t.Fatal("opened without a PIN")
	}
	token.PINFile = moved
	if err := certify(t, inToken(t, token.URI(), nil), root); err != nil {
		t.Error(err)
	}
}

// A certificate that cannot be made takes its key with it.
func TestTokenKeyOfNoCertificate(t *testing.T) {
	token := keystest.New(t)
	s := inToken(t, token.URI(), nil)
	_, err := s.Make(t.Context(), func(crypto.Signer) (*x509.Certificate, error) { return nil, errors.New("no certificate") })
	if err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("made: %v", err)
	}
	if left := token.Objects(t); left > 0 {
		t.Errorf("%d objects are left in the token", left)
	}
}

// The signer ends with its context.
func TestTokenSignerEnds(t *testing.T) {
	token := keystest.New(t)
	s := inToken(t, token.URI(), nil)
	root := makeRoot(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	signer, err := ceremony.Roots{Keys: s}.Open(ctx, root)
	must(t, err)
	must(t, sign(signer))
	cancel()
	if err := sign(signer); !errors.Is(err, context.Canceled) {
		t.Errorf("it signs on: %v", err)
	}
}

func BenchmarkRootSignature(b *testing.B) {
	for _, where := range []string{"file", "token"} {
		for _, algorithm := range []keys.Algorithm{keys.P256, keys.RSA3072} {
			b.Run(where+"/"+string(algorithm), func(b *testing.B) {
				var s *keys.Store
				if where == "token" {
					s = inToken(b, keystest.New(b).URI(), func(c *keys.Config) { c.Algorithm = algorithm })
				} else {
					cfg := folder(b)
					cfg.Algorithm = algorithm
					s = open(b, cfg)
				}
				root := makeRoot(b, s)
				signer, err := ceremony.Roots{Keys: s}.Open(b.Context(), root)
				must(b, err)
				for b.Loop() {
					must(b, sign(signer))
				}
			})
		}
	}
}
