package keys

import "go.step.sm/crypto/kms/apiv1"

// Canonical parses the URI of a key and returns how it is written down. Of a
// kind that is not known here, nothing is.
func Canonical(uri string) (string, error) {
	at, err := parseKey(uri)
	if err != nil {
		return "", err
	}
	if at.kind != apiv1.SoftKMS && at.kind != apiv1.PKCS11 {
		return uri, nil
	}
	return at.String(), nil
}
