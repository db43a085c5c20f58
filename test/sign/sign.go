// Package sign signs container images with a key, in the two formats that
// cosign 3 writes: a Sigstore bundle attached as an OCI referrer ([Bundle], its
// default) and the older signature under the tag "sha256-<hex>.sig" ([Legacy]).
// No transparency log, no certificate, no network but the registry's.
//
// What it writes is what cosign writes, apart from the signature itself and the
// time; the tests compare with the real one. Besides, it makes signatures that
// are wrong on purpose ([Option]). It is for tests and the demo: keys lie on
// disk unencrypted.
package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
)

// PredicateType says of a statement that it is a signature, not an attestation.
const PredicateType = "https://sigstore.dev/cosign/sign/v1"

// Key is an ECDSA P-256 key.
type Key struct {
	signer signature.Signer
	public *ecdsa.PublicKey
	pkcs8  []byte
}

// NewKey makes a key.
func NewKey() (*Key, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return newKey(k)
}

// ParseKey reads what [Key.PrivatePEM] wrote.
func ParseKey(b []byte) (*Key, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("reading a key: no PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading a key: %w", err)
	}
	k, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("reading a key: a %T, want ECDSA", parsed)
	}
	return newKey(k)
}

func newKey(k *ecdsa.PrivateKey) (*Key, error) {
	s, err := signature.LoadSigner(k, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("loading a key: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return &Key{signer: s, public: &k.PublicKey, pkcs8: pkcs8}, nil
}

// PublicPEM is the public key as policies take it (PUBLIC KEY).
func (k *Key) PublicPEM() ([]byte, error) { return cryptoutils.MarshalPublicKeyToPEM(k.public) }

// PrivatePEM is the key itself, unencrypted PKCS#8 (PRIVATE KEY).
func (k *Key) PrivatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k.pkcs8})
}

// hint is how cosign names a key in a bundle: base64 of the SHA-256 of its
// SubjectPublicKeyInfo.
func (k *Key) hint() (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(k.public)
	if err != nil {
		return "", fmt.Errorf("encoding a key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return base64.StdEncoding.EncodeToString(sum[:]), nil
}

func (k *Key) sign(message []byte) ([]byte, error) {
	sig, err := k.signer.SignMessage(bytes.NewReader(message))
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return sig, nil
}

// Option makes a signature that is wrong on purpose.
type Option func(*options)

type options struct {
	digest        *v1.Hash
	predicateType string
	corrupt       bool
}

// OfDigest signs another digest than that of the image it is attached to.
func OfDigest(d v1.Hash) Option { return func(o *options) { o.digest = &d } }

// WithPredicateType attaches a statement of another type: an attestation, say,
// that must not count as a signature. [Legacy] knows no types and ignores it.
func WithPredicateType(t string) Option { return func(o *options) { o.predicateType = t } }

// Corrupt changes the signature after it was made.
func Corrupt() Option { return func(o *options) { o.corrupt = true } }

// apply returns what to sign for the image, once the options have had their say.
func apply(image name.Digest, opts []Option) (options, v1.Hash, error) {
	o := options{predicateType: PredicateType}
	for _, f := range opts {
		f(&o)
	}
	d, err := v1.NewHash(image.DigestStr())
	if err != nil {
		return o, v1.Hash{}, fmt.Errorf("reading the image's digest: %w", err)
	}
	if o.digest != nil {
		d = *o.digest
	}
	return o, d, nil
}

// spoil changes one bit in the middle of the signature.
func (o options) spoil(sig []byte) []byte {
	if o.corrupt {
		sig[len(sig)/2] ^= 1
	}
	return sig
}
