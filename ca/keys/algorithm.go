package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"

	"go.step.sm/crypto/kms/apiv1"

	"github.com/hallmark-ca/hallmark/ca/profile"
)

// Algorithm is a kind of key that an authority may have.
type Algorithm string

// The algorithms.
const (
	P256    Algorithm = "P-256"
	P384    Algorithm = "P-384"
	RSA3072 Algorithm = "RSA-3072"
	RSA4096 Algorithm = "RSA-4096"
)

// Algorithms returns every [Algorithm], the default first.
func Algorithms() []Algorithm { return []Algorithm{P256, P384, RSA3072, RSA4096} }

// ParseAlgorithm returns the algorithm of that name, however it is capitalised.
func ParseAlgorithm(name string) (Algorithm, error) {
	var known []string
	for _, a := range Algorithms() {
		if strings.EqualFold(name, string(a)) {
			return a, nil
		}
		known = append(known, string(a))
	}
	if strings.EqualFold(name, "Ed25519") {
		return "", errors.New("Ed25519 is not for authorities: the PKCS #11 library has none, so that such a root could never move into hardware; use P-256, P-384, RSA-3072 or RSA-4096")
	}
	return "", fmt.Errorf("key algorithm %.64q is not known; use one of %s", name, strings.Join(known, ", "))
}

// Generate makes a key in memory.
func (a Algorithm) Generate() (crypto.Signer, error) {
	var key crypto.Signer
	var err error
	switch a {
	case P256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA3072:
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	default:
		_, err = ParseAlgorithm(string(a))
	}
	if err != nil {
		return nil, fmt.Errorf("generating key: %w", err)
	}
	return key, nil
}

// Generate makes a P-256 key in memory, such as an issuing CA's.
func Generate() (crypto.Signer, error) { return P256.Generate() }

// request is what a key manager is asked for.
func (a Algorithm) request(name string) *apiv1.CreateKeyRequest {
	switch a {
	case P384:
		return &apiv1.CreateKeyRequest{Name: name, SignatureAlgorithm: apiv1.ECDSAWithSHA384}
	case RSA3072:
		return &apiv1.CreateKeyRequest{Name: name, SignatureAlgorithm: apiv1.SHA256WithRSA, Bits: 3072}
	case RSA4096:
		return &apiv1.CreateKeyRequest{Name: name, SignatureAlgorithm: apiv1.SHA256WithRSA, Bits: 4096}
	}
	return &apiv1.CreateKeyRequest{Name: name, SignatureAlgorithm: apiv1.ECDSAWithSHA256}
}

// prove has key sign something of no meaning: that its public half is the right
// one says nothing about the private half.
func prove(key crypto.Signer) error {
	algorithm, err := profile.AlgorithmFor(key.Public())
	if err != nil {
		return err
	}
	digest := make([]byte, algorithm.Hash.Size())
	rand.Read(digest)
	signature, err := key.Sign(rand.Reader, digest, algorithm.Hash)
	if err != nil {
		return err
	}
	return verify(key.Public(), digest, signature, algorithm.Hash)
}

// errFalse says that a device gave a signature that does not verify. A fault in
// the computation can give an RSA key away, so that it must not leave.
var errFalse = errors.New("the signature that came back does not verify: a broken device, or a private key that is not that of the public one beside it")

func verify(public crypto.PublicKey, digest, signature []byte, opts crypto.SignerOpts) error {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(key, digest, signature) {
			return nil
		}
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			if rsa.VerifyPSS(key, pss.Hash, digest, signature, pss) == nil {
				return nil
			}
		} else if rsa.VerifyPKCS1v15(key, opts.HashFunc(), digest, signature) == nil {
			return nil
		}
	}
	return errFalse
}
