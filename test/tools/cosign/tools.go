//go:build tools

// Package cosign pins the cosign command that the tests of image signatures
// compare with, in a module of its own: it is a tool, never imported.
package cosign

import _ "github.com/sigstore/cosign/v3/cmd/cosign"
