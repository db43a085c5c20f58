package tools_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hallmark-ca/hallmark/test/tools"
)

// The table says a version, the pinned go.mod or requirements.txt gets one:
// were they to differ, the cache would hold a tool under another's name.
func TestTableAgreesWithPins(t *testing.T) {
	pins, err := tools.Pins()
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range tools.Table {
		file, want := tools.PinOf(tool)
		b, err := os.ReadFile(filepath.Join(pins, file))
		if err != nil {
			t.Errorf("%s: %v", tool.Name, err)
			continue
		}
		if !regexp.MustCompile(`(?m)` + want + `( |$)`).Match(b) {
			t.Errorf("%s: %s does not pin %s", tool.Name, file, want)
		}
	}
}

func TestPathOfMissingNamesCommand(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	_, err := tools.Path("etcd")
	var missing *tools.MissingError
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "go run ./tools/get etcd") {
		t.Errorf("Path of a missing tool: %v, want a MissingError that names the command", err)
	}
	if _, err := tools.Path("nope"); err == nil || errors.As(err, &missing) {
		t.Errorf("Path of an unknown tool: %v, want another error", err)
	}
}

func TestNeed(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	for _, tt := range []struct {
		ci   string
		want string
	}{{"true", "fail"}, {"", "skip"}} {
		t.Setenv("CI", tt.ci)
		r := &recorder{TB: t}
		tools.Need(r, "etcd", "envoy")
		if r.outcome != tt.want || !strings.Contains(r.text, "etcd envoy") {
			t.Errorf("CI=%q: outcome %q (%s), want %q, both tools named", tt.ci, r.outcome, r.text, tt.want)
		}
	}
}

// A fetch that fails leaves nothing that a later Path would take for the tool,
// and says where the log is.
func TestGetFailureLeavesNothing(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	tool, _ := tools.Find("etcd")
	_, err := tools.Get(context.Background(), t.TempDir(), tool) // no module there
	if err == nil || !strings.Contains(err.Error(), "etcd-v3.6.5.log") {
		t.Fatalf("Get without a module: %v, want an error that names the log", err)
	}
	if _, err := tools.Path("etcd"); err == nil {
		t.Error("Path finds a tool that was not got")
	}
	left, _ := filepath.Glob(filepath.Join(cache, "hallmark", "tools", ".*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

type recorder struct {
	testing.TB
	outcome, text string
}

func (r *recorder) Helper()                      {}
func (r *recorder) Fatalf(f string, args ...any) { r.end("fail", f, args) }
func (r *recorder) Skipf(f string, args ...any)  { r.end("skip", f, args) }
func (r *recorder) end(outcome, _ string, args []any) {
	if r.outcome != "" {
		return // a real TB would not have come here
	}
	r.outcome = outcome
	for _, a := range args {
		if s, ok := a.(string); ok {
			r.text += s + "\n"
		}
	}
}
