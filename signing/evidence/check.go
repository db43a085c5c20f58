package evidence

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"unicode/utf8"

	kjson "sigs.k8s.io/json"

	"github.com/hallmark-ca/hallmark/attest"
)

var (
	digestForm     = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	repositoryForm = regexp.MustCompile(`^[a-z0-9.:\[\]_/-]{1,512}$`)
)

// ValidDigest tells whether s is a digest as this package knows it: SHA-256, in
// lower case.
func ValidDigest(s string) bool { return digestForm.MatchString(s) }

// DigestOf returns the digest of the bytes.
func DigestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Check proves the evidence as far as it can be without keys: every manifest
// hashes to its digest, the subject's own is there, all others are children
// that it lists, and every bound holds. The signatures are not looked into.
func (e *Evidence) Check() error {
	if !repositoryForm.MatchString(e.Subject.Repository) {
		return fmt.Errorf("checking evidence: %q is no repository", attest.Escape(e.Subject.Repository))
	}
	if !ValidDigest(e.Subject.Digest) {
		return fmt.Errorf("checking evidence: %q is no sha256 digest", attest.Escape(e.Subject.Digest))
	}
	if err := e.checkManifests(); err != nil {
		return fmt.Errorf("checking evidence of %s: %w", e.Subject, err)
	}
	if err := e.checkSignatures(); err != nil {
		return fmt.Errorf("checking evidence of %s: %w", e.Subject, err)
	}
	if len(e.Skipped) > MaxSkipped {
		return fmt.Errorf("checking evidence of %s: %d remarks, at most %d are allowed", e.Subject, len(e.Skipped), MaxSkipped)
	}
	return nil
}

func (e *Evidence) checkManifests() error {
	if len(e.Manifests) > MaxManifests {
		return fmt.Errorf("%d manifests, at most %d are allowed", len(e.Manifests), MaxManifests)
	}
	own, ok := e.Manifests[e.Subject.Digest]
	if !ok {
		return errors.New("the subject's own manifest is missing")
	}
	total := 0
	for digest, raw := range e.Manifests {
		if len(raw) > MaxManifest {
			return fmt.Errorf("manifest %s has %d bytes, at most %d are allowed", attest.Escape(digest), len(raw), MaxManifest)
		}
		if total += len(raw); total > MaxManifestBytes {
			return fmt.Errorf("the manifests have more than %d bytes together", MaxManifestBytes)
		}
		if DigestOf(raw) != digest {
			return fmt.Errorf("manifest %s has another digest: %s", attest.Escape(digest), DigestOf(raw))
		}
	}
	m, err := ParseManifest(own)
	if err != nil {
		return fmt.Errorf("reading the subject's manifest: %w", err)
	}
	listed := map[string]bool{e.Subject.Digest: true}
	for _, c := range m.Children {
		listed[c.Digest] = true
	}
	for digest := range e.Manifests {
		if !listed[digest] {
			return fmt.Errorf("manifest %s is not listed by the subject's", digest)
		}
	}
	return nil
}

func (e *Evidence) checkSignatures() error {
	bundles, legacy, total := 0, 0, 0
	for _, s := range e.Signatures {
		size := len(s.Bundle) + len(s.Payload)
		for k, v := range s.Annotations {
			size += len(k) + len(v)
		}
		switch s.Format {
		case FormatBundle:
			if bundles++; len(s.Payload) > 0 || len(s.Annotations) > 0 {
				return fmt.Errorf("signature %s is of two formats", attest.Escape(s.Source))
			}
		case FormatLegacy:
			if legacy++; len(s.Bundle) > 0 {
				return fmt.Errorf("signature %s is of two formats", attest.Escape(s.Source))
			}
		default:
			return fmt.Errorf("signature %s is of no known format: %q", attest.Escape(s.Source), attest.Escape(string(s.Format)))
		}
		if len(s.Bundle) > MaxBundle || len(s.Payload) > MaxPayload || size-len(s.Bundle)-len(s.Payload) > MaxAnnotations {
			return fmt.Errorf("signature %s is larger than allowed", attest.Escape(s.Source))
		}
		total += size
	}
	if bundles > MaxBundles || legacy > MaxLegacy || total > MaxSignatures {
		return fmt.Errorf("%d bundles and %d legacy signatures of %d bytes, at most %d, %d and %d are allowed",
			bundles, legacy, total, MaxBundles, MaxLegacy, MaxSignatures)
	}
	return nil
}

// Lists tells whether the subject is an index whose own manifest lists digest
// as a child. It means something only where Check passed.
func (e *Evidence) Lists(digest string) bool {
	return ValidDigest(digest) && e.children()[digest]
}

// HasConfig tells whether digest is that of the configuration of the subject,
// or of one of its listed children whose manifest is at hand. It means
// something only where Check passed.
func (e *Evidence) HasConfig(digest string) bool {
	if !ValidDigest(digest) {
		return false
	}
	listed := e.children()
	for of, raw := range e.Manifests {
		if of != e.Subject.Digest && !listed[of] {
			continue
		}
		if m, err := ParseManifest(raw); err == nil && m.Config.Digest == digest {
			return true
		}
	}
	return false
}

// children are the digests that the subject's manifest lists.
func (e *Evidence) children() map[string]bool {
	m, err := ParseManifest(e.Manifests[e.Subject.Digest])
	if err != nil {
		return nil
	}
	set := make(map[string]bool, len(m.Children))
	for _, c := range m.Children {
		set[c.Digest] = true
	}
	return set
}

// Descriptor names content by its digest, as a manifest does.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

// Manifest is what is read of an image's manifest, or of an index.
type Manifest struct {
	MediaType    string       `json:"mediaType"`
	ArtifactType string       `json:"artifactType"`
	Config       Descriptor   `json:"config"`
	Layers       []Descriptor `json:"layers"`
	Children     []Descriptor `json:"manifests"` // of an index alone
}

// ParseManifest reads a manifest. One that could be taken for an image as well
// as for an index is refused: what it is must not depend on who reads it.
// Member names are exact, and none may stand twice.
func ParseManifest(raw []byte) (*Manifest, error) {
	if len(raw) == 0 || len(raw) > MaxManifest {
		return nil, fmt.Errorf("a manifest of %d bytes, 1 to %d are allowed", len(raw), MaxManifest)
	}
	if !utf8.Valid(raw) {
		return nil, errors.New("the manifest is not UTF-8")
	}
	var m Manifest
	twice, err := kjson.UnmarshalStrict(raw, &m, kjson.DisallowDuplicateFields)
	if err != nil {
		return nil, fmt.Errorf("the manifest is no JSON object of the known form: %s", attest.Escape(err.Error()))
	}
	if len(twice) > 0 {
		return nil, fmt.Errorf("the manifest is ambiguous: %s", attest.Escape(twice[0].Error()))
	}
	if m.Children != nil && (m.Config.Digest != "" || m.Layers != nil) {
		return nil, errors.New("the manifest is ambiguous: it is an image and an index")
	}
	return &m, nil
}
