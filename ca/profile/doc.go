// Package profile turns a validated certificate profile and the facts of one
// certificate into the bytes to be signed (RFC 5280 section 4.1).
//
// The bytes are written here with cryptobyte rather than by
// x509.CreateCertificate, because a certificate authority must hold them before
// the key is used: they are checked (ca/lint) and recorded (ca/ledger) first.
// The order of extensions is x509.CreateCertificate's, so that a differential
// test can compare byte by byte.
//
// The package reads no clock, no random source and no file. Everything in it is
// safe for concurrent use.
package profile
