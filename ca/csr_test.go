package ca_test

import (
	"bytes"
	"crypto"
	"crypto/dsa" //nolint:staticcheck // a kind that must be refused
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
)

const webURI = "spiffe://cluster.local/ns/shop/sa/web"

func webIdentity(tb testing.TB) attest.Identity {
	tb.Helper()
	id, err := attest.NewIdentity(attesttest.Domain(tb, "cluster.local"), "shop", "web")
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// parts are those of a request, for requests that no library would make.
type parts struct {
	version    int64
	subject    []byte
	key        []byte // SubjectPublicKeyInfo
	attributes []byte // content of the [0]; nil leaves even that out
	behind     []byte // behind the attributes
	algorithm  []byte // AlgorithmIdentifier
	trailing   []byte // behind the whole
}

// build signs a request of a P-256 key with SHA-256, after change.
func build(tb testing.TB, change func(*parts)) []byte {
	tb.Helper()
	key := catest.Key(tb)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		tb.Fatal(err)
	}
	p := parts{subject: []byte{0x30, 0}, key: spki, attributes: []byte{}, algorithm: []byte("\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02")}
	change(&p)
	info := cryptobyte.NewBuilder(nil)
	info.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(p.version)
		b.AddBytes(p.subject)
		b.AddBytes(p.key)
		if p.attributes != nil {
			b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(p.attributes) })
		}
		b.AddBytes(p.behind)
	})
	sum := sha256.Sum256(info.BytesOrPanic())
	signature, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		tb.Fatal(err)
	}
	whole := cryptobyte.NewBuilder(nil)
	whole.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info.BytesOrPanic())
		b.AddBytes(p.algorithm)
		b.AddASN1BitString(signature)
	})
	return asPEM(append(whole.BytesOrPanic(), p.trailing...))
}

func asPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// marshal is for values that cannot fail.
func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// attribute is one attribute of a request.
func attribute(tb testing.TB, oid asn1.ObjectIdentifier, values ...any) []byte {
	tb.Helper()
	var raw []asn1.RawValue
	for _, v := range values {
		raw = append(raw, asn1.RawValue{FullBytes: marshal(tb, v)})
	}
	return marshal(tb, struct {
		ID     asn1.ObjectIdentifier
		Values []asn1.RawValue `asn1:"set"`
	}{oid, raw})
}

func san(uris ...string) pkix.Extension {
	var names []asn1.RawValue
	for _, uri := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)})
	}
	value, err := asn1.Marshal(names)
	if err != nil {
		panic(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}
}

func withExtensions(extensions ...pkix.Extension) *x509.CertificateRequest {
	return &x509.CertificateRequest{ExtraExtensions: extensions}
}

var (
	oidExtensions = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidChallenge  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	basicCA       = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}
	basicLeaf     = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0}}
	unknownExt    = pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: []byte{5, 0}}
)

