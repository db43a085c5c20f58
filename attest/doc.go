// Package attest holds the words that every part of Hallmark speaks
// (identity, credential, caller, pod, evidence, grant, reason, change), the
// pure rules that decide whether a caller is who it says it is, and the
// [Registrar], the registration authority's first two steps: who is calling
// and what is there live, and may every image in it run.
//
// Invariants:
//
//   - An [Identity] is rebuilt from checked parts, never copied from a request.
//   - A [Caller] is made only by [Registrar.Attest], a [Grant] only by
//     [Registrar.Grant]; both carry unexported proof, so that no front end can
//     forge one. A Grant gives its facts once, within [GrantLifetime].
//   - Every refusal is a [*DenyError] with a [Reason] of the closed table in
//     reason.go.
//
// The package does no I/O of its own: clusters are asked through [Cluster]
// (implemented by attest/kube) and images through [ImageGate] (implemented by
// signing). All types are safe for concurrent use or immutable.
package attest
