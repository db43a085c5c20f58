package catest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"fmt"
	"testing"
)

// rsaKeys spares every test run the seconds that RSA keys take to make. They
// protect nothing.
//
//go:embed testdata/rsa*.pem
var rsaKeys embed.FS

// NamedKey is a key of one kind.
type NamedKey struct {
	Name string
	Key  crypto.Signer
}

// Key makes a P-256 key.
func Key(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	return Curve(tb, elliptic.P256())
}

// Curve makes an ECDSA key.
func Curve(tb testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// RSA returns the one test key of 1024, 2048, 3072 or 4096 bits.
func RSA(tb testing.TB, bits int) *rsa.PrivateKey {
	tb.Helper()
	text, err := rsaKeys.ReadFile(fmt.Sprintf("testdata/rsa%d.pem", bits))
	if err != nil {
		tb.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

// LeafKeys returns one key of each kind that a leaf may hold.
func LeafKeys(tb testing.TB) []NamedKey {
	tb.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return []NamedKey{
		{"P-256", Curve(tb, elliptic.P256())}, {"P-384", Curve(tb, elliptic.P384())}, {"P-521", Curve(tb, elliptic.P521())},
		{"RSA-2048", RSA(tb, 2048)}, {"RSA-3072", RSA(tb, 3072)}, {"RSA-4096", RSA(tb, 4096)}, {"Ed25519", ed},
	}
}

// AuthorityKeys returns one key of each kind that an authority may hold.
func AuthorityKeys(tb testing.TB) []NamedKey {
	tb.Helper()
	return []NamedKey{{"P-256", Curve(tb, elliptic.P256())}, {"P-384", Curve(tb, elliptic.P384())}, {"RSA-3072", RSA(tb, 3072)}}
}
