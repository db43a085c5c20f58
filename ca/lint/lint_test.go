package lint_test

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/lint"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

var start = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// kinds are certificates of every kind that is signed here.
func kinds(t testing.TB) map[string]*profile.Certificate {
	t.Helper()
	name, err := asn1.Marshal(pkix.Name{Organization: []string{"cluster.local"}, CommonName: "Hallmark root 01020304"}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	const uri = "spiffe://cluster.local/ns/shop/sa/web"
	make := func(pub crypto.PublicKey, c profile.Certificate) *profile.Certificate {
		if c.Key, err = x509.MarshalPKIXPublicKey(pub); err != nil {
			t.Fatal(err)
		}
		c.Serial = new(big.Int).SetBytes([]byte("\x4a0123456789abcde"))
		c.NotBefore, c.NotAfter, c.Issuer = start, start.Add(6*time.Hour), name
		c.SubjectKeyID = []byte("subject key id 20 ch")
		if c.Subject == nil {
			c.Subject = profile.EmptyName
			c.AuthorityKeyID = []byte("issuer's key id 20 c")
			c.KeyUsage, c.ServerAndUser = x509.KeyUsageDigitalSignature, true
		}
		algorithm, err := profile.AlgorithmFor(catest.Key(t).Public())
		if err != nil {
			t.Fatal(err)
		}
		c.Algorithm = algorithm.ID
		return &c
	}
	key := catest.Key(t).Public()
	return map[string]*profile.Certificate{
		"leaf":       make(key, profile.Certificate{URIs: []string{uri}}),
		"RSA leaf":   make(catest.RSA(t, 2048).Public(), profile.Certificate{URIs: []string{uri}}),
		"serving":    make(key, profile.Certificate{DNS: []string{"hallmark.example"}, IPs: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP("::1")}}),
		"root":       make(key, profile.Certificate{Subject: name, CA: true, PathLen: 1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}),
		"issuing CA": make(key, profile.Certificate{Subject: name, AuthorityKeyID: []byte("the root's"), CA: true, PathLen: 0, KeyUsage: x509.KeyUsageCertSign}),
	}
}

// There is no bit that the checks do not look at, in any kind of certificate.
func TestEveryFlippedBitIsFound(t *testing.T) {
	for name, want := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			tbs, err := want.TBS()
			if err != nil {
				t.Fatal(err)
			}
			if err := lint.Check(tbs, want, x509.ECDSAWithSHA256); err != nil {
				t.Fatalf("the bytes as they should be: %v", err)
			}
			for bit := range 8 * len(tbs) {
				tbs[bit/8] ^= 1 << (bit % 8)
				if lint.Check(tbs, want, x509.ECDSAWithSHA256) == nil {
					t.Errorf("bit %d of byte %d (now %#x, in %x) can be flipped", bit%8, bit/8, tbs[bit/8], tbs[max(0, bit/8-12):min(len(tbs), bit/8+6)])
				}
				tbs[bit/8] ^= 1 << (bit % 8)
			}
		})
	}
}

// What a flip cannot do: whole fields that were put in.
func TestAdditionsAreFound(t *testing.T) {
	want := kinds(t)["leaf"]
	good, err := want.TBS()
	if err != nil {
		t.Fatal(err)
	}
	in := cryptobyte.String(good)
	var body cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) {
		t.Fatal("the bytes are no SEQUENCE")
	}
	// The extensions are the last field, and begin with the only tag [3].
	at := strings.LastIndex(string(body), "\xa3\x81")
	unique := []byte{0x81, 0x02, 0x00, 0x01} // issuerUniqueID
	for name, content := range map[string][]byte{
		"unique identifier": append(append(append([]byte{}, body[:at]...), unique...), body[at:]...),
		"trailing field":    append(append([]byte{}, body...), 0x05, 0x00),
		"nothing but":       body[:at],
	} {
		b := cryptobyte.NewBuilder(nil)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(content) })
		if err := lint.Check(b.BytesOrPanic(), want, x509.ECDSAWithSHA256); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
	if err := lint.Check(append(good, 0), want, x509.ECDSAWithSHA256); err == nil {
		t.Error("a byte behind the certificate passes")
	}
}

// Each field that differs is named, and all of them are.
func TestErrorNamesEachField(t *testing.T) {
	for field, change := range map[string]func(*profile.Certificate){
		"serial number":            func(c *profile.Certificate) { c.Serial = big.NewInt(77) },
		"issuer":                   func(c *profile.Certificate) { c.Issuer = profile.EmptyName },
		"subject":                  func(c *profile.Certificate) { c.Subject = c.Issuer },
		"validity":                 func(c *profile.Certificate) { c.NotAfter = c.NotAfter.Add(time.Second) },
		"key usage":                func(c *profile.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment },
		"extended key usage":       func(c *profile.Certificate) { c.ServerAndUser = false },
		"basic constraints":        func(c *profile.Certificate) { c.CA = true },
		"subject key identifier":   func(c *profile.Certificate) { c.SubjectKeyID = []byte("x") },
		"authority key identifier": func(c *profile.Certificate) { c.AuthorityKeyID = nil },
		"URI names":                func(c *profile.Certificate) { c.URIs = nil },
		"DNS names":                func(c *profile.Certificate) { c.DNS = []string{"x.example"} },
		"IP addresses":             func(c *profile.Certificate) { c.IPs = []net.IP{net.IPv6loopback} },
	} {
		c := kinds(t)["leaf"]
		tbs, err := c.TBS()
		if err != nil {
			t.Fatal(err)
		}
		change(c)
		if err := lint.Check(tbs, c, x509.ECDSAWithSHA256); err == nil || !strings.Contains(err.Error(), field+" is not what was intended") {
			t.Errorf("%s differs: %v", field, err)
		}
	}
	c := kinds(t)["leaf"]
	tbs, err := c.TBS()
	if err != nil {
		t.Fatal(err)
	}
	if lint.Check(tbs, c, x509.ECDSAWithSHA384) == nil {
		t.Error("another algorithm passes")
	}
}
