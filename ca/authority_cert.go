package ca

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// authorityBackDate is how long before its making a CA is valid: clocks of
// nodes may be behind, and chains must verify there too.
const authorityBackDate = time.Hour

// AuthorityKind says what a CA may do.
type AuthorityKind struct {
	name     string
	pathLen  int
	keyUsage x509.KeyUsage
}

// The kinds of CA. A root may sign a revocation list if ever one is needed; an
// issuing CA, whose key dies with its process, could not renew one.
var (
	Root    = AuthorityKind{"root", 1, x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	Issuing = AuthorityKind{"issuing CA", 0, x509.KeyUsageCertSign}
)

// Parent signs a CA certificate. No Certificate means self-signed.
type Parent struct {
	Certificate *x509.Certificate
	Signer      crypto.Signer
}

// Certify makes a CA certificate (SPIFFE X509-SVID section 3.2, RFC 5280
// section 4.2.1.9): path length set, no extended key usage and no name
// constraints, on both of which a data plane fails closed. Its Subject is
// O=<trust domain>, CN=Hallmark <kind> <first 8 hex digits of its key id>, so
// that no two authorities share a name. It never outlives its parent.
func Certify(kind AuthorityKind, td attest.TrustDomain, pub crypto.PublicKey, parent Parent, life time.Duration, now time.Time) (*x509.Certificate, error) {
	if parent.Signer == nil || td.IsZero() || kind.name == "" {
		return nil, errors.New("certifying authority: kind, trust domain and the parent's signer are all required")
	}
	key, err := encodeKey(pub, nil)
	if err != nil {
		return nil, fmt.Errorf("certifying %s: %w", kind.name, err)
	}
	algorithm, err := profile.AlgorithmFor(parent.Signer.Public())
	if err != nil {
		return nil, fmt.Errorf("certifying %s: %w", kind.name, err)
	}
	subject, err := asn1.Marshal(pkix.Name{
		Organization: []string{td.String()},
		CommonName:   "Hallmark " + kind.name + " " + hex.EncodeToString(key.id[:4]),
	}.ToRDNSequence())
	if err != nil {
		return nil, fmt.Errorf("certifying %s: %w", kind.name, err)
	}
	now = now.UTC().Truncate(time.Second)
	serial, _ := newSerial()
	cert := &profile.Certificate{
		Serial: serial, NotBefore: now.Add(-authorityBackDate), NotAfter: now.Add(life.Truncate(time.Second)),
		Issuer: subject, Subject: subject, Key: key.spki, SubjectKeyID: key.id,
		KeyUsage: kind.keyUsage, CA: true, PathLen: kind.pathLen,
	}
	if up := parent.Certificate; up != nil {
		if len(up.SubjectKeyId) == 0 {
			return nil, fmt.Errorf("certifying %s: its parent has no subject key identifier", kind.name)
		}
		cert.Issuer, cert.AuthorityKeyID = up.RawSubject, up.SubjectKeyId
		if cert.NotBefore.Before(up.NotBefore) {
			cert.NotBefore = up.NotBefore
		}
		if cert.NotAfter.After(up.NotAfter) {
			cert.NotAfter = up.NotAfter
		}
	}
	if !cert.NotAfter.After(now) {
		return nil, fmt.Errorf("certifying %s: it would have ended at %s", kind.name, cert.NotAfter)
	}
	ready, err := prepare(cert, algorithm)
	if err != nil {
		return nil, fmt.Errorf("certifying %s: %w", kind.name, err)
	}
	der, err := ready.sign(parent.Signer)
	if err != nil {
		return nil, fmt.Errorf("certifying %s: %w", kind.name, err)
	}
	return checkSigned(kind, der, parent)
}

// checkSigned verifies the signature that came back: the signer may be outside
// this process, and a wrong one would be found by nobody before the first
// handshake.
func checkSigned(kind AuthorityKind, der []byte, parent Parent) (*x509.Certificate, error) {
	made, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certifying %s: %w", kind.name, err)
	}
	up := parent.Certificate
	if up == nil {
		up = made
	}
	if err := made.CheckSignatureFrom(up); err != nil {
		return nil, errors.Join(fmt.Errorf("certifying %s: the signer gave a signature that does not verify", kind.name), err)
	}
	return made, nil
}
