// Package lint checks the bytes of a certificate before the key signs them,
// and again nothing but those bytes.
//
// [Check] reads them with the standard library's parser, which shares no code
// with the writer in ca/profile, and compares every field with what was
// intended: serial, names, key, validity, identifiers, usages, and which
// extensions are critical. A test flips each bit of a certificate and shows
// that no flip passes. The stricter and slower RFC 5280 set of zlint stands in
// ca/lint/zlint.
//
// The package keeps no state.
package lint

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/hallmark-ca/hallmark/ca/profile"
)

const tagURI = cbasn1.Tag(6 | 0x80) // RFC 5280 section 4.2.1.6

// placeholder stands where the signature will, so that the standard parser
// takes the bytes for a certificate.
var placeholder = []byte{0}

// Check parses tbs and refuses it unless it says exactly what want says. The
// error lists all differences. sig is the algorithm the issuer signs with.
func Check(tbs []byte, want *profile.Certificate, sig x509.SignatureAlgorithm) error {
	der, err := profile.Assemble(tbs, want.Algorithm, placeholder)
	if err != nil {
		return err
	}
	got, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("checking to-be-signed certificate: %w", err)
	}
	var d differences
	d.expect(got.Version == 3, "version")
	d.expect(got.SignatureAlgorithm == sig, "signature algorithm")
	d.expect(bytes.Equal(got.RawTBSCertificate, tbs) && nothingMore(tbs), "list of fields")
	d.expect(got.SerialNumber.Cmp(want.Serial) == 0 && got.SerialNumber.Sign() > 0 && got.SerialNumber.BitLen() <= 159, "serial number")
	d.expect(bytes.Equal(got.RawIssuer, want.Issuer), "issuer")
	d.expect(bytes.Equal(got.RawSubject, want.Subject), "subject")
	d.expect(bytes.Equal(got.RawSubjectPublicKeyInfo, want.Key), "public key")
	d.expect(got.NotBefore.Equal(want.NotBefore) && got.NotAfter.Equal(want.NotAfter), "validity")
	d.expect(got.KeyUsage == want.KeyUsage && shortestKeyUsage(got), "key usage")
	d.expect(sameExtKeyUsage(got, want.ServerAndUser), "extended key usage")
	d.expect(got.BasicConstraintsValid && got.IsCA == want.CA && samePathLen(got, want), "basic constraints")
	d.expect(bytes.Equal(got.SubjectKeyId, want.SubjectKeyID) && len(got.SubjectKeyId) > 0, "subject key identifier")
	d.expect(bytes.Equal(got.AuthorityKeyId, want.AuthorityKeyID), "authority key identifier")
	d.expect(sameURIs(got, want.URIs), "URI names")
	d.expect(slices.Equal(got.DNSNames, want.DNS), "DNS names")
	d.expect(slices.EqualFunc(got.IPAddresses, want.IPs, net.IP.Equal), "IP addresses")
	d.expect(len(got.EmailAddresses) == 0, "email addresses")
	d.checkExtensions(got, want)
	return d.err()
}

// differences collects the fields that are not as they should be.
type differences []string

func (d *differences) expect(ok bool, field string) {
	if !ok {
		*d = append(*d, field)
	}
}

func (d differences) err() error {
	if len(d) == 0 {
		return nil
	}
	errs := make([]error, len(d))
	for i, field := range d {
		errs[i] = fmt.Errorf("%s is not what was intended", field)
	}
	return fmt.Errorf("checking to-be-signed certificate: %w", errors.Join(errs...))
}

