// Package istioca is Istio's door: CreateCertificate of
// istio.v1.auth.IstioCertificateService, the one protocol by which ztunnel and
// pilot-agent ask a CA for certificates.
//
// Invariants:
//
//   - The token is looked at before the request is read, and nothing is parsed
//     for strangers.
//   - Of the request only key, lifetime and the asked identity are used. A
//     caller gets its own identity and no other; what the certificate says is
//     the authority's.
//   - Leaf, chain and roots of an answer come from one snapshot. Each element
//     ends with a newline, and the last is the whole bundle.
//
// It knows neither tokens nor images, limits no rate and chooses no code: that
// is sds/ra's. A [Service] is safe for concurrent use.
package istioca
