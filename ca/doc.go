// Package ca signs. An [Authority] turns a grant (attest) into a certificate in
// a fixed order: spend the grant, take the key out of the request, decide the
// validity, write the to-be-signed bytes, check those very bytes, make the
// intent durable, sign, record the outcome. Nothing else reaches the key.
//
// Invariants:
//
//   - A certificate names what its grant proves; from a signing request only
//     the public key is taken.
//   - Nothing is signed that was not checked ([prepared] is made by the checks
//     alone and is used once) and not durable in the ledger before.
//   - Signer, chain, bundle and sequence of one answer come from one immutable
//     [Snapshot], read once per request.
//   - A leaf never outlives its issuer, nor an issuing CA its root.
//
// The package does not decide who gets what (attest, signing), keeps no
// authority state (ca/journal) and makes no issuing CA (ca/replica). An
// Authority is safe for concurrent use and takes no lock on the signing path.
package ca
