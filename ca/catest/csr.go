package catest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"testing"

	"github.com/hallmark-ca/hallmark/attest"
)

// CSR returns a signing request as ztunnel makes it: empty subject, one critical
// URI SAN, nothing else. The zero identity leaves the name out.
func CSR(tb testing.TB, key crypto.Signer, identity attest.Identity) []byte {
	tb.Helper()
	template := &x509.CertificateRequest{}
	if !identity.IsZero() {
		template.ExtraExtensions = []pkix.Extension{uriNames(tb, identity.String())}
	}
	return CSRFrom(tb, key, template)
}

// PilotCSR returns a signing request as pilot-agent makes it: a subject with one
// empty organization, one critical URI SAN.
func PilotCSR(tb testing.TB, key crypto.Signer, identity attest.Identity) []byte {
	tb.Helper()
	return CSRFrom(tb, key, &x509.CertificateRequest{
		Subject:         pkix.Name{Organization: []string{""}},
		ExtraExtensions: []pkix.Extension{uriNames(tb, identity.String())},
	})
}

// uriNames is a critical subject alternative name of URIs.
func uriNames(tb testing.TB, uris ...string) pkix.Extension {
	tb.Helper()
	var names []asn1.RawValue
	for _, uri := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)})
	}
	value, err := asn1.Marshal(names)
	if err != nil {
		tb.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}
}

// CSRFrom returns a signing request made from template.
func CSRFrom(tb testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	tb.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
