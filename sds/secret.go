package sds

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
)

// TypeURL is the type of every resource of this service.
const TypeURL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// SVID is a certificate chain and its private key, checked and encoded.
type SVID struct {
	identity attest.Identity
	version  string
	ends     time.Time
	encoded  []byte // without its name
}

// NewSVID checks that everything fits, because Envoy serves what it is given:
// the key is of an accepted kind and the leaf's own, the leaf names identity and
// nobody else, the chain is in order and leads to a root of bundle, and all of
// it is valid at now. chain is in PEM: the leaf, then every CA below the root.
func NewSVID(identity attest.Identity, chain []byte, key crypto.Signer, bundle *Bundle, now time.Time) (*SVID, error) {
	certs, err := parseCertificates(chain)
	if err != nil {
		return nil, fmt.Errorf("checking SVID: %w", err)
	}
	if err := checkSVID(identity, certs, key, bundle, now); err != nil {
		return nil, fmt.Errorf("checking SVID of %s: %w", identity, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding SVID key: %w", err)
	}
	v := &SVID{identity: identity, version: versionOf(certs), ends: certs[0].NotAfter}
	for _, cert := range certs[1:] {
		if cert.NotAfter.Before(v.ends) {
			v.ends = cert.NotAfter
		}
	}
	v.encoded, err = encode(&tlsv3.Secret{Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(encodeCertificates(certs)),
		PrivateKey:       inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}}})
	if err != nil {
		return nil, fmt.Errorf("encoding SVID: %w", err)
	}
	return v, nil
}

func checkSVID(identity attest.Identity, certs []*x509.Certificate, key crypto.Signer, bundle *Bundle, now time.Time) error {
	if identity.IsZero() || key == nil || bundle == nil {
		return errors.New("identity, key and bundle are all required")
	}
	leaf := certs[0]
	if err := ca.CheckKey(key.Public()); err != nil {
		return err
	}
	if pub, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return errors.New("the private key is not the certificate's")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != identity.String() {
		return fmt.Errorf("the certificate names %v", leaf.URIs)
	}
	if identity.TrustDomain() != bundle.trustDomain {
		return fmt.Errorf("the bundle is that of %s", bundle.trustDomain)
	}
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range bundle.roots {
		roots.AddCert(root)
	}
	for i, cert := range certs {
		// A server shows the chain as it stands: order counts.
		if i > 0 && !bytes.Equal(certs[i-1].RawIssuer, cert.RawSubject) {
			return fmt.Errorf("certificate %d of the chain did not issue the one before it", i)
		}
		if !now.Before(cert.NotAfter) {
			return fmt.Errorf("certificate %d of the chain ended at %s", i, cert.NotAfter)
		}
		if i > 0 {
			others.AddCert(cert)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("the chain does not lead to the bundle: %w", err)
	}
	return nil
}

// Version is a short hash of the chain.
func (v *SVID) Version() string { return v.version }

// Ends tells when the first certificate of the chain ends.
func (v *SVID) Ends() time.Time { return v.ends }

// String names the SVID. The key is never shown.
func (v *SVID) String() string { return "SVID of " + v.identity.String() + " version " + v.version }

// GoString keeps the key out of %#v.
func (v *SVID) GoString() string { return v.String() }

// Bundle is what to trust in one trust domain, checked and encoded.
type Bundle struct {
	trustDomain attest.TrustDomain
	version     string
	ends        time.Time
	roots       []*x509.Certificate
	spiffe      []byte // without its name, for Envoy's SPIFFE validator
	plain       []byte // likewise, roots alone
}

// NewBundle checks the roots of td, which are in PEM and in any order. Without a
// root that is valid at now there is no bundle: Envoy takes an empty validation
// context, and then lets everybody in.
func NewBundle(td attest.TrustDomain, roots []byte, now time.Time) (*Bundle, error) {
	if td.IsZero() {
		return nil, errors.New("checking bundle: no trust domain")
	}
	certs, err := parseCertificates(roots)
	if err != nil {
		return nil, fmt.Errorf("checking bundle of %s: %w", td, err)
	}
	b := &Bundle{trustDomain: td}
	for _, cert := range certs {
		if !cert.IsCA {
			return nil, fmt.Errorf("checking bundle of %s: %q is no CA", td, cert.Subject)
		}
		if cert.NotAfter.After(b.ends) {
			b.ends = cert.NotAfter
		}
	}
	if !now.Before(b.ends) {
		return nil, fmt.Errorf("checking bundle of %s: every root has ended", td)
	}
	// The same bytes for the same roots, everywhere.
	slices.SortFunc(certs, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	b.roots = slices.CompactFunc(certs, func(a, b *x509.Certificate) bool { return bytes.Equal(a.Raw, b.Raw) })
	b.version = versionOf(b.roots)
	if err := b.encode(); err != nil {
		return nil, fmt.Errorf("encoding bundle of %s: %w", td, err)
	}
	return b, nil
}

func (b *Bundle) encode() error {
	text := inline(encodeCertificates(b.roots))
	validator, err := anypb.New(&tlsv3.SPIFFECertValidatorConfig{TrustDomains: []*tlsv3.SPIFFECertValidatorConfig_TrustDomain{
		{Name: b.trustDomain.String(), TrustBundle: text},
	}})
	if err != nil {
		return err
	}
	b.spiffe, err = encode(validation(&tlsv3.CertificateValidationContext{
		CustomValidatorConfig: &corev3.TypedExtensionConfig{Name: "envoy.tls.cert_validator.spiffe", TypedConfig: validator},
	}))
	if err != nil {
		return err
	}
	b.plain, err = encode(validation(&tlsv3.CertificateValidationContext{TrustedCa: text}))
	return err
}

// TrustDomain returns whose bundle it is.
func (b *Bundle) TrustDomain() attest.TrustDomain { return b.trustDomain }

// Version is a short hash of the roots, the same everywhere.
func (b *Bundle) Version() string { return b.version }

// encode writes a secret without its name, which is another for each alias.
// Fields of a message stand in any order, so a name can be put before it.
func encode(secret *tlsv3.Secret) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(secret)
}

func validation(c *tlsv3.CertificateValidationContext) *tlsv3.Secret {
	return &tlsv3.Secret{Type: &tlsv3.Secret_ValidationContext{ValidationContext: c}}
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// maxCertificates bounds a chain and a bundle.
const maxCertificates = 100

// parseCertificates reads PEM blocks of certificates and refuses anything else
// between and behind them.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		if !bytes.HasPrefix(rest, []byte("-----BEGIN CERTIFICATE-----")) {
			return nil, errors.New("there is text that is no certificate")
		}
		block, after := pem.Decode(rest)
		// Decode skips what it cannot read, up to the next block that it can.
		if block == nil || bytes.Count(rest[:len(rest)-len(after)], []byte("-----BEGIN")) != 1 {
			return nil, errors.New("a PEM block cannot be read")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, cert); len(certs) > maxCertificates {
			return nil, fmt.Errorf("more than %d certificates", maxCertificates)
		}
		rest = after
	}
	if len(certs) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return certs, nil
}

func encodeCertificates(certs []*x509.Certificate) []byte {
	var text []byte
	for _, cert := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return text
}

// versionOf is a short hash of public content.
func versionOf(certs []*x509.Certificate) string {
	h := sha256.New()
	for _, cert := range certs {
		h.Write(cert.Raw)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
