package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

const dir = "ledger"

// keys returns a checkpoint key and its verifier.
func keys(t testing.TB) (note.Signer, note.Verifier) {
	t.Helper()
	private, public, err := note.GenerateKey(nil, "test")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	return signer, verifier
}

// checkpointKeys is keys, made once.
func checkpointKeys(t testing.TB) (note.Signer, note.Verifier) {
	once.Do(func() { onceSigner, onceVerifier = keys(t) })
	return onceSigner, onceVerifier
}

var (
	once         sync.Once
	onceSigner   note.Signer
	onceVerifier note.Verifier
)

func config(fsys durable.FS) ledger.Config {
	return ledger.Config{
		FS: fsys, Dir: dir, Segment: 64 << 10, MaxBytes: 64 << 20, Retention: time.Hour, MaxLeaf: time.Hour,
		Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
}

// start opens and runs a ledger; stop ends it in order.
func start(t testing.TB, cfg ledger.Config) (l *ledger.Ledger, stop func() error) {
	t.Helper()
	l, err := ledger.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l, run(t, l)
}

// run runs a ledger until stop, or the test's end.
func run(t testing.TB, l *ledger.Ledger) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	var once sync.Once
	stop = func() error {
		err := errors.New("stopped before")
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

func intent(n int) *ledger.Intent {
	return &ledger.Intent{
		ID: fmt.Sprintf("req%d", n), Time: time.Now().UTC(), Serial: fmt.Sprintf("%032x", n), Door: "sds",
		Identity: fmt.Sprintf("spiffe://cluster.local/ns/demo/sa/s%d", n%7), Namespace: "demo", Pod: fmt.Sprintf("p%d", n%5), PodUID: fmt.Sprintf("uid%d", n%5),
		Images: []ledger.Image{{Container: "app", Image: fmt.Sprintf("registry/app:%d", n%3), Digest: "sha256:aa", Verdict: "pass"}},
	}
}

func issue(t testing.TB, l *ledger.Ledger, n int) {
	t.Helper()
	i := intent(n)
	if err := l.Append(context.Background(), i); err != nil {
		t.Errorf("append %d: %v", n, err)
		return
	}
	l.Finish(ledger.Outcome{ID: i.ID, Serial: i.Serial, Time: time.Now().UTC(), Status: ledger.Issued})
}

func query(t testing.TB, fsys durable.FS, f ledger.Filter) []ledger.Entry {
	t.Helper()
	var out []ledger.Entry
	for e, err := range ledger.Query(t.Context(), fsys, dir, f) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func TestConcurrentIssuesSurviveReopening(t *testing.T) {
	fsys := durable.OS(t.TempDir())
	signer, verifier := keys(t)
	cfg := config(fsys)
	cfg.Signer, cfg.Verifier = signer, verifier
	const callers, each = 16, 40
	for round := range 3 {
		cfg.Registerer = prometheus.NewRegistry()
		l, stop := start(t, cfg)
		var wg sync.WaitGroup
		for c := range callers {
			wg.Go(func() {
				for n := range each {
					issue(t, l, 1+n+each*(c+callers*round))
				}
			})
		}
		wg.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	const total = 3 * callers * each
	report, err := ledger.Verify(t.Context(), fsys, dir, verifier)
	if err != nil || len(report.Findings) > 0 {
		t.Fatalf("verify: %v, %+v", err, report)
	}
	if report.Intents != total || report.Issued != total || report.Open != 0 || report.Segments < 5 || report.Checkpoints == 0 {
		t.Errorf("report = %+v, want %d issued in several segments", report, total)
	}
	for _, tt := range []struct {
		name   string
		filter ledger.Filter
		want   int
	}{
		{"all", ledger.Filter{}, total},
		{"serial", ledger.Filter{Serial: fmt.Sprintf("%032x", 77)}, 1},
		{"id", ledger.Filter{ID: "req78"}, 1},
		{"identity", ledger.Filter{Identity: "spiffe://cluster.local/ns/demo/sa/s3"}, total / 7},
		{"unknown identity", ledger.Filter{Identity: "spiffe://cluster.local/ns/demo/sa/s"}, 0},
		{"pod by name", ledger.Filter{Pod: "demo/p4"}, total / 5},
		{"pod by uid", ledger.Filter{Pod: "uid4"}, total / 5},
		{"image", ledger.Filter{Image: "registry/app:2"}, total / 3},
		{"future", ledger.Filter{Since: time.Now().Add(time.Hour)}, 0},
		{"past", ledger.Filter{Until: time.Now().Add(-time.Hour)}, 0},
	} {
		got := query(t, fsys, tt.filter)
		if d := len(got) - tt.want; d < -1 || d > 1 {
			t.Errorf("%s: %d entries, want about %d", tt.name, len(got), tt.want)
		}
		for _, e := range got {
			if e.Status != ledger.Issued || e.Outcome == nil || e.Outcome.Serial != e.Intent.Serial {
				t.Fatalf("%s: entry %+v has not its own outcome", tt.name, e)
			}
		}
	}
}

func TestRefusalsAreFoldedAndCounted(t *testing.T) {
	fsys := durable.OS(t.TempDir())
	l, stop := start(t, config(fsys))
	at := time.Now().UTC()
	for range 1000 {
		l.Refuse(ledger.Refusal{ID: "x", Time: at, Identity: "spiffe://cluster.local/ns/demo/sa/bad", Namespace: "demo", Pod: "bad", PodUID: "u", Reason: "ImageUnsigned", Door: "sds"})
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	got := query(t, fsys, ledger.Filter{Pod: "demo/bad"})
	sum := 0
	for _, e := range got {
		sum += e.Refusal.Count
	}
	if sum != 1000 || len(got) > 2 {
		t.Errorf("%d records with %d refusals, want 1000 in at most 2", len(got), sum)
	}
}

func TestAbandonedCallerLeavesAnOutcome(t *testing.T) {
	fsys := durable.OS(t.TempDir())
	l, err := ledger.Open(t.Context(), config(fsys))
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Append(gone, intent(1)); !errors.Is(err, context.Canceled) { // nobody runs the writer yet
		t.Fatalf("append = %v", err)
	}
	ctx, end := context.WithCancel(t.Context())
	end()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := query(t, fsys, ledger.Filter{}); len(got) != 1 || got[0].Status != ledger.Abandoned {
		t.Errorf("entries = %+v", got)
	}
	if err := l.Append(t.Context(), intent(2)); !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("append after the end = %v", err)
	}
}

func TestCutLedgerIsNotRepaired(t *testing.T) {
	root := t.TempDir()
	fsys := durable.OS(root)
	signer, verifier := keys(t)
	cfg := config(fsys)
	cfg.Signer, cfg.Verifier = signer, verifier
	l, stop := start(t, cfg)
	for n := range 10 {
		issue(t, l, n+1)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(root, dir, "00000001.seg")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	cut := strings.LastIndex(string(data), `"req5"`)
	clear(data[cut:])
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Registerer = prometheus.NewRegistry()
	if _, err := ledger.Open(t.Context(), cfg); !errors.Is(err, ledger.ErrCut) {
		t.Errorf("open of a cut ledger = %v, want ErrCut", err)
	}
	report, err := ledger.Verify(t.Context(), fsys, dir, verifier)
	if err != nil || len(report.Findings) == 0 {
		t.Errorf("verify of a cut ledger = %+v, %v", report, err)
	}
}

func TestEveryFlippedByteIsFound(t *testing.T) {
	root := t.TempDir()
	fsys := durable.OS(root)
	signer, verifier := keys(t)
	cfg := config(fsys)
	cfg.Signer, cfg.Verifier = signer, verifier
	l, stop := start(t, cfg)
	for n := range 12 {
		issue(t, l, n+1)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(root, dir, "00000001.seg")
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	end := len(strings.TrimRight(string(good), "\x00"))
	for at := 0; at < end; at += 13 {
		bad := append([]byte(nil), good...)
		bad[at] ^= 0x10
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if report, err := ledger.Verify(t.Context(), fsys, dir, verifier); err == nil && len(report.Findings) == 0 && len(report.Notes) == 0 {
			t.Fatalf("a flipped bit at offset %d of %d was not found", at, end)
		} else if err == nil && len(report.Findings) == 0 {
			t.Fatalf("a flipped bit at offset %d of %d was only noted: %v", at, end, report.Notes)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	cfg := config(durable.OS(b.TempDir()))
	cfg.Segment, cfg.MaxBytes = ledger.DefaultSegment, 8<<30
	l, _ := start(b, cfg)
	b.SetParallelism(16) // 32 callers on two cores
	b.ReportAllocs()
	i := intent(1)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Append(context.Background(), i); err != nil {
				b.Fatal(err)
			}
		}
	})
}
