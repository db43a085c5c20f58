// Package evidence holds what shows that an image was signed: the image's own
// manifests and the signatures that were attached to it, as the bytes that a
// registry gave.
//
// Evidence proves itself: manifests by their digests, signatures by a policy's
// keys. So neither the file that keeps it nor the registry that sent it need be
// trusted; [Evidence.Check] runs whenever it was read, and what does not hold
// counts as absent. It is kept apart from decisions, which are computed from it
// without a network whenever a policy changes.
//
// Values are immutable once made. [Store] may be used by many goroutines of one
// process.
package evidence

import "time"

// Bounds of what is kept of one image (contract: 64 bundles of 1 MiB, 8 MiB in
// all, 100 legacy layers).
const (
	MaxManifest   = 4 << 20
	MaxManifests  = 256 // the index and its children
	MaxBundle     = 1 << 20
	MaxBundles    = 64
	MaxLegacy     = 100
	MaxPayload    = 1 << 20 // of one legacy signature
	MaxSignatures = 8 << 20 // all signatures together

	MaxManifestBytes = 16 << 20 // all manifests together
	MaxAnnotations   = 64 << 10 // of one legacy signature
	MaxSkipped       = 128
)

// Subject is an image: where it lies, and what it is.
type Subject struct {
	Repository string // normalised, such as index.docker.io/library/nginx
	Digest     string // sha256:<64 lower-case hex digits>
}

// String returns repository@digest.
func (s Subject) String() string { return s.Repository + "@" + s.Digest }

// Format is how a signature was attached.
type Format string

// The formats. FormatBundle is a Sigstore bundle (cosign 3's default);
// FormatLegacy is a layer of the image under the tag sha256-<hex>.sig.
const (
	FormatBundle Format = "bundle"
	FormatLegacy Format = "legacy"
)

// Signature is one signature as it was found, unverified.
type Signature struct {
	Format Format `json:"format"`
	// Source is where it was found, for people: a referrer's digest, or a tag
	// and layer.
	Source string `json:"source"`
	// Bundle is the Sigstore bundle's JSON, of FormatBundle.
	Bundle []byte `json:"bundle,omitempty"`
	// Payload is what was signed (simple signing JSON), of FormatLegacy.
	Payload []byte `json:"payload,omitempty"`
	// Annotations are those of the layer that cosign writes, of FormatLegacy.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Evidence is all that is known of one image.
type Evidence struct {
	Subject Subject `json:"subject"`
	// Manifests are raw manifests by their digest: the subject's, and where that
	// is an index, those of its children.
	Manifests map[string][]byte `json:"manifests"`
	// Signatures attached to the subject's digest, in the order of the registry.
	Signatures []Signature `json:"signatures,omitempty"`
	// Skipped says what was found and could not be used, a line each: shown where
	// nothing else passes.
	Skipped []string `json:"skipped,omitempty"`
	// Incomplete: the registry failed while a part was fetched, so that more may
	// be attached than is here. Where nothing else passes, that is no verdict.
	Incomplete bool      `json:"incomplete,omitempty"`
	Collected  time.Time `json:"collected"`
}
