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
	return new(big.Int).SetBytes(b[:]), hexText(b[:])
}

// publicKey is a key as it stands in a certificate.
type publicKey struct {
	spki []byte
	id   []byte // subject key identifier
}

// p256Prefix is all of a P-256 key in DER but its point, and fixes the length
// and the form of what follows: two coordinates of 32 bytes.
const p256Prefix = "\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04"

// encodeKey writes pub canonically, whatever a request had written. Where seen,
// from which pub was parsed, can be written in one way only, it is that. The
// identifier is RFC 7093 section 2 method 1: the leftmost 160 bits of the
// SHA-256 of the key, so that no SHA-1 is left in the house.
func encodeKey(pub crypto.PublicKey, seen []byte) (publicKey, error) {
	spki := seen
	if len(spki) != len(p256Prefix)+64 || string(spki[:len(p256Prefix)]) != p256Prefix {
		var err error
		if spki, err = x509.MarshalPKIXPublicKey(pub); err != nil {
			return publicKey{}, fmt.Errorf("encoding public key: %w", err)
		}
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
	return hexText(sum[:])
}

// hexText is hex.EncodeToString for at most 32 bytes, with one allocation.
func hexText(data []byte) string {
	var text [64]byte
	return string(hex.AppendEncode(text[:0], data))
}
