package sigstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"google.golang.org/protobuf/encoding/protojson"
	kjson "sigs.k8s.io/json"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
)

const (
	// signType is the predicate type of a signature by cosign.
	signType    = "https://sigstore.dev/cosign/sign/v1"
	payloadType = "application/vnd.in-toto+json"
	// simpleType is critical.type of a simple-signing document by cosign.
	simpleType = "cosign container image signature"

	legacyBundleType  = "application/vnd.dev.sigstore.bundle+json;version=0.1"
	bundleTypeBase    = "application/vnd.dev.sigstore.bundle"
	annotationPrefix  = "dev.sigstore.cosign/"
	annotationSig     = "dev.cosignproject.cosign/signature"
	annotationCert    = annotationPrefix + "certificate"
	annotationChain   = annotationPrefix + "chain"
	maxSignatureBytes = 4 << 10 // RSA of 8192 bits makes 1 KiB
	maxSubjects       = 1024
)

// bundleTypes are the bundle versions that are known.
var bundleTypes = []string{
	bundleTypeBase + "+json;version=0.1", bundleTypeBase + "+json;version=0.2", bundleTypeBase + "+json;version=0.3",
	bundleTypeBase + ".v0.3+json",
}

var statementTypes = []string{"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"}

// Verify tells whether sig is a signature by key of the image with that digest
// (sha256:…). The error says what does not hold. A panic over bytes that anybody
// may have pushed is such an error, too: the process holds keys in memory, and
// would meet the same bytes again after a restart.
func Verify(sig evidence.Signature, digest string, key *Key) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("verifying %s: panic: %s", attest.Escape(sig.Source), attest.Escape(fmt.Sprint(p)))
		}
	}()
	if !evidence.ValidDigest(digest) {
		return fmt.Errorf("verifying %s: %q is no sha256 digest", attest.Escape(sig.Source), attest.Escape(digest))
	}
	switch sig.Format {
	case evidence.FormatBundle:
		err = verifyBundle(sig.Bundle, digest, key)
	case evidence.FormatLegacy:
		err = verifyLegacy(sig, digest, key)
	default:
		err = fmt.Errorf("the format %q is not known", attest.Escape(string(sig.Format)))
	}
	if err != nil {
		return fmt.Errorf("verifying %s: %w", attest.Escape(sig.Source), err)
	}
	return nil
}

func verifyBundle(raw []byte, digest string, key *Key) error {
	if len(raw) > evidence.MaxBundle {
		return fmt.Errorf("the bundle has %d bytes, at most %d are allowed", len(raw), evidence.MaxBundle)
	}
	if err := unambiguous(raw); err != nil {
		return fmt.Errorf("the bundle %w", err)
	}
	var b protobundle.Bundle
	if err := protojson.Unmarshal(raw, &b); err != nil {
		return fmt.Errorf("the bundle cannot be read: %s", attest.Escape(err.Error()))
	}
	if !slices.Contains(bundleTypes, b.MediaType) {
		return fmt.Errorf("the bundle is of type %q, which is none of v0.1 to v0.3", attest.Escape(b.MediaType))
	}
	if err := wantKey(b.GetVerificationMaterial()); err != nil {
		return err
	}
	envelope := b.GetDsseEnvelope()
	if envelope == nil {
		// cosign writes these for files (sign-blob), never for images.
		return errors.New("the bundle holds a bare message signature, and an image is signed by a statement in a DSSE envelope")
	}
	if n := len(envelope.GetSignatures()); n != 1 {
		return fmt.Errorf("the envelope has %d signatures, and must have one", n)
	}
	if n := len(envelope.GetSignatures()[0].GetSig()); n == 0 || n > maxSignatureBytes {
		return fmt.Errorf("the envelope's signature has %d bytes", n)
	}
	if envelope.GetPayloadType() != payloadType {
		return fmt.Errorf("the envelope's payload is of type %q, and must be %s", attest.Escape(envelope.GetPayloadType()), payloadType)
	}
	if err := checkStatement(envelope.GetPayload(), digest); err != nil {
		return err
	}
	sum, err := hex.DecodeString(strings.TrimPrefix(digest, "sha256:"))
	if err != nil {
		return fmt.Errorf("reading the digest: %w", err)
	}
	return key.verify(&b, func() verify.PolicyBuilder {
		return verify.NewPolicy(verify.WithArtifactDigest("sha256", sum), verify.WithKey())
	})
}

// wantKey refuses what was made with a certificate: whose key that is, only a
// keyless authority can say.
func wantKey(m *protobundle.VerificationMaterial) error {
	switch m.GetContent().(type) {
	case *protobundle.VerificationMaterial_PublicKey:
		return nil
	case *protobundle.VerificationMaterial_Certificate, *protobundle.VerificationMaterial_X509CertificateChain:
		return errors.New("the bundle was made with a certificate, and the policy names a key")
	default:
		return errors.New("the bundle does not say what verifies it")
	}
}

type statement struct {
	Type          string     `json:"_type"`
	PredicateType string     `json:"predicateType"`
	Subject       []*subject `json:"subject"`
}

type subject struct {
	Digest map[string]string `json:"digest"`
}

