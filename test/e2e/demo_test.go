package e2e_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/test/tools"
)

// demo runs the program that `make demo` runs.
func demo(t *testing.T, env ...string) (output string, code int, left []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	program := filepath.Join(t.TempDir(), "demo")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "../demo")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the demo: %v\n%s", err, out)
	}
	temp := t.TempDir()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append(append(os.Environ(), "TMPDIR="+temp), env...)
	out, _ := cmd.CombinedOutput() // the exit code says it
	left, err := filepath.Glob(filepath.Join(temp, "*"))
	must(t, err)
	return string(out), cmd.ProcessState.ExitCode(), left
}

// The demo sees everything that it says it shows, and leaves nothing.
func TestDemo(t *testing.T) {
	tools.Need(t, "etcd", "kube-apiserver", "envoy")
	out, code, left := demo(t)
	t.Logf("%s", out)
	if code != 0 || len(left) > 0 {
		t.Errorf("exit code %d, left behind: %v", code, left)
	}
	at := 0
	for _, fact := range []string{
		"✓ etcd, kube-apiserver",
		"✓ three pods run",
		"✓ hallmark init, then hallmark serve: ready",
		"✓ an Envoy for each pod",
		"✓ client's Envoy is spiffe://cluster.local/ns/demo/sa/client, until",
		"✓ server's Envoy is spiffe://cluster.local/ns/demo/sa/server, until",
		"the server saw peer spiffe://cluster.local/ns/demo/sa/client",
		"✓ the intruder's Envoy gets nothing",
		"ImageUnsigned: pod demo/intruder",
		"✓ the client's image is swapped for an unsigned one: its stream is ended",
		"ImageUnsigned: pod demo/client",
		"✓ its Envoy comes back at once, and is refused",
		"✓ all of it is on record",
		"✓ hallmark ledger verify",
		"12 facts observed",
		"Nothing is left running",
	} {
		i := strings.Index(out[at:], fact)
		if i < 0 {
			t.Fatalf("it does not show %q (in this order)", fact)
		}
		at += i
	}
	if strings.Contains(out, "\x1b") {
		t.Error("control characters, and no terminal is there")
	}
}

// Without its tools the demo fails, and says what gets them.
func TestDemoWithoutTools(t *testing.T) {
	t.Parallel()
	out, code, left := demo(t, "XDG_CACHE_HOME="+t.TempDir())
	if code != 1 || !strings.Contains(out, "go run ./tools/get etcd") || strings.Contains(out, "✓") || len(left) > 0 {
		t.Errorf("exit code %d, left behind %v, output:\n%s", code, left, out)
	}
}
