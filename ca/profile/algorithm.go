package profile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"fmt"
)

// Algorithm is how an authority's key signs.
type Algorithm struct {
	Hash crypto.Hash
	ID   []byte // AlgorithmIdentifier, DER
	X509 x509.SignatureAlgorithm
}

var (
	ecdsaSHA256 = Algorithm{crypto.SHA256, mustHex("300a06082a8648ce3d040302"), x509.ECDSAWithSHA256}
	ecdsaSHA384 = Algorithm{crypto.SHA384, mustHex("300a06082a8648ce3d040303"), x509.ECDSAWithSHA384}
	rsaSHA256   = Algorithm{crypto.SHA256, mustHex("300d06092a864886f70d01010b0500"), x509.SHA256WithRSA}
)

// AlgorithmFor returns how an authority with the given public key signs:
// ECDSA P-256 with SHA-256, P-384 with SHA-384, RSA (PKCS #1 v1.5) with
// SHA-256. Keys of other kinds sign nothing here: Ed25519 because the PKCS #11
// library has none, so that a root could never move into hardware.
func AlgorithmFor(pub crypto.PublicKey) (Algorithm, error) {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve.Params().Name {
		case "P-256":
			return ecdsaSHA256, nil
		case "P-384":
			return ecdsaSHA384, nil
		}
		return Algorithm{}, fmt.Errorf("choosing signature algorithm: an authority on curve %s is not supported: use P-256 or P-384", key.Curve.Params().Name)
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < 3072 || n > 4096 {
			return Algorithm{}, fmt.Errorf("choosing signature algorithm: an RSA authority of %d bits is not supported: use 3072 to 4096", n)
		}
		return rsaSHA256, nil
	}
	return Algorithm{}, fmt.Errorf("choosing signature algorithm: an authority key of type %T is not supported: use ECDSA P-256 or P-384, or RSA", pub)
}

func mustHex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}
