package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/hallmark-ca/hallmark/ca/lint"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// prepared is leave to sign one certificate: bytes that passed the checks. Only
// [prepare] makes one, and it is used once; so nothing unchecked can be signed,
// nothing twice, nothing with another algorithm than was checked.
type prepared struct {
	tbs       []byte
	algorithm profile.Algorithm
	used      atomic.Bool
}

func prepare(cert *profile.Certificate, algorithm profile.Algorithm) (*prepared, error) {
	cert.Algorithm = algorithm.ID
	tbs, err := cert.TBS()
	if err != nil {
		return nil, err
	}
	if err := lint.Check(tbs, cert, algorithm.X509); err != nil {
		return nil, err
	}
	return &prepared{tbs: tbs, algorithm: algorithm}, nil
}

// sign uses the key, the only place that does.
func (p *prepared) sign(signer crypto.Signer) ([]byte, error) {
	if p.used.Swap(true) {
		return nil, errors.New("signing certificate: the prepared bytes were signed before")
	}
	signature, err := signer.Sign(rand.Reader, digest(p.algorithm.Hash, p.tbs), p.algorithm.Hash)
	if err != nil {
		return nil, fmt.Errorf("signing certificate: %w", err)
	}
	return profile.Assemble(p.tbs, p.algorithm.ID, signature)
}

// unsigned is the certificate with a placeholder for its signature, as lints
// want to see it.
func (p *prepared) unsigned() ([]byte, error) {
	return profile.Assemble(p.tbs, p.algorithm.ID, []byte{0})
}

// newSerial returns a positive serial number of 16 octets with 126 random bits.
func newSerial() (*big.Int, string) {
	var b [16]byte
	rand.Read(b[:])         // never fails: it ends the process instead
	b[0] = b[0]&0x3f | 0x40 // positive, and always of one length
	return new(big.Int).SetBytes(b[:]), hex.EncodeToString(b[:])
}

// publicKey is a key as it stands in a certificate.
type publicKey struct {
	spki []byte
	id   []byte // subject key identifier
}

// encodeKey writes pub canonically, whatever a request had written. The
// identifier is RFC 7093 section 2 method 1: the leftmost 160 bits of the
// SHA-256 of the key, so that no SHA-1 is left in the house.
func encodeKey(pub crypto.PublicKey) (publicKey, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return publicKey{}, fmt.Errorf("encoding public key: %w", err)
	}
	var bits []byte
	in, out := cryptobyte.String(spki), cryptobyte.String(nil)
	if !in.ReadASN1(&out, cbasn1.SEQUENCE) || !out.SkipASN1(cbasn1.SEQUENCE) || !out.ReadASN1BitStringAsBytes(&bits) {
		return publicKey{}, errors.New("encoding public key: no bit string in it")
	}
	sum := sha256.Sum256(bits)
	return publicKey{spki, sum[:20]}, nil
}

func hexSHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
