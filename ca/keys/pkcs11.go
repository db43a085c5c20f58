//go:build cgo && !nopkcs11

package keys

import (
	"errors"

	"github.com/miekg/pkcs11"
	_ "go.step.sm/crypto/kms/pkcs11" // registers the kind
)

// pinRefused tells whether a token has said no to a PIN, which it counts.
func pinRefused(err error) bool {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return false
	}
	switch uint(code) {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED:
		return true
	}
	return false
}
