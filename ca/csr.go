package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384 and SHA-512 of request signatures
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// maxCSR bounds a signing request in PEM, in bytes: one with RSA-4096 has 1,700.
const maxCSR = 16 << 10

var pemBegin = []byte("-----BEGIN CERTIFICATE REQUEST-----")

var (
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidOrganization     = asn1.ObjectIdentifier{2, 5, 4, 10}
)

// requestHashes are the signature algorithms of signing requests that are
// understood, by the contents of their AlgorithmIdentifier.
var requestHashes = map[string]crypto.Hash{
	"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02":             crypto.SHA256, // ecdsa-with-SHA256
	"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03":             crypto.SHA384,
	"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04":             crypto.SHA512,
	"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00": crypto.SHA256, // sha256WithRSAEncryption
	"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00": crypto.SHA384,
	"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\x00": crypto.SHA512,
	"\x06\x03\x2b\x65\x70":                                 crypto.Hash(0), // Ed25519
}

// CheckCSR reads a PKCS #10 request (RFC 2986) in PEM and returns the only
// thing that is taken from it: its public key, with proof that the sender holds
// the private one. It is strict: one PEM block and nothing behind it; the
// subject empty or a single empty organization (as pilot-agent sends it); one
// URI, equal to identity, or none; no other name and no other extension. What
// does not fit is refused, never trimmed.
//
// Errors are [*attest.DenyError] of kind Invalid.
func CheckCSR(csr []byte, identity attest.Identity) (crypto.PublicKey, error) {
	pub, _, err := readCSR(csr, identity.String())
	return pub, err
}

// readCSR is [CheckCSR], and returns the key also as the request has it.
func readCSR(csr []byte, identity string) (crypto.PublicKey, []byte, error) {
	if len(csr) > maxCSR {
		return nil, nil, attest.Deny(attest.RequestTooLarge, "", "signing request of %d bytes, at most %d", len(csr), maxCSR)
	}
	// The decoder skips what it cannot read before a block; we do not.
	if csr = bytes.TrimSpace(csr); !bytes.HasPrefix(csr, pemBegin) || bytes.Count(csr, pemBegin[:len("-----BEGIN")]) != 1 {
		return nil, nil, malformed("not exactly one PEM block CERTIFICATE REQUEST")
	}
	block, rest := pem.Decode(csr)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(block.Headers) > 0 || len(rest) > 0 {
		return nil, nil, malformed("not exactly one PEM block CERTIFICATE REQUEST")
	}
	req, err := parseCSR(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	if req.uris > 1 || (req.uris == 1 && string(req.uri) != identity) {
		return nil, nil, attest.Deny(attest.CSRNameForeign, "", "%d URIs, the first %q", req.uris, attest.Escape(string(req.uri)))
	}
	pub, err := x509.ParsePKIXPublicKey(req.key)
	if err != nil {
		return nil, nil, attest.Deny(attest.CSRKeyRefused, "", "parsing public key: %v", err)
	}
	if err := CheckKey(pub); err != nil {
		return nil, nil, err
	}
	if err := req.verify(pub); err != nil {
		return nil, nil, attest.Deny(attest.CSRSignatureInvalid, "", "%v", err)
	}
	return pub, req.key, nil
}

// CheckKey accepts the keys that a leaf may hold: ECDSA P-256, P-384, P-521,
// RSA of 2048 to 4096 bits with e ≥ 65537, Ed25519.
func CheckKey(pub crypto.PublicKey) error {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return attest.Deny(attest.CSRKeyRefused, "", "ECDSA on a curve other than P-256, P-384, P-521")
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < 2048 || n > 4096 || key.E < 65537 {
			return attest.Deny(attest.CSRKeyRefused, "", "RSA of %d bits with e = %d", n, key.E)
		}
		return nil
	case ed25519.PublicKey:
		if len(key) == ed25519.PublicKeySize {
			return nil
		}
	}
	return attest.Deny(attest.CSRKeyRefused, "", "key of type %T", pub)
}

// request is a parsed signing request. The slices point into its bytes.
type request struct {
	info      []byte // CertificationRequestInfo, what is signed
	key       []byte // SubjectPublicKeyInfo
	algorithm []byte // contents of the signature's AlgorithmIdentifier
	signature []byte
	uri       []byte // the first URI
	uris      int
}

func malformed(what string) error { return attest.Deny(attest.CSRMalformed, "", "%s", what) }

func parseCSR(der []byte) (*request, error) {
	var (
		req                    request
		whole, info, body, sig cryptobyte.String
		algorithm, subject     cryptobyte.String
		spki, attributes       cryptobyte.String
		version                int64
		bits                   asn1.BitString
	)
	in := cryptobyte.String(der)
	if !in.ReadASN1(&whole, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, malformed("not one SEQUENCE")
	}
	sig = whole
	if !sig.ReadASN1Element(&info, cbasn1.SEQUENCE) || !sig.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !sig.ReadASN1BitString(&bits) || !sig.Empty() {
		return nil, malformed("not a CertificationRequest")
	}
	body = info
	if !body.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1Integer(&version) || version != 0 ||
		!body.ReadASN1(&subject, cbasn1.SEQUENCE) || !body.ReadASN1Element(&spki, cbasn1.SEQUENCE) ||
		!body.ReadASN1(&attributes, cbasn1.Tag(0).Constructed().ContextSpecific()) || !body.Empty() {
		return nil, malformed("not a CertificationRequestInfo")
	}
	req.info, req.key, req.algorithm, req.signature = info, spki, algorithm, bits.RightAlign()
	if bits.BitLength%8 != 0 {
		return nil, malformed("signature is not whole octets")
	}
	if err := checkSubject(subject); err != nil {
		return nil, err
	}
	if err := req.readAttributes(attributes); err != nil {
		return nil, err
	}
	return &req, nil
}

