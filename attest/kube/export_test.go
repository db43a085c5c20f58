package kube

import (
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/hallmark-ca/hallmark/attest"
)

// CheckToken does what is done with a token before anybody is asked, with one
// key.
func CheckToken(token string, key jose.JSONWebKey, now time.Time, audiences []string) (attest.Bound, error) {
	jws, err := parseToken(token)
	if err != nil {
		return attest.Bound{}, err
	}
	if jws.Signatures[0].Header.KeyID != key.KeyID {
		return attest.Bound{}, attest.Deny(attest.TokenKeyUnknown, "", "")
	}
	own, err := verifyToken(jws, []jose.JSONWebKey{key})
	if err != nil {
		return attest.Bound{}, err
	}
	if err := own.check(now, audiences); err != nil {
		return attest.Bound{}, err
	}
	return own.bound(), nil
}
