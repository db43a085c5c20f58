package sigstore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/hallmark-ca/hallmark/attest"
)

// Bounds of a key: the PEM, and the RSA modulus in bits (a larger one makes
// each verification dear).
const (
	maxPEM     = 64 << 10
	minModulus = 2048
	maxModulus = 8192
)

var hashes = map[string]crypto.Hash{
	"": crypto.SHA256, "sha224": crypto.SHA224, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512,
}

// usual is the hash that cosign 3 signs with, by the curve of its key. A
// policy's hashAlgorithm is SHA-256 all the same where it says nothing.
var usual = map[elliptic.Curve]crypto.Hash{
	elliptic.P256(): crypto.SHA256, elliptic.P384(): crypto.SHA384, elliptic.P521(): crypto.SHA512,
}

// Key is a public key that a policy trusts.
type Key struct {
	signer string // sha256:<hex of the SubjectPublicKeyInfo's hash>
	hint   string // the same as cosign writes it in a bundle: base64
	kind   string // for people: what it verifies with
	mend   string // for people: what may be wrong where nothing verifies
	// verifiers are tried in turn. There are two for Ed25519: cosign signs with
	// Ed25519ph, others with Ed25519, and neither can be taken for the other.
	verifiers []*verify.Verifier
}

// ParseKey reads one public key, PEM of type PUBLIC KEY or RSA PUBLIC KEY:
// ECDSA on P-256, P-384 or P-521, RSA of 2048 to 8192 bits (PKCS #1 v1.5: a
// policy has no word for another padding), or Ed25519. hashAlgorithm is sha224,
// sha256 (also for ""), sha384 or sha512, whatever the curve; Ed25519 has its
// own and ignores it.
func ParseKey(data []byte, hashAlgorithm string) (*Key, error) {
	hash, ok := hashes[hashAlgorithm]
	if !ok {
		return nil, fmt.Errorf("reading a public key: hash algorithm %q is none of sha224, sha256, sha384 and sha512", attest.Escape(hashAlgorithm))
	}
	public, err := parsePublic(data)
	if err != nil {
		return nil, fmt.Errorf("reading a public key: %w", err)
	}
	kind, err := kindOf(public, hash)
	if err != nil {
		return nil, fmt.Errorf("reading a public key: %w", err)
	}
	mend := ""
	if p, ok := public.(*ecdsa.PublicKey); ok && usual[p.Curve] != hash {
		mend = fmt.Sprintf("; cosign signs with %s by %s: see hashAlgorithm", p.Curve.Params().Name, usual[p.Curve])
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("reading a public key: %w", err)
	}
	sum := sha256.Sum256(spki)
	k := &Key{
		signer: "sha256:" + hex.EncodeToString(sum[:]),
		hint:   base64.StdEncoding.EncodeToString(sum[:]),
		kind:   kind,
		mend:   mend,
	}
	variants := []signature.LoadOption{options.WithHash(hash)}
	if _, ok := public.(ed25519.PublicKey); ok {
		variants = append(variants, options.WithED25519ph())
	}
	for _, o := range variants {
		v, err := verifierFor(public, o)
		if err != nil {
			return nil, fmt.Errorf("reading a public key: %w", err)
		}
		k.verifiers = append(k.verifiers, v)
	}
	return k, nil
}

// Signer names the key: "sha256:" and the hash of its SubjectPublicKeyInfo in
// hex.
func (k *Key) Signer() string { return k.signer }

func parsePublic(data []byte) (crypto.PublicKey, error) {
	if len(data) > maxPEM {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(data), maxPEM)
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM block was found: begin with -----BEGIN PUBLIC KEY-----")
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, errors.New("more than one PEM block: write an authority for each key")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("there is text behind the PEM block")
	}
	switch block.Type {
	case "PUBLIC KEY":
		return x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		return x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		return nil, errors.New("a certificate, and a public key is wanted: a certificate's names and times would not be looked at")
	default:
		return nil, fmt.Errorf("PEM of type %q, and PUBLIC KEY is wanted", attest.Escape(block.Type))
	}
}

func kindOf(public crypto.PublicKey, hash crypto.Hash) (string, error) {
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return fmt.Sprintf("ECDSA %s with %s", p.Curve.Params().Name, hash), nil
		}
		return "", fmt.Errorf("ECDSA on curve %s, and P-256, P-384 or P-521 is wanted", p.Curve.Params().Name)
	case *rsa.PublicKey:
		if n := p.N.BitLen(); n < minModulus || n > maxModulus {
			return "", fmt.Errorf("RSA of %d bits, and %d to %d are wanted", n, minModulus, maxModulus)
		}
		return fmt.Sprintf("RSA %d (PKCS #1 v1.5) with %s", p.N.BitLen(), hash), nil
	case ed25519.PublicKey:
		return "Ed25519", nil
	default:
		return "", fmt.Errorf("a key of type %T, and ECDSA, RSA or Ed25519 is wanted", public)
	}
}

// verifierFor makes sigstore-go trust this one key, whatever hint a bundle
// gives, at any time, and ask for no log: a policy's key has no other rule.
func verifierFor(public crypto.PublicKey, opts ...signature.LoadOption) (*verify.Verifier, error) {
	v, err := signature.LoadVerifierWithOpts(public, opts...)
	if err != nil {
		return nil, err
	}
	key := root.NewExpiringKey(v, time.Time{}, time.Time{})
	material := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return key, nil })
	return verify.NewVerifier(material, verify.WithNoObserverTimestamps(), verify.WithoutStatementPredicate())
}