// checkExtensions holds the list itself: these extensions, each once, in this
// order, each as critical as it must be.
func (d *differences) checkExtensions(got *x509.Certificate, want *profile.Certificate) {
	type row struct {
		oid      asn1.ObjectIdentifier
		critical bool
	}
	rows := make([]row, 0, 6)
	rows = append(rows, row{profile.OIDKeyUsage, true})
	if want.ServerAndUser {
		rows = append(rows, row{profile.OIDExtKeyUsage, false})
	}
	rows = append(rows, row{profile.OIDBasicConstraints, true}, row{profile.OIDSubjectKeyID, false})
	if len(want.AuthorityKeyID) > 0 {
		rows = append(rows, row{profile.OIDAuthorityKeyID, false})
	}
	if len(want.URIs)+len(want.DNS)+len(want.IPs) > 0 {
		rows = append(rows, row{profile.OIDSubjectAltName, len(want.Subject) == len(profile.EmptyName)})
	}
	if len(got.Extensions) != len(rows) {
		*d = append(*d, "list of extensions")
		return
	}
	for i, ext := range got.Extensions {
		if !ext.Id.Equal(rows[i].oid) || ext.Critical != rows[i].critical {
			d.expect(false, "extension "+rows[i].oid.String())
		}
	}
}

func sameExtKeyUsage(got *x509.Certificate, serverAndUser bool) bool {
	if len(got.UnknownExtKeyUsage) > 0 {
		return false
	}
	if !serverAndUser {
		return len(got.ExtKeyUsage) == 0
	}
	return slices.Equal(got.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth})
}

func samePathLen(got *x509.Certificate, want *profile.Certificate) bool {
	if !want.CA || want.PathLen < 0 {
		return got.MaxPathLen == -1
	}
	return got.MaxPathLen == want.PathLen && (want.PathLen > 0) != got.MaxPathLenZero
}

// extension returns the value of an extension, nothing if there is none.
func extension(got *x509.Certificate, oid asn1.ObjectIdentifier) cryptobyte.String {
	i := slices.IndexFunc(got.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oid) })
	if i < 0 {
		return nil
	}
	return got.Extensions[i].Value
}

// shortestKeyUsage tells whether the usages are written without trailing zero
// bits, as X.690 section 11.2.2 asks for: the parser takes them in any length.
func shortestKeyUsage(got *x509.Certificate) bool {
	value := extension(got, profile.OIDKeyUsage)
	var bitString cryptobyte.String
	return value.ReadASN1(&bitString, cbasn1.BIT_STRING) && len(bitString) == 2 && bits.TrailingZeros8(bitString[1]) == int(bitString[0])
}

// sameURIs compares the names as they are written: a parsed URL hides that.
func sameURIs(got *x509.Certificate, want []string) bool {
	if len(got.URIs) != len(want) {
		return false
	}
	if len(want) == 0 {
		return true
	}
	var names, name cryptobyte.String
	value := extension(got, profile.OIDSubjectAltName)
	if !value.ReadASN1(&names, cbasn1.SEQUENCE) {
		return false
	}
	for !names.Empty() {
		var tag cbasn1.Tag
		if !names.ReadAnyASN1(&name, &tag) {
			return false
		}
		if tag != tagURI {
			continue
		}
		if len(want) == 0 || string(name) != want[0] {
			return false
		}
		want = want[1:]
	}
	return len(want) == 0
}

// nothingMore tells whether the to-be-signed certificate consists of the fields
// that are compared: the parser skips unique identifiers (RFC 5280 section
// 4.1.2.8) without a word.
func nothingMore(tbs []byte) bool {
	var fields cryptobyte.String
	in := cryptobyte.String(tbs)
	return in.ReadASN1(&fields, cbasn1.SEQUENCE) && in.Empty() &&
		fields.SkipASN1(cbasn1.Tag(0).Constructed().ContextSpecific()) &&
		fields.SkipASN1(cbasn1.INTEGER) &&
		fields.SkipASN1(cbasn1.SEQUENCE) && // algorithm
		fields.SkipASN1(cbasn1.SEQUENCE) && // issuer
		fields.SkipASN1(cbasn1.SEQUENCE) && // validity
		fields.SkipASN1(cbasn1.SEQUENCE) && // subject
		fields.SkipASN1(cbasn1.SEQUENCE) && // key
		fields.SkipASN1(cbasn1.Tag(3).Constructed().ContextSpecific()) && fields.Empty()
}
