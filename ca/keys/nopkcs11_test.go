//go:build !cgo || nopkcs11

package keys_test

import (
	"strings"
	"testing"

	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/keys"
)

// A build without cgo works with sealed keys, and says that it has no PKCS #11
// before anything is tried.
func TestNoPKCS11(t *testing.T) {
	t.Parallel()
	const token = "pkcs11:token=a?module-path=/usr/lib/module.so&pin-source=/pin"
	if err := keys.CheckURI(token); err == nil || !strings.Contains(err.Error(), "this build has no PKCS #11") {
		t.Errorf("a token: %v", err)
	}
	if _, err := open(t, folder(t)).Open(t.Context(), strings.Replace(token, "?", ";object=b?", 1), certificate(t, catest.Key(t))); err == nil || !strings.Contains(err.Error(), "this build has no PKCS #11") {
		t.Errorf("a key in a token: %v", err)
	}
}
