package sigstore_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/sigstore"
)

const (
	signType   = "https://sigstore.dev/cosign/sign/v1"
	inToto     = "application/vnd.in-toto+json"
	bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	sigNote    = "dev.cosignproject.cosign/signature"
)

var (
	imageDigest = "sha256:" + strings.Repeat("0a", 32)
	otherDigest = "sha256:" + strings.Repeat("0b", 32)
)

// signer signs as cosign does, with any key.
type signer struct {
	t      testing.TB
	sign   signature.Signer
	public []byte // PEM
}

func newSigner(t testing.TB, key crypto.Signer, opts ...signature.LoadOption) *signer {
	t.Helper()
	s, err := signature.LoadSignerWithOpts(key, opts...)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	return &signer{t, s, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}
}

func p256(t testing.TB) *signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return newSigner(t, k)
}

func (s *signer) key(hash string) *sigstore.Key {
	s.t.Helper()
	k, err := sigstore.ParseKey(s.public, hash)
	must(s.t, err)
	return k
}

func (s *signer) over(message []byte) string {
	s.t.Helper()
	sig, err := s.sign.SignMessage(bytes.NewReader(message))
	must(s.t, err)
	return base64.StdEncoding.EncodeToString(sig)
}

func statement(digest string) string {
	return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q},"annotations":{}}],"predicateType":%q,"predicate":{}}`,
		strings.TrimPrefix(digest, "sha256:"), signType)
}

// bundle is a signed bundle as a tree, for tests to change.
func (s *signer) bundle(payload string) map[string]any {
	return map[string]any{
		"mediaType":            bundleType,
		"verificationMaterial": map[string]any{"publicKey": map[string]any{"hint": ""}},
		"dsseEnvelope": map[string]any{
			"payload": base64.StdEncoding.EncodeToString([]byte(payload)), "payloadType": inToto,
			"signatures": []any{map[string]any{"sig": s.over(dsse.PAE(inToto, []byte(payload)))}},
		},
	}
}

func asBundle(t testing.TB, tree any) evidence.Signature {
	t.Helper()
	b, err := json.Marshal(tree)
	must(t, err)
	return evidence.Signature{Format: evidence.FormatBundle, Source: "test", Bundle: b}
}

func simple(digest string) string {
	return fmt.Sprintf(`{"critical":{"identity":{"docker-reference":"registry.example/app"},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, digest)
}

func (s *signer) legacy(payload string) evidence.Signature {
	return evidence.Signature{
		Format: evidence.FormatLegacy, Source: "test", Payload: []byte(payload),
		Annotations: map[string]string{sigNote: s.over([]byte(payload))},
	}
}

// cosigned is what cosign 3.1.3 really wrote.
func cosigned(t testing.TB) (key *sigstore.Key, bundle, legacy evidence.Signature, bundleOf, legacyOf string) {
	t.Helper()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", "cosign", name))
		must(t, err)
		return b
	}
	key, err := sigstore.ParseKey(read("key.pub"), "")
	must(t, err)
	bundle = evidence.Signature{Format: evidence.FormatBundle, Source: "cosign", Bundle: read("bundle.json")}
	legacy = evidence.Signature{
		Format: evidence.FormatLegacy, Source: "cosign", Payload: read("payload.json"),
		Annotations: map[string]string{sigNote: strings.TrimSpace(string(read("signature")))},
	}
	return key, bundle, legacy,
		"sha256:55f951e5f2eb55a7f80d77dd9a38ebdf1023e02ff702347040607564583d1bbf",
		"sha256:0e531bde397f10f50adcd9eea88f18a4fc567beb5df2be6bac5fbe43258481f4"
}

func TestCosignsOwn(t *testing.T) {
	t.Parallel()
	key, bundle, legacy, bundleOf, legacyOf := cosigned(t)
	must(t, sigstore.Verify(bundle, bundleOf, key))
	must(t, sigstore.Verify(legacy, legacyOf, key))
	refused(t, sigstore.Verify(bundle, legacyOf, key), "not about "+legacyOf)
	refused(t, sigstore.Verify(legacy, bundleOf, key), "not about "+bundleOf)
	refused(t, sigstore.Verify(bundle, bundleOf, p256(t).key("")), "does not verify with key")
	refused(t, sigstore.Verify(bundle, bundleOf, p256(t).key("")), "another key")
	refused(t, sigstore.Verify(legacy, legacyOf, p256(t).key("")), "does not verify with key")
}

