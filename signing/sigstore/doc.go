// Package sigstore verifies what cosign signed with a key: Sigstore bundles
// (v0.1 to v0.3) and the older simple-signing layers, both through sigstore-go.
//
// Invariants: a signature counts only for the digest that it was asked about,
// only under the key that was given, and only as a signature: a statement of
// another predicate type (an SBOM, say) is none, and neither is anything made
// with a certificate. Everything is read strictly before the library sees it:
// no JSON member twice, no null where a value belongs, exactly one DSSE
// signature, known types alone. Each refusal says what failed, for operators.
//
// It asks no transparency log and no clock, fetches nothing and keeps nothing.
// A Key is immutable; all functions may be called from any goroutine.
package sigstore
