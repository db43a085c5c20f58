package cli_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hallmark-ca/hallmark/ca/keys"
	"github.com/hallmark-ca/hallmark/ca/keys/keystest"
)

// condition is what the scripts ask beside testscript's own.
func condition(name string) (bool, error) {
	linked := keys.CheckURI("pkcs11:token=a?module-path=/module.so&pin-source=/pin") == nil
	switch {
	case name == "linked":
		return linked, nil
	case name != "pkcs11":
		return false, fmt.Errorf("condition %q is not known", name)
	case linked && keystest.Module() == "" && os.Getenv("CI") != "":
		return false, fmt.Errorf("%s", keystest.Missing)
	}
	return linked && keystest.Module() != "", nil
}

// token DIR: makes a PKCS #11 token there, and names it in TOKEN.
func token(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.Mkdir(dir, 0o700))
	made, err := keystest.Make(context.Background(), dir)
	ts.Check(err)
	ts.Setenv("SOFTHSM2_CONF", made.Conf)
	ts.Setenv("TOKEN", made.URI())
}

// nokeys DIR: there is no private key of an authority in it.
func nokeys(ts *testscript.TestScript, _ bool, args []string) {
	found, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*.pem"))
	ts.Check(err)
	if len(found) > 0 {
		ts.Fatalf("there are keys: %v", found)
	}
}

// secretless DIR: no file in it holds the token's PIN.
func secretless(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if strings.Contains(string(text), keystest.PIN) {
			return fmt.Errorf("the PIN is in %s", path)
		}
		return err
	}))
}
