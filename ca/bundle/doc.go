// Package bundle is the SPIFFE bundle document of a trust domain (SPIFFE Trust
// Domain and Bundle, section 4): written of a snapshot of our own, and read,
// within bounds, of anybody's.
//
// Invariants: the same snapshot and refresh hint give the same bytes on every
// replica; each root stands in an element of its own, with its one certificate
// and no key id; what is read is at most [MaxBytes] and [MaxKeys], each
// certificate in it a CA that may sign, and elements of a type or use that is
// not known are passed over, as section 4.2 asks.
//
// The package fetches nothing, keeps nothing and merges nothing: a bundle is of
// one trust domain, and who asked for it says of which. Everything here is safe
// for concurrent use.
package bundle