func TestKeyKinds(t *testing.T) {
	t.Parallel()
	ec := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		must(t, err)
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	for name, k := range map[string]struct {
		key  crypto.Signer
		opts []signature.LoadOption
		hash string
	}{
		"P-256":            {ec(elliptic.P256()), nil, ""},
		"P-256 and sha512": {ec(elliptic.P256()), []signature.LoadOption{options.WithHash(crypto.SHA512)}, "sha512"},
		"P-384":            {ec(elliptic.P384()), []signature.LoadOption{options.WithHash(crypto.SHA384)}, "sha384"},
		"P-384 and sha256": {ec(elliptic.P384()), nil, "sha256"},
		"P-521":            {ec(elliptic.P521()), []signature.LoadOption{options.WithHash(crypto.SHA512)}, "sha512"},
		"P-521 and sha224": {ec(elliptic.P521()), []signature.LoadOption{options.WithHash(crypto.SHA224)}, "sha224"},
		"RSA":              {rsaKey, nil, "sha256"},
		"RSA and sha384":   {rsaKey, []signature.LoadOption{options.WithHash(crypto.SHA384)}, "sha384"},
		"Ed25519":          {ed, nil, ""},
		"Ed25519ph":        {ed, []signature.LoadOption{options.WithED25519ph()}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSigner(t, k.key, k.opts...)
			key := s.key(k.hash)
			bundle, legacy := asBundle(t, s.bundle(statement(imageDigest))), s.legacy(simple(imageDigest))
			must(t, sigstore.Verify(bundle, imageDigest, key))
			must(t, sigstore.Verify(legacy, imageDigest, key))
			refused(t, sigstore.Verify(bundle, otherDigest, key), "not about "+otherDigest)
			refused(t, sigstore.Verify(legacy, otherDigest, key), "not about "+otherDigest)
			if _, own := k.key.(ed25519.PrivateKey); !own {
				other := "sha512"
				if k.hash == other {
					other = "sha256"
				}
				refused(t, sigstore.Verify(bundle, imageDigest, s.key(other)), "does not verify")
			}
			der, err := x509.MarshalPKIXPublicKey(k.key.Public())
			must(t, err)
			sum := sha256.Sum256(der)
			if want := "sha256:" + hex.EncodeToString(sum[:]); key.Signer() != want {
				t.Errorf("the signer is %s, want %s", key.Signer(), want)
			}
		})
	}
}

// A P-384 key that cosign used, under a policy that says nothing of the hash:
// refused as upstream does, and the text says how to mend it.
func TestHashIsNamedWhereItMayBeWrong(t *testing.T) {
	t.Parallel()
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	s := newSigner(t, k, options.WithHash(crypto.SHA384))
	refused(t, sigstore.Verify(s.legacy(simple(imageDigest)), imageDigest, s.key("")), "see hashAlgorithm")
}