// refused are requests that no caller gets a certificate for, by reason.
func refused(tb testing.TB) map[string]struct {
	csr  []byte
	want attest.Reason
} {
	tb.Helper()
	key := catest.Key(tb)
	uri, err := url.Parse(webURI)
	if err != nil {
		tb.Fatal(err)
	}
	from := func(template *x509.CertificateRequest) []byte { return catest.CSRFrom(tb, key, template) }
	good := from(withExtensions(san(webURI)))
	block, _ := pem.Decode(good)
	der := block.Bytes
	flip := func(at int) []byte {
		bad := bytes.Clone(der)
		bad[at] ^= 1
		return asPEM(bad)
	}
	rsa3 := *catest.RSA(tb, 2048)
	rsa3.E = 3
	exponent3, err := x509.MarshalPKIXPublicKey(&rsa3.PublicKey)
	if err != nil {
		tb.Fatal(err)
	}
	other, err := x509.MarshalPKIXPublicKey(catest.Key(tb).Public())
	if err != nil {
		tb.Fatal(err)
	}
	type row = struct {
		csr  []byte
		want attest.Reason
	}
	rows := map[string]row{
		"DNS name":                  {from(&x509.CertificateRequest{DNSNames: []string{"web.shop"}}), attest.CSRNameForeign},
		"DNS beside the URI":        {from(&x509.CertificateRequest{DNSNames: []string{"web.shop"}, URIs: []*url.URL{uri}}), attest.CSRNameForeign},
		"IP address":                {from(&x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}), attest.CSRNameForeign},
		"email address":             {from(&x509.CertificateRequest{EmailAddresses: []string{"web@shop.example"}}), attest.CSRNameForeign},
		"two URIs":                  {from(withExtensions(san(webURI, "spiffe://cluster.local/ns/shop/sa/db"))), attest.CSRNameForeign},
		"the URI twice":             {from(withExtensions(san(webURI, webURI))), attest.CSRNameForeign},
		"another's URI":             {from(withExtensions(san("spiffe://cluster.local/ns/shop/sa/db"))), attest.CSRNameForeign},
		"the URI, escaped":          {from(withExtensions(san("spiffe://cluster.local/ns/shop/sa/%77eb"))), attest.CSRNameForeign},
		"the URI in capitals":       {from(withExtensions(san("SPIFFE://cluster.local/ns/shop/sa/web"))), attest.CSRNameForeign},
		"the URI and a NUL":         {from(withExtensions(san(webURI + "\x00"))), attest.CSRNameForeign},
		"common name":               {from(&x509.CertificateRequest{Subject: pkix.Name{CommonName: "web"}}), attest.CSRNameForeign},
		"organization":              {from(&x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"shop"}}}), attest.CSRNameForeign},
		"two empty organizations":   {from(&x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"", ""}}}), attest.CSRNameForeign},
		"empty organizational unit": {from(&x509.CertificateRequest{Subject: pkix.Name{OrganizationalUnit: []string{""}}}), attest.CSRNameForeign},
		"CA:TRUE":                   {from(withExtensions(basicCA)), attest.CSRExtensionRefused},
		"CA:TRUE and the URI":       {from(withExtensions(san(webURI), basicCA)), attest.CSRExtensionRefused},
		"CA:FALSE":                  {from(withExtensions(basicLeaf)), attest.CSRExtensionRefused},
		"unknown extension":         {from(withExtensions(unknownExt)), attest.CSRExtensionRefused},
		"two names extensions": {build(tb, func(p *parts) {
			p.attributes = attribute(tb, oidExtensions, []pkix.Extension{san(webURI), san(webURI)})
		}), attest.CSRExtensionRefused},
		"challenge password": {build(tb, func(p *parts) { p.attributes = attribute(tb, oidChallenge, "secret") }), attest.CSRExtensionRefused},
		"two attributes": {build(tb, func(p *parts) {
			one := attribute(tb, oidExtensions, []pkix.Extension{san(webURI)})
			p.attributes = append(bytes.Clone(one), one...)
		}), attest.CSRExtensionRefused},
		"two values of an attribute": {build(tb, func(p *parts) {
			p.attributes = attribute(tb, oidExtensions, []pkix.Extension{san(webURI)}, []pkix.Extension{basicCA})
		}), attest.CSRMalformed},
		"no value of an attribute": {build(tb, func(p *parts) { p.attributes = attribute(tb, oidExtensions) }), attest.CSRMalformed},
		"no attributes field":      {build(tb, func(p *parts) { p.attributes = nil }), attest.CSRMalformed},
		"field behind attributes":  {build(tb, func(p *parts) { p.behind = []byte{5, 0} }), attest.CSRMalformed},
		"version 1":                {build(tb, func(p *parts) { p.version = 1 }), attest.CSRMalformed},
		"names without a name":     {from(withExtensions(san())), attest.CSRMalformed},
		"P-224":                    {catest.CSRFrom(tb, catest.Curve(tb, elliptic.P224()), &x509.CertificateRequest{}), attest.CSRKeyRefused},
		"RSA-1024":                 {catest.CSRFrom(tb, catest.RSA(tb, 1024), &x509.CertificateRequest{}), attest.CSRKeyRefused},
		"RSA with e = 3":           {build(tb, func(p *parts) { p.key = exponent3 }), attest.CSRKeyRefused},
		"key cut short":            {build(tb, func(p *parts) { p.key = []byte{0x30, 0} }), attest.CSRKeyRefused},
		"another key":              {build(tb, func(p *parts) { p.key = other }), attest.CSRSignatureInvalid},
		"bad signature":            {flip(len(der) - 1), attest.CSRSignatureInvalid},
		"ECDSA with SHA-1":         {build(tb, func(p *parts) { p.algorithm = []byte("\x30\x09\x06\x07\x2a\x86\x48\xce\x3d\x04\x01") }), attest.CSRSignatureInvalid},
		"algorithm of another kind": {build(tb, func(p *parts) {
			p.algorithm = []byte("\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00")
		}), attest.CSRSignatureInvalid},
		"algorithm without a hash":  {build(tb, func(p *parts) { p.algorithm = []byte("\x30\x05\x06\x03\x2b\x65\x70") }), attest.CSRSignatureInvalid},
		"trailing byte in DER":      {build(tb, func(p *parts) { p.trailing = []byte{0} }), attest.CSRMalformed},
		"request behind a request":  {append(bytes.Clone(good), good...), attest.CSRMalformed},
		"text behind the block":     {append(bytes.Clone(good), "more"...), attest.CSRMalformed},
		"text before the block":     {append([]byte("more\n"), good...), attest.CSRMalformed},
		"header in the block":       {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Headers: map[string]string{"A": "b"}, Bytes: der}), attest.CSRMalformed},
		"another kind of block":     {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), attest.CSRMalformed},
		"Microsoft's kind of block": {pem.EncodeToMemory(&pem.Block{Type: "NEW CERTIFICATE REQUEST", Bytes: der}), attest.CSRMalformed},
		"DER without PEM":           {der, attest.CSRMalformed},
		"nothing":                   {[]byte{}, attest.CSRMalformed},
		"an empty block":            {asPEM(nil), attest.CSRMalformed},
		"garbage":                   {bytes.Repeat([]byte{0xff}, 1000), attest.CSRMalformed},
		"too large":                 {append(bytes.Repeat([]byte{'\n'}, 17<<10), good...), attest.RequestTooLarge},
	}
	for n := range der { // cut short anywhere
		if n%16 == 0 {
			rows["cut at "+big.NewInt(int64(n)).String()] = row{asPEM(der[:n]), attest.CSRMalformed}
		}
	}
	return rows
}

