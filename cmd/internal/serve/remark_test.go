package serve_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/serve"
	"github.com/hallmark-ca/hallmark/signing"
)

// journalOf is a journal with that many records.
type journalOf uint64

func (j journalOf) Load(context.Context) (journal.State, error) {
	return journal.State{Number: uint64(j)}, nil
}

func (journalOf) Append(context.Context, journal.Record) error { return nil }

func TestRemarksWhatIsOddAboutTheState(t *testing.T) {
	t.Parallel()
	const anew, open = "the ledger is new, and the journal is not", "is open to others"
	for _, c := range []struct {
		name    string
		records uint64
		again   bool // the ledger was there
		mode    os.FileMode
		want    []string
	}{
		{"first start", 1, false, 0o700, nil},
		{"ledger removed", 7, false, 0o700, []string{anew, "put ledger/ back"}},
		{"later start", 7, true, 0o700, nil},
		{"open to others", 1, false, 0o755, []string{open, "chmod 700"}},
	} {
		dir := t.TempDir()
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		if c.again {
			begin(t, dir)
		}
		var out bytes.Buffer
		serve.Remark(t.Context(), dir, journalOf(c.records), begin(t, dir), &out)
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) || !strings.Contains(out.String(), `"ERROR"`) {
				t.Errorf("%s: the log lacks %q:\n%s", c.name, want, out.String())
			}
		}
		if c.want == nil && out.Len() > 0 {
			t.Errorf("%s: logged:\n%s", c.name, out.String())
		}
	}
}

// begin opens a ledger and ends it.
func begin(t *testing.T, dir string) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), ledger.Config{
		FS: durable.OS(dir), Dir: "ledger", Segment: 64 << 10, MaxBytes: 1 << 20, Retention: time.Hour, MaxLeaf: time.Hour,
		Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := l.Run(ended); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSpaceIsHeldAgainstStartAndBudget(t *testing.T) {
	t.Parallel()
	const mib, gib = 1 << 20, 1 << 30
	for _, c := range []struct {
		free, used int64
		ready      int
		want       string
	}{
		{100 * mib, 0, 0, "wrong"},                             // two files of 64 MiB
		{100 * mib, 64 * mib, 1, "warning"},                    // one is there
		{10 * mib, 128 * mib, 2, "warning"},                    // both are
		{9 * gib, 0, 0, "ok"},                                  // more than the budget
		{2 * gib, 7 * gib, 2, "ok"},                            // what the ledger has counts
		{129 * mib, 0, 0, "warning"}, {gib, gib, 2, "warning"}, // less than the budget
	} {
		if got := serve.JudgeSpace(c.free, c.used, c.ready, 8*gib); got != c.want {
			t.Errorf("%d MiB free, %d used, %d files ready: %s, want %s", c.free/mib, c.used/mib, c.ready, got, c.want)
		}
	}
}

func TestEnforcingWithoutAPolicyIsAnError(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode signing.Mode
		ns   map[string]signing.Mode
		want bool
	}{
		{signing.Enforce, nil, true},
		{signing.Audit, map[string]signing.Mode{"shop": signing.Enforce}, true},
		{signing.Audit, nil, false},
	} {
		cfg := &config.Config{State: t.TempDir(), Images: config.Images{Issuance: c.mode, Infrastructure: signing.Audit, Namespaces: c.ns, Policies: t.TempDir()}}
		var out bytes.Buffer
		if err := serve.BuildImages(cfg, &out); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out.String(), "every pod is refused"); got != c.want {
			t.Errorf("%v %v: logged %q", c.mode, c.ns, out.String())
		}
	}
}