func TestBundlesRefused(t *testing.T) {
	t.Parallel()
	s := p256(t)
	envelope := func(tree map[string]any) map[string]any { return tree["dsseEnvelope"].(map[string]any) }
	changed := func(change func(map[string]any)) evidence.Signature {
		tree := s.bundle(statement(imageDigest))
		change(tree)
		return asBundle(t, tree)
	}
	said := func(payload string) evidence.Signature { return asBundle(t, s.bundle(payload)) }
	replaced := func(from, to string) evidence.Signature {
		payload := statement(imageDigest)
		if !strings.Contains(payload, from) {
			t.Fatalf("the statement has no %s", from)
		}
		return said(strings.Replace(payload, from, to, 1))
	}
	raw := func(b []byte) evidence.Signature {
		return evidence.Signature{Format: evidence.FormatBundle, Source: "test", Bundle: b}
	}
	good := said(statement(imageDigest)).Bundle
	digests := fmt.Sprintf(`[{"digest":{"sha256":%q},"annotations":{}}]`, strings.TrimPrefix(imageDigest, "sha256:"))
	for name, c := range map[string]struct {
		sig  evidence.Signature
		want string
	}{
		"no signature": {changed(func(m map[string]any) { envelope(m)["signatures"] = []any{} }), "0 signatures"},
		"two signatures": {changed(func(m map[string]any) {
			e := envelope(m)
			one := e["signatures"].([]any)[0]
			e["signatures"] = []any{one, one}
		}), "2 signatures"},
		"null signature":  {changed(func(m map[string]any) { envelope(m)["signatures"] = []any{nil} }), "cannot be read"},
		"empty signature": {changed(func(m map[string]any) { envelope(m)["signatures"] = []any{map[string]any{"sig": ""}} }), "0 bytes"},
		"long signature": {changed(func(m map[string]any) {
			envelope(m)["signatures"] = []any{map[string]any{"sig": strings.Repeat("A", 8192)}}
		}), "bytes"},
		"garbled signature":  {changed(func(m map[string]any) { envelope(m)["signatures"] = []any{map[string]any{"sig": "AAAA"}} }), "does not verify"},
		"other payload type": {changed(func(m map[string]any) { envelope(m)["payloadType"] = "text/plain" }), `"text/plain"`},
		"other payload": {changed(func(m map[string]any) {
			envelope(m)["payload"] = base64.StdEncoding.EncodeToString([]byte(statement(imageDigest) + " "))
		}), "does not verify"},
		"media type unknown": {changed(func(m map[string]any) { m["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.4+json" }), "v0.1 to v0.3"},
		"media type missing": {changed(func(m map[string]any) { delete(m, "mediaType") }), "v0.1 to v0.3"},
		"no material":        {changed(func(m map[string]any) { delete(m, "verificationMaterial") }), "does not say what verifies it"},
		"unknown member":     {changed(func(m map[string]any) { m["surprise"] = 1 }), "cannot be read"},
		"a certificate": {changed(func(m map[string]any) {
			m["verificationMaterial"] = map[string]any{"certificate": map[string]any{"rawBytes": "AAAA"}}
		}), "made with a certificate"},
		"a chain": {changed(func(m map[string]any) {
			m["verificationMaterial"] = map[string]any{"x509CertificateChain": map[string]any{"certificates": []any{map[string]any{"rawBytes": "AAAA"}}}}
		}), "made with a certificate"},
		"a chain, older": {changed(func(m map[string]any) {
			m["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1"
			m["verificationMaterial"] = map[string]any{"x509CertificateChain": map[string]any{"certificates": []any{map[string]any{"rawBytes": "AAAA"}}}}
		}), "made with a certificate"},
		"key and certificate": {changed(func(m map[string]any) {
			m["verificationMaterial"].(map[string]any)["certificate"] = map[string]any{"rawBytes": "AAAA"}
		}), "cannot be read"},
		"a message signature": {changed(func(m map[string]any) {
			delete(m, "dsseEnvelope")
			m["messageSignature"] = map[string]any{"messageDigest": map[string]any{"algorithm": "SHA2_256", "digest": "AAAA"}, "signature": "AAAA"}
		}), "bare message signature"},
		"no content":                    {changed(func(m map[string]any) { delete(m, "dsseEnvelope") }), "bare message signature"},
		"attestation":                   {replaced(signType, "https://spdx.dev/Document"), "an attestation, not a signature"},
		"predicate look-alike":          {replaced(signType, signType+"/"), "an attestation, not a signature"},
		"predicate missing":             {replaced(`"predicateType":"`+signType+`",`, ""), "an attestation, not a signature"},
		"statement type":                {replaced("Statement/v1", "Statement/v2"), "in-toto statement"},
		"another digest":                {said(statement(otherDigest)), "not about " + imageDigest},
		"upper-case digest":             {said(statement(strings.ToUpper(imageDigest[7:]))), "not about"},
		"digest of another algorithm":   {replaced(`"sha256":`, `"sha512":`), "not about"},
		"null subject":                  {replaced(digests, "[null,"+digests[1:]), "without a digest"},
		"null subjects":                 {replaced(digests, "null"), "0 subjects"},
		"no subjects":                   {replaced(digests, "[]"), "0 subjects"},
		"subject as an object":          {replaced(digests, "{}"), "cannot be read"},
		"member twice in the statement": {replaced(`"predicate":{}`, `"predicateType":"`+signType+`"`), "ambiguous"},
		"digest twice":                  {replaced(`"digest":{`, `"digest":{"sha256":"aa",`), "ambiguous"},
		"member of other case":          {replaced(`"subject"`, `"Subject"`), "0 subjects"},
		"deep member twice":             {replaced(`"predicate":{}`, `"predicate":{"a":{"b":1,"b":2}}`), "ambiguous"},
		"statement is a list":           {said("[]"), "no JSON object"},
		"statement is null":             {said("null"), "is null"},
		"statement is no UTF-8":         {replaced(`"annotations":{}`, "\"annotations\":{\"a\":\"\xff\"}"), "UTF-8"},
		"member twice":                  {raw(append([]byte(`{"mediaType":"`+bundleType+`",`), good[1:]...)), "ambiguous"},
		"member twice, two spellings":   {raw(append([]byte(`{"media_type":"`+bundleType+`",`), good[1:]...)), "cannot be read"},
		"trailing data":                 {raw(append(bytes.Clone(good), "{}"...)), "no JSON object"},
		"empty":                         {raw(nil), "no JSON object"},
		"null":                          {raw([]byte("null")), "is null"},
		"too large":                     {raw(append(bytes.Clone(good), bytes.Repeat([]byte(" "), evidence.MaxBundle)...)), "at most"},
		"deeply nested":                 {raw(append([]byte(`{"a":`), bytes.Repeat([]byte("["), 500_000)...)), "no JSON object"},
		"format unknown":                {evidence.Signature{Format: "other"}, "not known"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused(t, sigstore.Verify(c.sig, imageDigest, s.key("")), c.want)
		})
	}
	must(t, sigstore.Verify(raw(good), imageDigest, s.key("")))
	must(t, sigstore.Verify(replaced(digests, `[{"digest":{"sha256":"aa"}},`+digests[1:]), imageDigest, s.key("")))
	must(t, sigstore.Verify(replaced("Statement/v1", "Statement/v0.1"), imageDigest, s.key("")))
	for _, version := range []string{"0.1", "0.2", "0.3"} {
		must(t, sigstore.Verify(changed(func(m map[string]any) { m["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=" + version }), imageDigest, s.key("")))
	}
	for _, digest := range []string{"", "sha256:", "sha512:" + strings.Repeat("0a", 64), strings.ToUpper(imageDigest), imageDigest + "\n", imageDigest[7:]} {
		refused(t, sigstore.Verify(raw(good), digest, s.key("")), "no sha256 digest")
	}
}

func TestLegacyRefused(t *testing.T) {
	t.Parallel()
	s := p256(t)
	noted := func(notes map[string]string) evidence.Signature {
		sig := s.legacy(simple(imageDigest))
		for k, v := range notes {
			sig.Annotations[k] = v
		}
		return sig
	}
	replaced := func(from, to string) evidence.Signature {
		return s.legacy(strings.Replace(simple(imageDigest), from, to, 1))
	}
	unsigned := s.legacy(simple(imageDigest))
	unsigned.Payload = []byte(simple(otherDigest))
	for name, c := range map[string]struct {
		sig  evidence.Signature
		want string
	}{
		"another digest":       {s.legacy(simple(otherDigest)), "not about " + imageDigest},
		"payload changed":      {evidence.Signature{Format: evidence.FormatLegacy, Payload: append([]byte(simple(imageDigest)), ' '), Annotations: unsigned.Annotations}, "does not verify"},
		"other type":           {replaced("cosign container image signature", "atomic container signature"), `"atomic container signature"`},
		"null critical":        {s.legacy(`{"critical":null}`), "names no image"},
		"null image":           {s.legacy(`{"critical":{"image":null,"type":"cosign container image signature"}}`), "names no image"},
		"member twice":         {replaced(`"image":`, `"image":{"docker-manifest-digest":"x"},"image":`), "ambiguous"},
		"member of two cases":  {replaced(`"docker-manifest-digest"`, `"Docker-Manifest-Digest"`), "not about"},
		"no JSON":              {s.legacy("hello"), "no JSON object"},
		"trailing data":        {s.legacy(simple(imageDigest) + "x"), "no JSON object"},
		"empty":                {evidence.Signature{Format: evidence.FormatLegacy}, "0 bytes"},
		"too large":            {s.legacy(simple(imageDigest) + strings.Repeat(" ", evidence.MaxPayload)), "allowed"},
		"no annotation":        {evidence.Signature{Format: evidence.FormatLegacy, Payload: []byte(simple(imageDigest))}, "no annotation"},
		"annotation garbled":   {noted(map[string]string{sigNote: "***"}), "no base64"},
		"annotation long":      {noted(map[string]string{sigNote: strings.Repeat("AAAA", 2000)}), "bytes"},
		"a certificate":        {noted(map[string]string{"dev.sigstore.cosign/certificate": "-----BEGIN CERTIFICATE-----"}), "made with a certificate"},
		"a key as certificate": {noted(map[string]string{"dev.sigstore.cosign/certificate": string(s.public)}), "made with a certificate"},
		"a chain":              {noted(map[string]string{"dev.sigstore.cosign/chain": "x"}), "made with a certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused(t, sigstore.Verify(c.sig, imageDigest, s.key("")), c.want)
		})
	}
	must(t, sigstore.Verify(noted(map[string]string{"dev.sigstore.cosign/bundle": "{}"}), imageDigest, s.key("")))
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	encode := func(kind string, public any) []byte {
		der, err := x509.MarshalPKIXPublicKey(public)
		must(t, err)
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	must(t, err)
	good := p256(t).public
	for name, c := range map[string]struct {
		data []byte
		hash string
		want string
	}{
		"empty":            {nil, "", "no PEM"},
		"no PEM":           {[]byte("ssh-ed25519 AAAA"), "", "no PEM"},
		"small RSA":        {encode("PUBLIC KEY", &small.PublicKey), "", "1024 bits"},
		"P-224":            {encode("PUBLIC KEY", &p224.PublicKey), "", "P-224"},
		"two keys":         {append(bytes.Clone(good), good...), "", "more than one"},
		"trailing text":    {append(bytes.Clone(good), "x"...), "", "text behind"},
		"certificate":      {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), "", "a certificate"},
		"private key":      {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), "", `"PRIVATE KEY"`},
		"garbled":          {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")}), "", "reading a public key"},
		"hash sha1":        {good, "sha1", "none of sha224"},
		"hash in capitals": {good, "SHA256", "none of sha224"},
		"too large":        {bytes.Repeat([]byte(" "), 100_000), "", "at most"},
	} {
		_, err := sigstore.ParseKey(c.data, c.hash)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&large.PublicKey)})
	a, err := sigstore.ParseKey(pkcs1, "")
	must(t, err)
	b, err := sigstore.ParseKey(encode("PUBLIC KEY", &large.PublicKey), "")
	must(t, err)
	if a.Signer() != b.Signer() {
		t.Error("one key in two encodings has two names")
	}
}

func refused(t testing.TB, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want an error with %q", err, want)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A panic on the way to a verdict is a signature that does not verify.
func TestVerifyPanics(t *testing.T) {
	t.Parallel()
	_, bundle, legacy, bundleOf, legacyOf := cosigned(t)
	for digest, s := range map[string]evidence.Signature{bundleOf: bundle, legacyOf: legacy} {
		if err := sigstore.Verify(s, digest, nil); err == nil || !strings.Contains(err.Error(), "panic") {
			t.Errorf("%s: %v", s.Format, err)
		}
	}
}
