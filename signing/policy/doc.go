// Package policy reads ClusterImagePolicy documents (policy.sigstore.dev) and
// says which of them speak about an image.
//
// A document goes through two stages: raw YAML, strictly read, becomes a
// [Policy], whose fields are unexported and checked; nothing behind this
// package can meet an unchecked one. Invariants:
//
//   - No policy vanishes. One that cannot be used, whether by a mistake or
//     because it asks for what this release does not know, stays in its [Set]
//     as unusable: it fails for every image that it names.
//   - Where it cannot be read which images are named (a file that is no YAML, a
//     glob that does not compile, a kind that is misspelt), everything is named.
//     Whoever can write such a file can as well write a policy that refuses
//     everything, so it gives nobody a power that they lack; and a typo in a
//     strict policy opens nothing.
//   - A [Set] is immutable and depends on nothing but the bytes of the files, so
//     replicas and restarts agree.
//
// It verifies no signature and asks nobody: package signing decides. A
// [Directory] follows a folder; it and all values may be used by many
// goroutines.
package policy
