package keys

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/softkms"
	"go.step.sm/crypto/kms/uri"
)

// maxURI bounds a key's URI, in bytes.
const maxURI = 2048

// address is a KMS URI that was checked. It has no secret in it, and can be
// shown.
type address struct {
	kind  apiv1.Type
	words map[string]string // by attribute
	raw   string            // of kinds whose words are not known here
}

// URI returns the URI of a sealed key file, relative to [Config.Dir].
func URI(file string) string {
	return address{kind: apiv1.SoftKMS, words: map[string]string{"path": file}}.String()
}

// known are the attributes of the kinds that are known here: those that stand
// before the question mark, and those behind it (RFC 7512 section 2.3). They
// are read in either place.
var known = map[apiv1.Type]struct{ path, query []string }{
	apiv1.SoftKMS: {path: []string{"path"}},
	apiv1.PKCS11:  {path: []string{"token", "serial", "id", "object"}, query: []string{"module-path", "pin-source"}},
}

// String returns the URI in one form: escapes are RFC 7512's, so that other
// programs read it too. Of unknown kinds it shows the kind alone: there may be
// a secret behind it.
func (a address) String() string {
	attributes, ok := known[a.kind]
	if !ok {
		return string(a.kind) + ":…"
	}
	join := func(names []string, separator string, escape func(string) string) string {
		var parts []string
		for _, name := range names {
			if value, ok := a.words[name]; ok {
				parts = append(parts, name+"="+escape(value))
			}
		}
		return strings.Join(parts, separator)
	}
	path := func(s string) string { return strings.ReplaceAll(escape(s), "%2F", "/") }
	if a.kind == apiv1.SoftKMS {
		return softkms.Scheme + ":" + join(attributes.path, ";", path)
	}
	text := string(a.kind) + ":" + join(attributes.path, ";", escape)
	if query := join(attributes.query, "&", path); query != "" {
		text += "?" + query
	}
	return text
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// parse reads a URI. Its errors never repeat it: there may be a PIN in it.
func parse(raw string) (address, error) {
	if len(raw) > maxURI {
		return address{}, fmt.Errorf("the URI has %d bytes, at most %d are allowed", len(raw), maxURI)
	}
	u, err := uri.Parse(raw)
	if err != nil {
		return address{}, errors.New("it is no URI of the form KIND:NAME=VALUE;… (special characters are written as %XX)")
	}
	behind, err := url.ParseQuery(u.RawQuery) // of which the library drops what it cannot read
	if err != nil || u.Fragment != "" {
		return address{}, errors.New("what stands behind the question mark of the URI is not NAME=VALUE&…, or a # is behind it")
	}
	a := address{kind: apiv1.Type(strings.ToLower(u.Scheme)), words: map[string]string{}, raw: raw}
	for _, values := range []url.Values{u.Values, behind} {
		for name, all := range values {
			if _, twice := a.words[name]; twice || len(all) != 1 {
				return address{}, fmt.Errorf("the URI says %.64q more than once", name)
			}
			a.words[name] = all[0]
		}
	}
	for _, name := range []string{"pin-value", "pin-prompt"} {
		if _, ok := a.words[name]; ok {
			return address{}, fmt.Errorf("the URI has %s: a PIN is never in a URI, which ends up in configuration and journal; write it to a file, and name that with pin-source=/PATH", name)
		}
	}
	attributes, ok := known[a.kind]
	if !ok {
		return a, linked(a.kind)
	}
	if u.Host != "" || u.Path != "" {
		return address{}, fmt.Errorf("the URI has to be of the form %s:NAME=VALUE;…", a.kind)
	}
	for _, name := range slices.Sorted(maps.Keys(a.words)) {
		if !slices.Contains(attributes.path, name) && !slices.Contains(attributes.query, name) {
			return address{}, fmt.Errorf("the URI says %.64q, which is not known; a %s URI has %s", name, a.kind, strings.Join(append(slices.Clone(attributes.path), attributes.query...), ", "))
		}
		if name != "id" && strings.ContainsFunc(a.words[name], func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) || a.words[name] == "" {
			return address{}, fmt.Errorf("the URI's %s is empty, or has characters that cannot be printed", name)
		}
	}
	return a, nil
}

// parseKey reads the URI of a key.
func parseKey(raw string) (address, error) {
	a, err := parse(raw)
	if err != nil {
		return a, err
	}
	switch {
	case a.kind == apiv1.SoftKMS && a.words["path"] == "":
		return a, errors.New("the URI names no file: want softkms:path=FILE")
	case a.kind == apiv1.PKCS11 && a.words["id"] == "" && a.words["object"] == "":
		return a, errors.New("the URI names a token and no key in it: id or object is missing")
	case a.kind == apiv1.PKCS11:
		return a, a.checkToken()
	}
	return a, nil
}

// parseHome reads the URI of where keys are made.
func parseHome(raw string) (address, error) {
	if raw == "" {
		return address{kind: apiv1.SoftKMS}, nil
	}
	a, err := parse(raw)
	switch {
	case err != nil:
		return a, err
	case a.kind == apiv1.SoftKMS:
		return a, errors.New("sealed files are made in the state directory: leave the URI out")
	case a.kind != apiv1.PKCS11:
		return a, fmt.Errorf("keys are made in files and in PKCS #11 tokens, not in %s", a.kind)
	case a.words["id"] != "" || a.words["object"] != "":
		return a, errors.New("the URI names a key (id, object): name the token alone, keys are made in it under names of their own")
	}
	return a, a.checkToken()
}

// checkToken checks what says where a token is and how to get at it.
func (a *address) checkToken() error {
	source := strings.TrimPrefix(a.words["pin-source"], "file:")
	if rest, ok := strings.CutPrefix(source, "//"); ok {
		source = rest // an empty host
	}
	switch token, serial := a.words["token"], a.words["serial"]; {
	case (token == "") == (serial == ""):
		return errors.New("the URI names the token either by its label (token) or by its serial number (serial)")
	case !filepath.IsAbs(a.words["module-path"]):
		return errors.New("the URI has to name the PKCS #11 module: module-path=/PATH/TO/MODULE.so, a whole path")
	case !filepath.IsAbs(source):
		return errors.New("the URI has to name the file with the PIN: pin-source=/PATH, a whole path")
	}
	a.words["pin-source"] = source
	return linked(a.kind)
}

// moved returns key with the module and the PIN file of home, where both are in
// one token: those may have moved since the key's URI was written down.
func (a address) moved(key address) address {
	if a.kind != apiv1.PKCS11 || key.kind != apiv1.PKCS11 || a.words["token"] != key.words["token"] || a.words["serial"] != key.words["serial"] {
		return key
	}
	words := maps.Clone(key.words)
	words["module-path"], words["pin-source"] = a.words["module-path"], a.words["pin-source"]
	return address{kind: key.kind, words: words}
}

// linked tells whether this build has what opens URIs of the kind.
func linked(kind apiv1.Type) error {
	if _, ok := apiv1.LoadKeyManagerNewFunc(kind); ok {
		return nil
	}
	if kind == apiv1.PKCS11 {
		return errors.New("this build has no PKCS #11, which needs cgo: use the one that make build-pkcs11 makes")
	}
	return fmt.Errorf("this build has no key manager of kind %.32q", string(kind))
}
