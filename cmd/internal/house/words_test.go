package house_test

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPackageComments wants one comment on each package, of more than a line's
// worth: what it does, its invariants, what it does not do, concurrency.
func TestPackageComments(t *testing.T) {
	words := map[string]int{}
	for _, s := range all(t) {
		if s.test {
			continue
		}
		n := 0
		if s.file.Doc != nil {
			n = len(strings.Fields(s.file.Doc.Text()))
		}
		words[s.pkg] += n
	}
	for pkg, n := range words {
		least := 20
		if strings.HasPrefix(pkg, "cmd/hallmark") || within(pkg, "test") {
			least = 5 // mains, and tools of tests
		}
		if n < least {
			t.Errorf("package %s has a comment of %d words: say what it does, its invariants, what it does not do, and who may use it at once", pkg, n)
		}
	}
}

// TestPackageNames refuses names that say nothing.
func TestPackageNames(t *testing.T) {
	for _, s := range all(t) {
		switch name := path.Base(s.pkg); name {
		case "util", "utils", "common", "helpers", "types", "manager", "pkg", "misc", "base":
			t.Errorf("%s: %q names nothing of the domain", s.name, name)
		}
		switch path.Base(s.name) {
		case "util.go", "utils.go", "helpers.go", "misc.go", "common.go":
			t.Errorf("%s: the name says nothing", s.name)
		}
	}
}

// forbidden is what no file of the product may contain.
var forbidden = []struct {
	what *regexp.Regexp
	why  string
	// tests too
	everywhere bool
}{
	{regexp.MustCompile(`\btime\.Sleep\(`), "wait for what you wait for (a channel, a condition), with a deadline", true},
	{regexp.MustCompile(`(?m)^\s*//\s*(TODO|FIXME|XXX|HACK)\b`), "do it, or leave it out", true},
	{regexp.MustCompile(`\bInsecureSkipVerify:\s*true`), "verify", false},
	{regexp.MustCompile(`\bos\.Exit\(`), "return an error", false},
	{regexp.MustCompile(`(?m)^func init\(\)`), "constructors, not init", false},
}

func TestForbidden(t *testing.T) {
	for _, s := range all(t) {
		if within(s.pkg, "cmd/internal/house") {
			continue
		}
		product := !s.test && !within(s.pkg, "test") && !forTests(s.pkg)
		for _, f := range forbidden {
			if !product && !f.everywhere || s.file.Name.Name == "main" && strings.Contains(f.what.String(), "Exit") {
				continue
			}
			if at := f.what.FindStringIndex(s.text); at != nil {
				t.Errorf("%s:%d: %s: %s", s.name, 1+strings.Count(s.text[:at[0]], "\n"), s.text[at[0]:at[1]], f.why)
			}
		}
	}
}

// machinePaths are traces of somebody's machine.
var machinePaths = regexp.MustCompile(`(/home/[a-z]|/root/|/Users/[A-Za-z]|/workspace/|/work/(main|shared))`)

// TestMachinePaths looks at every text file that is checked in.
func TestMachinePaths(t *testing.T) {
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("listing files: %v", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		if strings.HasPrefix(name, "cmd/internal/house/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			continue // removed, and not committed yet
		}
		if at := machinePaths.FindIndex(text); at != nil {
			t.Errorf("%s:%d: the path of a machine: %s", name, 1+strings.Count(string(text[:at[0]]), "\n"), text[at[0]:at[1]])
		}
	}
}
