package attest_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
)

func TestParseTrustDomain(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 255)
	for _, good := range []string{"cluster.local", "a", "a-b_c.9", long} {
		td, err := attest.ParseTrustDomain(good)
		if err != nil || td.String() != good || td.IsZero() {
			t.Errorf("%q: %q, %v", good, td, err)
		}
	}
	for _, bad := range []string{
		"", long + "a", "Cluster.local", "spiffe://cluster.local", "cluster.local/", "/", "a b", "a:1", "a@b", "ä", "a%41", "a\n", "a?b", "a#b",
	} {
		if td, err := attest.ParseTrustDomain(bad); err == nil || !td.IsZero() {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	td := attesttest.Domain(t, "cluster.local")
	id, err := attest.NewIdentity(td, "shop", "cart")
	if err != nil {
		t.Fatal(err)
	}
	const text = "spiffe://cluster.local/ns/shop/sa/cart"
	if id.String() != text || id.ID().String() != text || id.TrustDomain() != td || id.IsZero() {
		t.Errorf("got %s", id)
	}
	parsed, err := attest.ParseIdentity(text)
	if err != nil || parsed != id {
		t.Errorf("parsed %s, %v", parsed, err)
	}
	if zero := (attest.Identity{}); !zero.IsZero() || zero.String() != "" {
		t.Errorf("the zero identity is %q", zero)
	}
	for _, parts := range [][2]string{{"", "cart"}, {"shop", ""}, {"shop/../bank", "cart"}, {"..", "cart"}, {"shop", "."}, {"shop", "ca rt"}, {"shop", "cart/x"}, {"shop", "%41"}, {"shöp", "cart"}} {
		if id, err := attest.NewIdentity(td, parts[0], parts[1]); err == nil {
			t.Errorf("%q became %s", parts, id)
		}
	}
	if id, err := attest.NewIdentity(attest.TrustDomain{}, "shop", "cart"); err == nil {
		t.Errorf("without a trust domain: %s", id)
	}
}

func TestIdentityLimit(t *testing.T) {
	t.Parallel()
	td := attesttest.Domain(t, "cluster.local")
	rest := len("spiffe://cluster.local/ns//sa/cart")
	longest := strings.Repeat("n", 2048-rest)
	id, err := attest.NewIdentity(td, longest, "cart")
	if err != nil || len(id.String()) != 2048 {
		t.Fatalf("2048 bytes: %d, %v", len(id.String()), err)
	}
	if _, err := attest.ParseIdentity(id.String()); err != nil {
		t.Error(err)
	}
	if _, err := attest.NewIdentity(td, longest+"n", "cart"); err == nil {
		t.Error("2049 bytes were built")
	}
	if _, err := attest.ParseIdentity("spiffe://cluster.local/ns/" + longest + "n/sa/cart"); err == nil {
		t.Error("2049 bytes were parsed")
	}
}

func TestParseIdentityRefuses(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"", "spiffe://", "spiffe://cluster.local", "spiffe://cluster.local/", "spiffe://cluster.local/ns/shop",
		"spiffe://cluster.local/ns/shop/sa", "spiffe://cluster.local/ns/shop/sa/", "spiffe://cluster.local/ns/shop/sa/cart/",
		"spiffe://cluster.local/ns/shop/sa/cart/x", "spiffe://cluster.local/NS/shop/sa/cart", "spiffe://cluster.local/sa/cart/ns/shop",
		"spiffe://cluster.local//shop/sa/cart", "spiffe://cluster.local/ns/../sa/cart", "https://cluster.local/ns/shop/sa/cart",
		"SPIFFE://cluster.local/ns/shop/sa/cart", "spiffe://Cluster.local/ns/shop/sa/cart", "spiffe://cluster.local/ns/shop/sa/cart?x",
		"spiffe://cluster.local/ns/shop/sa/cart#x", "spiffe://user@cluster.local/ns/shop/sa/cart", "spiffe://cluster.local:1/ns/shop/sa/cart",
		"spiffe://" + strings.Repeat("a", 256) + "/ns/shop/sa/cart", "spiffe://cluster.local/ns/sh%6Fp/sa/cart",
	} {
		if id, err := attest.ParseIdentity(bad); err == nil {
			t.Errorf("%q became %s", bad, id)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/shop/sa/cart")
	f.Add("spiffe://cluster.local/ns//sa/cart")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := attest.ParseIdentity(s)
		if err != nil {
			return
		}
		if id.String() != s || len(s) > 2048 || len(id.TrustDomain().String()) > 255 {
			t.Errorf("%q became %s", s, id)
		}
	})
}

func TestEscape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                 "",
		"plain":            "plain",
		"grün":             "grün",
		"a\nb\r\t\x00\x1b": `a\nb\r\t\x00\x1b`,
		"\u202egnp.exe":    `\u202egnp.exe`,
		"\xff":             `\xff`,
		`say "hi" \`:       `say \"hi\" \\`,
	} {
		if got := attest.Escape(in); got != want {
			t.Errorf("%q became %s, want %s", in, got, want)
		}
	}
	if got := attest.Escape(strings.Repeat("x", 10_000)); got != strings.Repeat("x", 512)+"…" {
		t.Errorf("a long text became %d bytes", len(got))
	}
	if got := attest.Escape(strings.Repeat("x", 511) + "é"); !strings.HasSuffix(got, `\xc3…`) {
		t.Errorf("a rune at the cut became %q", got[500:])
	}
	var all strings.Builder
	for r := range rune(0x3000) {
		fmt.Fprintf(&all, "%c", r)
	}
	for len(all.String()) > 0 {
		s := all.String()
		n := min(len(s), 500)
		for _, r := range attest.Escape(s[:n]) {
			if unicode.IsControl(r) || !unicode.IsGraphic(r) {
				t.Errorf("%U was left", r)
			}
		}
		all.Reset()
		all.WriteString(s[n:])
	}
}