// checkStatement wants an in-toto statement that is a signature of digest.
func checkStatement(payload []byte, digest string) error {
	if err := unambiguous(payload); err != nil {
		return fmt.Errorf("the statement %w", err)
	}
	var s statement
	if err := kjson.UnmarshalCaseSensitivePreserveInts(payload, &s); err != nil {
		return fmt.Errorf("the statement cannot be read: %s", attest.Escape(err.Error()))
	}
	if !slices.Contains(statementTypes, s.Type) {
		return fmt.Errorf("the statement is of type %q, and must be an in-toto statement v1 or v0.1", attest.Escape(s.Type))
	}
	if s.PredicateType != signType {
		return fmt.Errorf("the statement's predicateType is %q: an attestation, not a signature (%s)", attest.Escape(s.PredicateType), signType)
	}
	if len(s.Subject) == 0 || len(s.Subject) > maxSubjects {
		return fmt.Errorf("the statement has %d subjects, and must have 1 to %d", len(s.Subject), maxSubjects)
	}
	found := false
	for _, sub := range s.Subject {
		if sub == nil || len(sub.Digest) == 0 {
			return errors.New("the statement has a subject without a digest")
		}
		found = found || "sha256:"+sub.Digest["sha256"] == digest
	}
	if !found {
		return fmt.Errorf("the statement is about %s, not about %s", attest.Escape(s.Subject[0].Digest["sha256"]), digest)
	}
	return nil
}

type simpleSigning struct {
	Critical *struct {
		Type  string `json:"type"`
		Image *struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
	} `json:"critical"`
}

// verifyLegacy checks a simple-signing layer as a bundle v0.1 whose artifact is
// the layer: one way of verification for both formats.
func verifyLegacy(sig evidence.Signature, digest string, key *Key) error {
	if n := len(sig.Payload); n == 0 || n > evidence.MaxPayload {
		return fmt.Errorf("the signed document has %d bytes, 1 to %d are allowed", n, evidence.MaxPayload)
	}
	if sig.Annotations[annotationCert] != "" || sig.Annotations[annotationChain] != "" {
		return errors.New("the signature was made with a certificate, and the policy names a key")
	}
	encoded := sig.Annotations[annotationSig]
	if encoded == "" {
		return fmt.Errorf("the layer has no annotation %s", annotationSig)
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return fmt.Errorf("the annotation %s is no base64: %w", annotationSig, err)
	}
	if n := len(signature); n == 0 || n > maxSignatureBytes {
		return fmt.Errorf("the signature has %d bytes", n)
	}
	if err := checkSimple(sig.Payload, digest); err != nil {
		return err
	}
	sum := sha256.Sum256(sig.Payload)
	b := &protobundle.Bundle{
		MediaType: legacyBundleType,
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{Hint: key.hint}},
		},
		Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum[:]},
			Signature:     signature,
		}},
	}
	return key.verify(b, func() verify.PolicyBuilder {
		return verify.NewPolicy(verify.WithArtifact(bytes.NewReader(sig.Payload)), verify.WithKey())
	})
}

func checkSimple(payload []byte, digest string) error {
	if err := unambiguous(payload); err != nil {
		return fmt.Errorf("the signed document %w", err)
	}
	var s simpleSigning
	if err := kjson.UnmarshalCaseSensitivePreserveInts(payload, &s); err != nil {
		return fmt.Errorf("the signed document cannot be read: %s", attest.Escape(err.Error()))
	}
	if s.Critical == nil || s.Critical.Image == nil {
		return errors.New("the signed document names no image")
	}
	if s.Critical.Type != simpleType {
		return fmt.Errorf("the signed document is of type %q, and must be %q", attest.Escape(s.Critical.Type), simpleType)
	}
	if s.Critical.Image.Digest != digest {
		return fmt.Errorf("the signed document is about %s, not about %s", attest.Escape(s.Critical.Image.Digest), digest)
	}
	return nil
}

// verify hands the bundle to sigstore-go. policy makes a fresh one for each
// try: its artifact is read only once.
func (k *Key) verify(b *protobundle.Bundle, policy func() verify.PolicyBuilder) error {
	entity, err := bundle.NewBundle(b)
	if err != nil {
		return fmt.Errorf("the bundle is refused: %s", attest.Escape(err.Error()))
	}
	for _, v := range k.verifiers {
		if _, err = v.Verify(entity, policy()); err == nil {
			return nil
		}
	}
	if hint := b.GetVerificationMaterial().GetPublicKey().GetHint(); hint != "" && hint != k.hint {
		return fmt.Errorf("the signature does not verify with key %s (%s); it says that it was made by another key, %q", k.signer, k.kind, attest.Escape(hint))
	}
	return fmt.Errorf("the signature does not verify with key %s (%s): %s%s", k.signer, k.kind, attest.Escape(err.Error()), k.mend)
}

// unambiguous refuses JSON that two readers could understand differently: a
// member that stands twice, or bytes that are no UTF-8.
func unambiguous(raw []byte) error {
	if !utf8.Valid(raw) {
		return errors.New("is not UTF-8")
	}
	var v map[string]any
	twice, err := kjson.UnmarshalStrict(raw, &v, kjson.DisallowDuplicateFields)
	if err != nil {
		return fmt.Errorf("is no JSON object: %s", attest.Escape(err.Error()))
	}
	if len(twice) > 0 {
		return fmt.Errorf("is ambiguous: %s", attest.Escape(twice[0].Error()))
	}
	if v == nil {
		return errors.New("is null")
	}
	return nil
}
