package bundle_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/bundle"
	"github.com/hallmark-ca/hallmark/ca/catest"
)

const hint = 5 * time.Minute

func trustDomain(tb testing.TB) attest.TrustDomain {
	tb.Helper()
	td, err := attest.ParseTrustDomain("cluster.local")
	if err != nil {
		tb.Fatal(err)
	}
	return td
}

// roots returns a root of each kind of key that an authority may have.
func roots(tb testing.TB) []*x509.Certificate {
	tb.Helper()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		tb.Fatal(err)
	}
	var out []*x509.Certificate
	for _, key := range []crypto.Signer{catest.Key(tb), p384, rsaKey} {
		out = append(out, catest.Certify(tb, ca.Root, trustDomain(tb), key, ca.Parent{}, catest.RootLifetime, time.Now()))
	}
	return out
}

// TestDocument reads what we write by hand (B-1 to B-3) and with go-spiffe.
func TestDocument(t *testing.T) {
	t.Parallel()
	authority := catest.New(t, trustDomain(t), time.Now, nil)
	authority.AddRoot(t)
	b := bundle.Of(authority.Current(), hint)
	b.Roots = append(b.Roots, roots(t)...)
	data, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}

	var doc struct {
		Keys     []map[string]any `json:"keys"`
		Sequence json.Number      `json:"spiffe_sequence"`
		Hint     json.Number      `json:"spiffe_refresh_hint"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	if want := json.Number(fmt.Sprint(authority.Current().Sequence())); doc.Sequence != want || doc.Hint != "300" {
		t.Errorf("sequence %s, refresh hint %s; want %s and 300", doc.Sequence, doc.Hint, want)
	}
	if len(doc.Keys) != len(b.Roots) {
		t.Fatalf("%d keys for %d roots", len(doc.Keys), len(b.Roots))
	}
	for i, key := range doc.Keys {
		if _, named := key["kid"]; named || key["use"] != "x509-svid" {
			t.Errorf("key %d has kid %v and use %v; want none, and x509-svid", i, key["kid"], key["use"])
		}
		chain, ok := key["x5c"].([]any)
		if !ok || len(chain) != 1 || chain[0] != base64.StdEncoding.EncodeToString(b.Roots[i].Raw) {
			t.Errorf("key %d does not hold its one certificate: %v", i, key["x5c"])
		}
	}

	foreign, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString("cluster.local"), data)
	if err != nil {
		t.Fatalf("go-spiffe does not read it: %v", err)
	}
	sequence, _ := foreign.SequenceNumber()
	refresh, _ := foreign.RefreshHint()
	if sequence != b.Sequence || refresh != hint || !slices.EqualFunc(foreign.X509Authorities(), b.Roots, (*x509.Certificate).Equal) {
		t.Errorf("go-spiffe reads sequence %d, hint %s, %d roots", sequence, refresh, len(foreign.X509Authorities()))
	}

	own, err := bundle.Read(b.TrustDomain, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if own.TrustDomain != b.TrustDomain || own.Sequence != b.Sequence || own.RefreshHint != hint || !slices.EqualFunc(own.Roots, b.Roots, (*x509.Certificate).Equal) {
		t.Errorf("read back: %+v", own)
	}
	again, err := b.Marshal()
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("written again, it is another (%v)", err)
	}
}

func TestMarshalRefuses(t *testing.T) {
	t.Parallel()
	authority := catest.New(t, trustDomain(t), time.Now, nil)
	good := bundle.Of(authority.Current(), hint)
	for name, change := range map[string]func(*bundle.Bundle){
		"no trust domain": func(b *bundle.Bundle) { b.TrustDomain = attest.TrustDomain{} },
		"no sequence":     func(b *bundle.Bundle) { b.Sequence = 0 },
		"no roots":        func(b *bundle.Bundle) { b.Roots = nil },
		"too many roots":  func(b *bundle.Bundle) { b.Roots = slices.Repeat(b.Roots, bundle.MaxKeys+1) },
		"no hint":         func(b *bundle.Bundle) { b.RefreshHint = 0 },
		"endless hint":    func(b *bundle.Bundle) { b.RefreshHint = bundle.MaxHint + 1 },
		"no CA":           func(b *bundle.Bundle) { b.Roots = []*x509.Certificate{{}} },
	} {
		b := good
		change(&b)
		if data, err := b.Marshal(); err == nil {
			t.Errorf("%s: written as %s", name, data)
		}
	}
}

// key returns an element of the document of one root.
func key(tb testing.TB, root *x509.Certificate) string {
	tb.Helper()
	data, err := bundle.Bundle{TrustDomain: trustDomain(tb), Sequence: 1, RefreshHint: hint, Roots: []*x509.Certificate{root}}.Marshal()
	if err != nil {
		tb.Fatal(err)
	}
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		tb.Fatal(err)
	}
	return string(doc.Keys[0])
}

func TestParse(t *testing.T) {
	t.Parallel()
	all := roots(t)
	good, other := key(t, all[0]), key(t, all[1])
	chain := base64.StdEncoding.EncodeToString(all[0].Raw)
	noCA := leafKey(t)

	for _, tc := range []struct {
		name, doc string
		roots     int
		err       string // part of it; "": none
	}{
		{"one", `{"keys":[` + good + `]}`, 1, ""},
		{"sequence and hint", `{"spiffe_sequence":18446744073709551615,"spiffe_refresh_hint":60,"keys":[` + good + `,` + other + `]}`, 2, ""},
		{"the same twice", `{"keys":[` + good + `,` + good + `]}`, 1, ""},
		{"none", `{"keys":[]}`, 0, ""},
		{"unknown members", `{"keys":[` + good + `],"spiffe_future":{"a":[1]}}`, 1, ""},
		{"unknown type", `{"keys":[{"kty":"PQ","use":"x509-svid","x5c":["!"]},` + good + `]}`, 1, ""},
		{"unknown use", `{"keys":[` + strings.Replace(good, "x509-svid", "wit-svid", 1) + `,` + good + `]}`, 1, ""},
		{"no use", `{"keys":[` + strings.Replace(good, `"use":"x509-svid",`, "", 1) + `]}`, 0, ""},
		{"no keys", `{"spiffe_sequence":1}`, 0, "no keys"},
		{"null keys", `{"keys":null}`, 0, "no keys"},
		{"no document", `[]`, 0, "cannot unmarshal"},
		{"garbage behind", `{"keys":[]} {}`, 0, "after top-level"},
		{"keys twice", `{"keys":[],"keys":[` + good + `]}`, 0, "duplicate"},
		{"names in other case", `{"KEYS":[` + good + `]}`, 0, "no keys"},
		{"no certificate", `{"keys":[{"kty":"EC","use":"x509-svid"}]}`, 0, "0 certificates"},
		{"a chain", `{"keys":[` + strings.Replace(good, `"`+chain+`"`, `"`+chain+`","`+chain+`"`, 1) + `]}`, 0, "2 certificates"},
		{"another's key", `{"keys":[` + strings.Replace(good, chain, base64.StdEncoding.EncodeToString(all[2].Raw), 1) + `]}`, 0, "do not match"},
		{"no CA", `{"keys":[` + noCA + `]}`, 0, "no CA that may sign"},
		{"negative sequence", `{"spiffe_sequence":-1,"keys":[]}`, 0, "spiffe_sequence"},
		{"broken sequence", `{"spiffe_sequence":1.5,"keys":[]}`, 0, "spiffe_sequence"},
		{"negative hint", `{"spiffe_refresh_hint":-1,"keys":[]}`, 0, "refresh hint"},
		{"endless hint", `{"spiffe_refresh_hint":9223372036854775807,"keys":[]}`, 0, "refresh hint"},
		{"65 keys", `{"keys":[` + strings.Repeat(`{},`, bundle.MaxKeys) + `{}]}`, 0, "at most 64"},
		{"64 keys", `{"keys":[` + strings.Repeat(`{},`, bundle.MaxKeys-1) + good + `]}`, 1, ""},
		{"more than a mebibyte", `{"keys":[]` + strings.Repeat(" ", bundle.MaxBytes) + `}`, 0, "more than 1048576 bytes"},
	} {
		b, err := bundle.Parse(trustDomain(t), []byte(tc.doc))
		switch {
		case tc.err == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%s: got error %v, want one with %q", tc.name, err, tc.err)
		case len(b.Roots) != tc.roots:
			t.Errorf("%s: %d roots, want %d", tc.name, len(b.Roots), tc.roots)
		}
	}
	if _, err := bundle.Read(trustDomain(t), strings.NewReader(strings.Repeat(" ", bundle.MaxBytes+2))); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an endless body: %v", err)
	}
	b, err := bundle.Parse(trustDomain(t), []byte(`{"spiffe_sequence":18446744073709551615,"spiffe_refresh_hint":60,"keys":[]}`))
	if diff := cmp.Diff(bundle.Bundle{TrustDomain: trustDomain(t), Sequence: 1<<64 - 1, RefreshHint: time.Minute}, b, cmp.Comparer(func(a, b attest.TrustDomain) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("sequence and hint (%v):\n%s", err, diff)
	}
}

// leafKey returns the element of a certificate that is no CA.
func leafKey(tb testing.TB) string {
	tb.Helper()
	key := catest.Key(tb)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := jose.JSONWebKey{Key: cert.PublicKey, Certificates: []*x509.Certificate{cert}, Use: "x509-svid"}.MarshalJSON()
	if err != nil {
		tb.Fatal(err)
	}
	return string(raw)
}

// FuzzParse holds our reader against go-spiffe's: what ours takes, theirs takes,
// and with the same roots.
func FuzzParse(f *testing.F) {
	all := roots(f)
	for _, root := range all {
		f.Add([]byte(`{"spiffe_sequence":7,"spiffe_refresh_hint":60,"keys":[` + key(f, root) + `]}`))
	}
	f.Add([]byte(`{"keys":[{"kty":"PQ","use":"x509-svid"},{"kty":"EC","use":"jwt-svid","kid":"a"}]}`))
	f.Add([]byte(`{"keys":[],"KEYS":null}`))
	f.Add([]byte(`{"spiffe_sequence":1e3,"keys":[{}]}`))
	td := trustDomain(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := bundle.Parse(td, data)
		if err != nil {
			return
		}
		if len(b.Roots) > bundle.MaxKeys || b.RefreshHint < 0 || b.RefreshHint > bundle.MaxHint {
			t.Fatalf("out of bounds: %+v", b)
		}
		if len(b.Roots) == 0 || b.Sequence == 0 || b.RefreshHint == 0 {
			return
		}
		again, err := b.Marshal()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		theirs, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString("cluster.local"), again)
		if err != nil || !slices.EqualFunc(theirs.X509Authorities(), b.Roots, (*x509.Certificate).Equal) {
			t.Fatalf("go-spiffe reads another bundle (%v)", err)
		}
	})
}