// checkSubject accepts an empty Name and pilot-agent's: one RDN with one
// organization of no characters.
func checkSubject(subject cryptobyte.String) error {
	if subject.Empty() {
		return nil
	}
	var rdn, attribute, value cryptobyte.String
	var oid asn1.ObjectIdentifier
	var tag cbasn1.Tag
	if !subject.ReadASN1(&rdn, cbasn1.SET) || !rdn.ReadASN1(&attribute, cbasn1.SEQUENCE) ||
		!attribute.ReadASN1ObjectIdentifier(&oid) || !attribute.ReadAnyASN1(&value, &tag) {
		return malformed("subject cannot be read")
	}
	if !subject.Empty() || !rdn.Empty() || !attribute.Empty() || !oid.Equal(oidOrganization) || !value.Empty() ||
		(tag != cbasn1.PrintableString && tag != cbasn1.UTF8String) {
		return attest.Deny(attest.CSRNameForeign, "", "subject is not empty")
	}
	return nil
}

// readAttributes accepts at most one attribute, the extension request, with at
// most one extension, the subject alternative name.
func (r *request) readAttributes(attributes cryptobyte.String) error {
	if attributes.Empty() {
		return nil
	}
	var attribute, set, extensions, extension, value cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !attributes.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) || !attribute.ReadASN1(&set, cbasn1.SET) || !attribute.Empty() {
		return malformed("attributes cannot be read")
	}
	if !attributes.Empty() || !oid.Equal(oidExtensionRequest) {
		return attest.Deny(attest.CSRExtensionRefused, "", "attribute %s", oid)
	}
	if !set.ReadASN1(&extensions, cbasn1.SEQUENCE) || !set.Empty() {
		return malformed("extension request cannot be read")
	}
	if extensions.Empty() {
		return nil
	}
	if !extensions.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&oid) ||
		!skipCritical(&extension) || !extension.ReadASN1(&value, cbasn1.OCTET_STRING) || !extension.Empty() {
		return malformed("extension cannot be read")
	}
	if !extensions.Empty() || !oid.Equal(profile.OIDSubjectAltName) {
		return attest.Deny(attest.CSRExtensionRefused, "", "extension %s, or more than one", oid)
	}
	return r.readNames(value)
}

// skipCritical reads the criticality of an extension, which a request may set
// or leave out: the certificate's own is decided here.
func skipCritical(extension *cryptobyte.String) bool {
	var critical bool
	return !extension.PeekASN1Tag(cbasn1.BOOLEAN) || extension.ReadASN1Boolean(&critical)
}

func (r *request) readNames(value cryptobyte.String) error {
	const uri = cbasn1.Tag(6 | 0x80)
	var names cryptobyte.String
	if !value.ReadASN1(&names, cbasn1.SEQUENCE) || !value.Empty() || names.Empty() {
		return malformed("subject alternative name cannot be read")
	}
	for !names.Empty() {
		var name cryptobyte.String
		var tag cbasn1.Tag
		if !names.ReadAnyASN1(&name, &tag) {
			return malformed("subject alternative name cannot be read")
		}
		if tag != uri {
			return attest.Deny(attest.CSRNameForeign, "", "a name that is no URI (tag %#x)", uint8(tag))
		}
		if r.uris == 0 {
			r.uri = name
		}
		r.uris++
	}
	return nil
}

var errSignature = errors.New("signature does not verify with the request's own key")

// verify is the proof of possession: the request is signed by the key in it.
func (r *request) verify(pub crypto.PublicKey) error {
	hash, known := requestHashes[string(r.algorithm)]
	if !known {
		return errors.New("signature algorithm is not one of ECDSA or RSA with SHA-256, SHA-384, SHA-512, or Ed25519")
	}
	ok := false
	switch key := pub.(type) {
	case ed25519.PublicKey:
		ok = hash == 0 && ed25519.Verify(key, r.info, r.signature)
	case *ecdsa.PublicKey:
		ok = r.algorithm[1] == 8 && ecdsa.VerifyASN1(key, digest(hash, r.info), r.signature)
	case *rsa.PublicKey:
		ok = r.algorithm[1] == 9 && rsa.VerifyPKCS1v15(key, hash, digest(hash, r.info), r.signature) == nil
	}
	if !ok {
		return errSignature
	}
	return nil
}

func digest(hash crypto.Hash, data []byte) []byte {
	if hash == crypto.SHA256 { // the usual one, with one allocation
		sum := sha256.Sum256(data)
		return sum[:]
	}
	h := hash.New()
	h.Write(data)
	return h.Sum(nil)
}