func TestRefusedRequests(t *testing.T) {
	identity := webIdentity(t)
	seen := map[attest.Reason]bool{}
	for name, tt := range refused(t) {
		pub, err := ca.CheckCSR(tt.csr, identity)
		if err == nil || pub != nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if d := attest.DenialOf(err); d.Reason != tt.want {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
		seen[tt.want] = true
	}
	for _, reason := range []attest.Reason{attest.CSRNameForeign, attest.CSRExtensionRefused, attest.CSRKeyRefused, attest.CSRMalformed, attest.CSRSignatureInvalid, attest.RequestTooLarge} {
		if !seen[reason] {
			t.Errorf("no request is refused for %s", reason)
		}
	}
}

// accepted are the forms that clients send, and no others are needed.
func accepted(tb testing.TB) map[string]struct {
	csr []byte
	key crypto.PublicKey
} {
	tb.Helper()
	identity := webIdentity(tb)
	out := map[string]struct {
		csr []byte
		key crypto.PublicKey
	}{}
	for _, k := range catest.LeafKeys(tb) {
		pub := k.Key.Public()
		out[k.Name+" of ztunnel"] = struct {
			csr []byte
			key crypto.PublicKey
		}{catest.CSR(tb, k.Key, identity), pub}
		out[k.Name+" of pilot-agent"] = struct {
			csr []byte
			key crypto.PublicKey
		}{catest.PilotCSR(tb, k.Key, identity), pub}
		out[k.Name+" without a name"] = struct {
			csr []byte
			key crypto.PublicKey
		}{catest.CSR(tb, k.Key, attest.Identity{}), pub}
	}
	key := catest.Key(tb)
	lax := san(webURI)
	lax.Critical = false
	out["SAN not critical"] = struct {
		csr []byte
		key crypto.PublicKey
	}{catest.CSRFrom(tb, key, withExtensions(lax)), key.Public()}
	text := catest.CSR(tb, key, identity)
	out["lines of Windows"] = struct {
		csr []byte
		key crypto.PublicKey
	}{[]byte("\r\n" + strings.ReplaceAll(string(text), "\n", "\r\n") + "\r\n"), key.Public()}
	return out
}

func TestAcceptedRequests(t *testing.T) {
	identity := webIdentity(t)
	for name, tt := range accepted(t) {
		pub, err := ca.CheckCSR(tt.csr, identity)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !tt.key.(interface{ Equal(crypto.PublicKey) bool }).Equal(pub) {
			t.Errorf("%s: another key came out", name)
		}
	}
}

func TestKeysRefused(t *testing.T) {
	short := catest.RSA(t, 2048).PublicKey
	short.E = 65535
	for name, key := range map[string]crypto.PublicKey{
		"none":            nil,
		"P-224":           catest.Curve(t, elliptic.P224()).Public(),
		"curve by hand":   &ecdsa.PublicKey{Curve: &elliptic.CurveParams{Name: "P-256", BitSize: 256}, X: big.NewInt(1), Y: big.NewInt(1)}, //nolint:staticcheck // no other way makes one that is wrong
		"short Ed25519":   ed25519.PublicKey("short"),
		"RSA-1024":        catest.RSA(t, 1024).Public(),
		"RSA, e = 65535":  &short,
		"RSA of 4097 bit": &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 4096), E: 65537},
		"DSA":             &dsa.PublicKey{},
	} {
		if err := ca.CheckKey(key); err == nil || attest.DenialOf(err).Reason != attest.CSRKeyRefused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzCSR holds our reader against the standard one: what ours accepts, that
// one accepts too, and they agree on all that is taken or checked.
func FuzzCSR(f *testing.F) {
	for _, tt := range accepted(f) {
		if block, _ := pem.Decode(tt.csr); block != nil {
			f.Add(block.Bytes)
		}
	}
	for _, tt := range refused(f) {
		if block, _ := pem.Decode(tt.csr); block != nil {
			f.Add(block.Bytes)
		}
	}
	identity := webIdentity(f)
	f.Fuzz(func(t *testing.T, der []byte) {
		pub, err := ca.CheckCSR(asPEM(der), identity)
		if err != nil && attest.DenialOf(err).Reason.Kind() != attest.KindInvalid {
			t.Errorf("refused with %v, which is not about the request", err)
		}
		spki, uris, uri, parseErr := ca.ParseCSR(der)
		if parseErr != nil {
			if err == nil {
				t.Fatalf("accepted, and does not parse: %v", parseErr)
			}
			return
		}
		key, keyErr := x509.ParsePKIXPublicKey(spki)
		if keyErr != nil || ca.CheckKey(key) != nil || uris > 1 || uris == 1 && uri != identity.String() {
			if err == nil {
				t.Fatal("accepted, and should not be")
			}
			return
		}
		agree(t, der, key, uris)
		if err == nil && !pub.(interface{ Equal(crypto.PublicKey) bool }).Equal(key) {
			t.Error("another key came out than stands in it")
		}
	})
}

// agree compares what the standard library reads.
func agree(t *testing.T, der []byte, key crypto.PublicKey, uris int) {
	t.Helper()
	std, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatalf("the standard parser refuses what ours takes: %v", err)
	}
	if !key.(interface{ Equal(crypto.PublicKey) bool }).Equal(std.PublicKey) {
		t.Error("the standard parser reads another key")
	}
	if len(std.URIs) != uris || uris == 1 && std.URIs[0].String() != webURI {
		t.Errorf("the standard parser reads the URIs %v", std.URIs)
	}
	if len(std.DNSNames)+len(std.IPAddresses)+len(std.EmailAddresses) > 0 {
		t.Error("the standard parser reads other names")
	}
	if len(std.Extensions) > 1 || len(std.Extensions) == 1 && !std.Extensions[0].Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
		t.Errorf("the standard parser reads the extensions %v", std.Extensions)
	}
	for _, name := range std.Subject.Names {
		if !name.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 10}) || name.Value != "" {
			t.Errorf("the standard parser reads the subject %v", std.Subject)
		}
	}
	// Whoever takes the signature, takes it over the same bytes.
	_, ours := ca.CheckCSR(asPEM(der), webIdentity(t))
	if theirs := std.CheckSignature(); (ours == nil) != (theirs == nil) {
		t.Errorf("signature: ours says %v, the standard library %v", ours, theirs)
	}
}
