// Package keystest makes PKCS #11 tokens of SoftHSM 2 for tests: a folder, a
// configuration and a PIN of its own for each test.
//
// SoftHSM finds its tokens by an environment variable of the process, so that a
// test with a token cannot run beside another one in the same process. Where
// SoftHSM is not installed, a test is skipped and says how to get it; where CI
// is set, that is a failure. The package is linked into tests alone.
package keystest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// PIN is the PIN of every token.
const PIN = "velvet-1966"

// Missing says how to get SoftHSM.
const Missing = "SoftHSM 2 is not installed: apt-get install -y softhsm2"

// modules are where distributions put SoftHSM's module.
var modules = []string{
	"/usr/lib/softhsm/libsofthsm2.so",  // Debian, Ubuntu
	"/usr/lib64/pkcs11/libsofthsm2.so", // Fedora
	"/usr/lib/pkcs11/libsofthsm2.so",   // Arch
	"/usr/local/lib/softhsm/libsofthsm2.so",
}

// Token is a SoftHSM with one token in it.
type Token struct {
	Module  string // the PKCS #11 module
	PINFile string
	Dir     string // the folder that is the token: moved away, the token is gone
	Conf    string // for SOFTHSM2_CONF
}

// URI returns the URI of the token, through its own module or another one.
func (t *Token) URI() string { return t.Through(t.Module) }

// Through returns the URI of the token through another module.
func (t *Token) Through(module string) string {
	return fmt.Sprintf("pkcs11:token=%s?module-path=%s&pin-source=%s", strings.ReplaceAll(label, " ", "%20"), module, t.PINFile)
}

// Objects returns how many objects are in the token, a key pair being two, as
// its folder says: a second user of the module in the same process would be in
// the way of the first.
func (t *Token) Objects(tb testing.TB) int {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(t.Dir, "*", "*.object"))
	if err != nil {
		tb.Fatal(err)
	}
	return len(slices.DeleteFunc(files, func(file string) bool { return filepath.Base(file) == "token.object" }))
}

// Module returns the path of SoftHSM's module, "" where it is not installed.
func Module() string {
	for _, module := range modules {
		if _, err := os.Stat(module); err == nil {
			return module
		}
	}
	return ""
}

// New makes a token, and points this process to it.
func New(tb testing.TB) *Token {
	tb.Helper()
	if Module() == "" {
		if os.Getenv("CI") != "" {
			tb.Fatal(Missing)
		}
		tb.Skip(Missing)
	}
	t, err := Make(tb.Context(), tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Setenv("SOFTHSM2_CONF", t.Conf)
	return t
}

// label is that of each token. The space in it is there for whoever forgets to
// escape it.
const label = "hallmark test"

// Make makes a token in dir, for a process whose SOFTHSM2_CONF is its Conf.
func Make(ctx context.Context, dir string) (*Token, error) {
	t := &Token{Module: Module(), PINFile: filepath.Join(dir, "pin"), Dir: filepath.Join(dir, "tokens"), Conf: filepath.Join(dir, "softhsm2.conf")}
	if t.Module == "" {
		return nil, fmt.Errorf("making token: %s", Missing)
	}
	if err := os.Mkdir(t.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making token: %w", err)
	}
	for file, text := range map[string]string{
		t.Conf:    fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", t.Dir),
		t.PINFile: PIN + "\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("making token: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, "softhsm2-util", "--module", t.Module, "--init-token", "--free", "--label", label, "--so-pin", "0123456789", "--pin", PIN)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+t.Conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("making token: %w: %s", err, out)
	}
	return t, nil
}
