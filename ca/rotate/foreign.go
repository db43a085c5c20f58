package rotate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"

	"github.com/hallmark-ca/hallmark/ca/journal"
)

// Bounds of what is taken in.
const (
	maxCertificate = 16 << 10 // bytes
	maxTrusted     = 32       // roots in the bundle; proxies read them all
	maxKeyID       = 64       // bytes
	minRSA         = 2048     // bits, of roots that are not ours: istiod's is
)

// foreign checks a root that is only to be trusted. What a Snapshot would
// refuse must be refused here: once it is in the journal, nothing could follow
// it any more.
func (v view) foreign(der []byte) (*journal.Root, error) {
	if len(der) > maxCertificate {
		return nil, refuse("", "the certificate has %d bytes, at most %d are taken", len(der), maxCertificate)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, refuse("give one root in PEM", "the certificate is not read: %v", err)
	}
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, refuse("", "%q is no CA that may sign", cert.Subject)
	case len(cert.SubjectKeyId) == 0 || len(cert.SubjectKeyId) > maxKeyID:
		return nil, refuse("it has to be made anew with one (RFC 5280 section 4.2.1.2)", "%q has no usable subject key identifier", cert.Subject)
	case !bytes.Equal(cert.RawSubject, cert.RawIssuer) || cert.CheckSignatureFrom(cert) != nil:
		return nil, refuse("give the root above it", "%q is not signed by itself", cert.Subject)
	case !strong(cert):
		return nil, refuse("", "%q has a key that is too weak, or of a kind that proxies do not verify", cert.Subject)
	case v.now.After(cert.NotAfter) || v.now.Before(cert.NotBefore):
		return nil, refuse("", "%q is valid from %s to %s only", cert.Subject, stamp(cert.NotBefore), stamp(cert.NotAfter))
	}
	root := &journal.Root{ID: hex.EncodeToString(cert.SubjectKeyId), Certificate: cert.Raw, Phase: journal.Trusted, Since: v.now.UTC()}
	if known, ok := v.state.Root(root.ID); ok {
		return nil, refuse("", "root %s is in the journal already: it is %s", short(root.ID), known.Phase)
	}
	inBundle := 0
	for _, r := range v.state.Roots {
		if r.Phase.InBundle() {
			inBundle++
		}
		if named, err := x509.ParseCertificate(r.Certificate); err != nil || bytes.Equal(named.RawSubject, cert.RawSubject) {
			return nil, refuse("", "root %s is named %q too, and verifiers tell authorities by their names", short(r.ID), cert.Subject)
		}
	}
	for _, ca := range v.state.Issuing {
		if named, err := x509.ParseCertificate(ca.Certificate); err != nil || bytes.Equal(named.RawSubject, cert.RawSubject) {
			return nil, refuse("", "issuing CA %s is named %q too, and verifiers tell authorities by their names", short(ca.ID), cert.Subject)
		}
	}
	if inBundle >= maxTrusted {
		return nil, refuse("untrust or retire one first", "the bundle has %d roots already", inBundle)
	}
	return root, nil
}

// strong takes the keys that Envoy, Go and rustls all verify.
func strong(cert *x509.Certificate) bool {
	switch key := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return key.Curve == elliptic.P256() || key.Curve == elliptic.P384()
	case *rsa.PublicKey:
		return key.N.BitLen() >= minRSA && key.N.BitLen() <= 8192
	}
	return false
}
