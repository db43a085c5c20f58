package cli_test

import (
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// commands are what the scripts need beside testscript's own.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"exits":      exits,
	"mode":       mode,
	"sealed":     sealed,
	"sum":        sum,
	"json":       jsonHas,
	"envsubst":   envsubst,
	"token":      token,
	"nokeys":     nokeys,
	"secretless": secretless,
	"locked":     locked,
}

// exits CODE ARGS...: hallmark ends with that code and prints no answer.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec("hallmark", args[1:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != want {
		ts.Fatalf("hallmark %s: %v, want exit code %d", strings.Join(args[1:], " "), err, want)
	}
}

// locked FILE: another process holds the lock until the script ends.
func locked(ts *testscript.TestScript, _ bool, args []string) {
	file := ts.MkAbs(args[0])
	lock, err := durable.OS(filepath.Dir(file)).Lock(filepath.Base(file))
	ts.Check(err)
	ts.Defer(func() { ts.Check(lock.Close()) })
}

// mode FILE MODE
func mode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%#o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

// sum FILE DIR: writes a line for each file of DIR, with its hash, to FILE.
func sum(ts *testscript.TestScript, _ bool, args []string) {
	var b strings.Builder
	dir := ts.MkAbs(args[1])
	ts.Check(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%x %s\n", sha256.Sum256(data), path)
		return err
	}))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b.String()), 0o600))
}

// json PATH: the last output is one JSON value, and has something at PATH
// (keys and indices with dots between).
func jsonHas(ts *testscript.TestScript, _ bool, args []string) {
	var value any
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	ts.Check(dec.Decode(&value))
	if dec.More() {
		ts.Fatalf("there is more than one JSON value")
	}
	for key := range strings.SplitSeq(args[0], ".") {
		switch v := value.(type) {
		case map[string]any:
			value = v[key]
		case []any:
			i, err := strconv.Atoi(key)
			ts.Check(err)
			value = v[i]
		}
		if value == nil {
			ts.Fatalf("there is nothing at %s", args[0])
		}
	}
}

// envsubst FILE: replaces $NAME in it.
func envsubst(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	text, err := os.ReadFile(path)
	ts.Check(err)
	ts.Check(os.WriteFile(path, []byte(os.Expand(string(text), ts.Getenv)), 0o600))
}

// sealed DIR: there is one root key in it, encrypted, mode 0600.
func sealed(ts *testscript.TestScript, _ bool, args []string) {
	found, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "root-*.pem"))
	ts.Check(err)
	if len(found) != 1 {
		ts.Fatalf("root keys: %v", found)
	}
	text, err := os.ReadFile(found[0])
	ts.Check(err)
	if block, rest := pem.Decode(text); block == nil || block.Type != "ENCRYPTED PRIVATE KEY" || len(rest) != 0 {
		ts.Fatalf("%s is no sealed key", found[0])
	}
	info, err := os.Stat(found[0])
	ts.Check(err)
	if info.Mode().Perm() != 0o600 {
		ts.Fatalf("%s has mode %#o", found[0], info.Mode().Perm())
	}
}
