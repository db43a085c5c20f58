package keys_test

import (
	"errors"
	"io/fs"
	"net/url"
	"strings"
	"testing"

	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/keys"
)

const secretPIN = "S3CR3T-PIN"

// Each URI that must not be used, with words that help, and without the PIN that
// may be in it.
func TestURIsRefused(t *testing.T) {
	t.Parallel()
	const module = "module-path=/usr/lib/module.so"
	const rest = "?" + module + "&pin-source=/pin"
	for uri, want := range map[string]string{
		"pkcs11:token=a;object=b" + rest + "&pin-value=" + secretPIN:       "a PIN is never in a URI",
		"pkcs11:token=a;object=b;pin-value=" + secretPIN:                   "a PIN is never in a URI",
		"pkcs11:token=a;object=b?" + module + "&pin-prompt=" + secretPIN:   "a PIN is never in a URI",
		"pkcs11:token=a;object=b;pin-value=%zz" + secretPIN:                "no URI of the form",
		"pkcs11:token=a;object=b?pin-value=" + secretPIN + ";x=%zz":        "question mark",
		"pkcs11:token=a;object=b" + rest + "#" + secretPIN:                 "question mark",
		"pkcs11:token=a;object=b?x;pin-value=" + secretPIN:                 "question mark",
		"testkms:pin-value=" + secretPIN:                                   "a PIN is never in a URI",
		"pkcs11:token=a" + rest:                                            "no key in it",
		"pkcs11:object=a" + rest:                                           "names the token either",
		"pkcs11:token=a;serial=b;object=c" + rest:                          "names the token either",
		"pkcs11:slot-id=1;object=c" + rest:                                 `"slot-id", which is not known`,
		"pkcs11:token=a;token=b;object=c" + rest:                           "more than once",
		"pkcs11:token=a;object=c;" + module + rest:                         "more than once",
		"pkcs11:token=;object=c" + rest:                                    "token is empty",
		"pkcs11:token=a%0Ab;object=c" + rest:                               "cannot be printed",
		"pkcs11:token=a;object=c?pin-source=/pin":                          "module-path=",
		"pkcs11:token=a;object=c?module-path=libx.so&pin-source=/pin":      "a whole path",
		"pkcs11:token=a;object=c?" + module:                                "pin-source=",
		"pkcs11:token=a;object=c?" + module + "&pin-source=pin":            "a whole path",
		"pkcs11:token=a;object=c?" + module + "&pin-source=|/bin/echo%201": "a whole path",
		"pkcs11://token/a" + rest:                                          "has to be of the form",
		"softkms:path=a;token=b":                                           `"token", which is not known`,
		"softkms:path=" + strings.Repeat("a", 4096):                        "at most 2048",
		"azurekms:client-secret=" + secretPIN:                              "no key manager of kind",
	} {
		_, err := open(t, folder(t)).Open(t.Context(), uri, certificate(t, catest.Key(t)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", uri, err, want)
		}
		if err != nil && strings.Contains(err.Error(), secretPIN) {
			t.Errorf("%s: the error tells the PIN: %v", uri, err)
		}
	}
	for uri, want := range map[string]string{
		"softkms:path=a":                 "leave the URI out",
		"pkcs11:token=a;id=%01" + rest:   "names a key",
		"pkcs11:token=a;object=b" + rest: "names a key",
		"pkcs11:" + rest:                 "names the token either",
	} {
		if err := keys.CheckURI(uri); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", uri, err, want)
		}
		if _, err := keys.New(keys.Config{URI: uri}); err == nil {
			t.Errorf("%s: a store is made there", uri)
		}
	}
}

func TestURINamesFile(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"root-01.pem":     "softkms:path=root-01.pem",
		"/var/keys/a.pem": "softkms:path=/var/keys/a.pem",
		"a b;c+d.pem":     "softkms:path=a%20b%3Bc%2Bd.pem",
	} {
		uri := keys.URI(file)
		if uri != want {
			t.Errorf("%s: %s", file, uri)
		}
		_, err := open(t, folder(t)).Open(t.Context(), uri, certificate(t, catest.Key(t)))
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

func TestAlgorithms(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]keys.Algorithm{"P-256": keys.P256, "p-384": keys.P384, "rsa-3072": keys.RSA3072, "RSA-4096": keys.RSA4096} {
		if got, err := keys.ParseAlgorithm(name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{"ed25519": "the PKCS #11 library has none", "P-521": "use one of P-256", "RSA-2048": "use one of", "": "use one of"} {
		if _, err := keys.ParseAlgorithm(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := keys.Algorithm(name).Generate(); err == nil {
			t.Errorf("a key of kind %q was made", name)
		}
	}
	if _, err := keys.New(keys.Config{Algorithm: "Ed25519"}); err == nil {
		t.Error("a store of Ed25519 keys")
	}
}

// FuzzURI: no input makes the parser panic, a PIN is never told, and what is
// accepted is accepted again in the form in which it is written down.
func FuzzURI(f *testing.F) {
	for _, seed := range []string{
		"pkcs11:token=a;object=b?module-path=/m.so&pin-source=/pin", "pkcs11:serial=1;id=%00%ff?module-path=/m.so&pin-source=file:///pin",
		"softkms:path=root.pem", "softkms:path=%2fa", "pkcs11:token=a b;object=c+d", "testkms:a=b", "pkcs11:?#", ":", "%zz", "softkms:path=a;path=b",
	} {
		f.Add(seed, secretPIN)
	}
	f.Fuzz(func(t *testing.T, uri, pin string) {
		once, err := keys.Canonical(uri)
		if err == nil {
			twice, err := keys.Canonical(once)
			if err != nil || twice != once {
				t.Errorf("%q is written down as %q, which is read as %q (%v)", uri, once, twice, err)
			}
			if strings.ContainsAny(once, " \r\n\x00") {
				t.Errorf("%q is written down as %q", uri, once)
			}
		}
		if len(pin) < 6 || strings.Contains(uri, pin) || strings.Contains("module-path pin-source token serial object: a PIN is never in a URI, which ends up in configuration and journal", pin) {
			return
		}
		for _, with := range []string{uri + ";pin-value=" + pin, uri + "?pin-value=" + pin, uri + "&pin-value=" + url.QueryEscape(pin)} {
			if _, err := keys.Canonical(with); err != nil && strings.Contains(err.Error(), pin) {
				t.Errorf("the error tells the PIN: %v", err)
			}
		}
	})
}
