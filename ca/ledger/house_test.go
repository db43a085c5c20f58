package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// value returns a metric without labels.
func value(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// fill appends until segments segments are there, and returns the number of
// the next intent.
func fill(t *testing.T, l *ledger.Ledger, fsys durable.FS, from, segments int) int {
	t.Helper()
	for n := from; ; n++ {
		if err := l.Append(t.Context(), wideIntent(n)); err != nil {
			t.Fatal(err)
		}
		if len(segmentFiles(t, fsys)) >= segments {
			return n + 1
		}
	}
}

func segmentFiles(t *testing.T, fsys durable.FS) []string {
	t.Helper()
	names, err := fsys.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range names {
		if strings.HasSuffix(n, ".seg") {
			out = append(out, n)
		}
	}
	return out
}

// Segments go when they are past retention and hold no live leaf, and the rest
// still verifies.
func TestRetentionKeepsLiveLeaves(t *testing.T) {
	t.Parallel()
	signer, verifier := keys(t)
	synctest.Test(t, func(t *testing.T) {
		disk := faultfs.Memory()
		cfg := config(disk)
		cfg.Signer, cfg.Verifier = signer, verifier
		cfg.Retention, cfg.MaxLeaf = time.Hour, 24*time.Hour
		l, stop := start(t, cfg)
		n := fill(t, l, disk, 1, 4)
		<-time.After(23 * time.Hour)
		if got := segmentFiles(t, disk); len(got) != 4 {
			t.Errorf("after 23 h, with leaves of 24 h: %v", got)
		}
		fill(t, l, disk, n, 5)
		<-time.After(2 * time.Hour)
		if got := segmentFiles(t, disk); len(got) != 2 || got[0] != "00000004.seg" {
			t.Errorf("after 25 h: %v", got)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		report, err := ledger.Verify(t.Context(), disk, dir, verifier)
		if err != nil || len(report.Findings) > 0 || report.Segments != 2 || report.Intents >= report.Records {
			t.Errorf("verify = %+v, %v", report, err)
		}
		names, err := disk.List(dir)
		if err != nil || strings.Count(strings.Join(names, " "), ".idx") != 1 {
			t.Errorf("files = %v, %v", names, err)
		}
	})
}

// The budget is watched at 80, 90 and 95 %: with a budget of twenty segments,
// of which one is always laid by.
func TestBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := faultfs.Memory()
		cfg := config(disk)
		registry := prometheus.NewRegistry()
		cfg.Registerer = registry
		cfg.MaxBytes = 20 * cfg.Segment
		cfg.Retention, cfg.MaxLeaf = 30*24*time.Hour, 6*time.Hour
		l, _ := start(t, cfg)
		n := fill(t, l, disk, 1, 15) // 16 of 20 with the next one
		<-time.After(2 * time.Second)
		if usage := value(t, registry, "hallmark_ledger_usage_ratio"); usage != 0.80 {
			t.Errorf("usage = %v, want 0.80", usage)
		}
		n = fill(t, l, disk, n, 18) // 95 %, and all leaves live
		<-time.After(2 * time.Second)
		err := l.Ready()
		if !errors.Is(err, ledger.ErrUnwritable) || !strings.Contains(err.Error(), "ledger.maxBytes") || value(t, registry, "hallmark_ledger_unwritable") != 1 {
			t.Errorf("at 95 %% with live leaves: ready = %v", err)
		}
		if err := l.Append(t.Context(), intent(n)); !errors.Is(err, ledger.ErrUnwritable) {
			t.Errorf("append at 95 %% = %v", err)
		}
		if got := segmentFiles(t, disk); len(got) != 18 {
			t.Errorf("segments with live leaves went: %v are left", got)
		}
		<-time.After(7 * time.Hour) // no leaf lives: the oldest go, down to 90 %
		if err := l.Ready(); err != nil {
			t.Errorf("with dead leaves alone: %v", err)
		}
		if err := l.Append(t.Context(), intent(n)); err != nil {
			t.Errorf("append = %v", err)
		}
		if got := segmentFiles(t, disk); len(got) != 16 { // 17 of 20 with the next: below 90 %
			t.Errorf("%d segments are left, want 16", len(got))
		}
		if n := value(t, registry, "hallmark_ledger_write_failures_total"); n != 0 {
			t.Errorf("%v writes failed", n)
		}
	})
}

// While nothing can be written, nothing is acknowledged, and readiness says
// why. Outcomes that come meanwhile are kept.
func TestFullDiskAndBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := faultfs.New()
		var full atomic.Bool
		disk.Inject = func(op faultfs.Op) *faultfs.Fault {
			if full.Load() && (op.Kind == faultfs.Write || op.Kind == faultfs.Sync) {
				return &faultfs.Fault{Err: syscall.ENOSPC, Short: 100}
			}
			return nil
		}
		l, stop := start(t, config(disk))
		for n := range 5 {
			if err := l.Append(t.Context(), intent(n)); err != nil {
				t.Fatal(err)
			}
		}
		full.Store(true)
		if err := l.Append(t.Context(), intent(5)); !errors.Is(err, ledger.ErrUnwritable) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("append on a full disk = %v", err)
		}
		for n := range 5 { // of certificates that were signed in time
			l.Finish(ledger.Outcome{ID: intent(n).ID, Serial: intent(n).Serial, Time: time.Now(), Status: ledger.Issued})
		}
		for range 20 {
			<-time.After(time.Minute)
			if err := l.Ready(); !errors.Is(err, ledger.ErrUnwritable) {
				t.Fatalf("ready on a full disk = %v", err)
			}
			l.Refuse(ledger.Refusal{ID: "r", Time: time.Now(), Reason: "ImageUnsigned"})
		}
		full.Store(false)
		<-time.After(3 * time.Second)
		if err := l.Ready(); err != nil {
			t.Errorf("ready with space again = %v", err)
		}
		if err := l.Append(t.Context(), intent(6)); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		issued := 0
		for _, e := range query(t, disk, ledger.Filter{}) {
			if e.Intent != nil && e.Intent.Serial == intent(5).Serial {
				t.Error("an intent that was refused stands in the ledger as committed")
			}
			if e.Status == ledger.Issued {
				issued++
			}
		}
		if issued != 5 {
			t.Errorf("%d outcomes survived the full disk, want 5", issued)
		}
		if got := len(segmentFiles(t, disk)); got != 2 {
			t.Errorf("%d segments, want 2: one ended by the failure, and one", got)
		}
	})
}

// The outcome of a caller who left goes with its intent: it is not recorded
// where the intent's write failed.
func TestNoOutcomeOfAnIntentThatFailed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := faultfs.New()
		var once sync.Once
		gone, leave := context.WithCancel(t.Context())
		disk.Inject = func(op faultfs.Op) (fault *faultfs.Fault) {
			if op.Kind == faultfs.Sync && op.N > 10 {
				once.Do(func() { fault = &faultfs.Fault{Err: syscall.EIO}; leave() })
			}
			return fault
		}
		l, stop := start(t, config(disk))
		if err := l.Append(t.Context(), intent(1)); err != nil {
			t.Fatal(err)
		}
		if err := l.Append(gone, intent(2)); err == nil {
			t.Fatal("an append whose sync failed was acknowledged")
		}
		<-time.After(5 * time.Second)
		if err := l.Append(t.Context(), intent(3)); err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		report, err := ledger.Verify(t.Context(), disk, dir, nil)
		if err != nil || len(report.Findings) > 0 || report.Intents != 2 || report.Records != 2 {
			t.Errorf("verify = %+v, %v", report, err)
		}
	})
}

// Outcomes alone wait for company, so they cost few syncs.
func TestOutcomesRideAlong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := faultfs.New()
		l, stop := start(t, config(disk))
		for n := range 50 {
			if err := l.Append(t.Context(), intent(n)); err != nil {
				t.Fatal(err)
			}
		}
		before := disk.Ops()
		for n := range 50 {
			l.Finish(ledger.Outcome{ID: intent(n).ID, Serial: intent(n).Serial, Time: time.Now(), Status: ledger.Issued})
			<-time.After(time.Millisecond)
		}
		<-time.After(500 * time.Millisecond)
		if ops := disk.Ops() - before; ops != 2 {
			t.Errorf("50 outcomes within 50 ms cost %d operations, want a write and a sync", ops)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// Whatever happens to an index, the answers stay the same.
func TestIndexIsMadeAgain(t *testing.T) {
	t.Parallel()
	disk := faultfs.Memory()
	cfg := config(disk)
	l, stop := start(t, cfg)
	fill(t, l, disk, 1, 4)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	filter := ledger.Filter{Identity: intent(3).Identity}
	want := len(query(t, disk, filter))
	for _, name := range []string{"00000001.idx", "00000003.idx"} {
		if err := disk.Remove(dir + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	report, err := ledger.Verify(t.Context(), disk, dir, nil)
	if err != nil || len(report.Findings) > 0 || len(report.Notes) != 2 {
		t.Errorf("verify without indexes = %+v, %v", report, err)
	}
	if got := len(query(t, disk, filter)); got != want || want == 0 {
		t.Errorf("query without indexes gives %d, want %d", got, want)
	}
	cfg.Registerer = prometheus.NewRegistry()
	_, stop = start(t, cfg)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if report, err = ledger.Verify(t.Context(), disk, dir, nil); err != nil || len(report.Findings)+len(report.Notes) > 0 {
		t.Errorf("verify with indexes made again = %+v, %v", report, err)
	}
}

// Readers beside a writer see whole records, verify without findings, and lose
// nothing that was there before.
func TestReadersBesideAWriter(t *testing.T) {
	t.Parallel()
	fsys := durable.OS(t.TempDir())
	cfg := config(fsys)
	cfg.Signer, cfg.Verifier = keys(t)
	l, stop := start(t, cfg)
	done := make(chan struct{})
	var acknowledged atomic.Int64
	var wg sync.WaitGroup
	for c := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				issue(t, l, 1+n+1_000_000*c)
				acknowledged.Add(1)
			}
		})
	}
	for range 20 {
		least := acknowledged.Load()
		report, err := ledger.Verify(t.Context(), fsys, dir, cfg.Verifier)
		if err != nil || len(report.Findings) > 0 {
			t.Errorf("verify = %+v, %v", report, err)
		}
		if got := int64(len(query(t, fsys, ledger.Filter{}))); got < least || int64(report.Intents) < least {
			t.Errorf("query gave %d, verify %d, and %d were acknowledged before", got, report.Intents, least)
		}
	}
	close(done)
	wg.Wait()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesNonsense(t *testing.T) {
	t.Parallel()
	signer, _ := keys(t)
	for name, change := range map[string]func(*ledger.Config){
		"no file system":       func(c *ledger.Config) { c.FS = nil },
		"no clock":             func(c *ledger.Config) { c.Now = nil },
		"tiny segment":         func(c *ledger.Config) { c.Segment = 1000 },
		"budget of 3 segments": func(c *ledger.Config) { c.MaxBytes = 3 * c.Segment },
		"signer, no verifier":  func(c *ledger.Config) { c.Signer = signer },
	} {
		cfg := config(faultfs.Memory())
		change(&cfg)
		if _, err := ledger.Open(t.Context(), cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	cfg := config(faultfs.Memory())
	if _, err := ledger.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Registerer = prometheus.NewRegistry()
	if _, err := ledger.Open(t.Context(), cfg); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("a second process opened it: %v", err)
	}
}

// A fold is bounded in number and in size, and a count is never lost.
func TestRefusalsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := faultfs.Memory()
		cfg := config(disk)
		registry := prometheus.NewRegistry()
		cfg.Registerer = registry
		l, stop := start(t, cfg)
		const callers = 5000
		for n := range callers {
			l.Refuse(ledger.Refusal{ID: fmt.Sprint(n), Time: time.Now(), PodUID: fmt.Sprint(n), Reason: "ImageUnsigned", Detail: strings.Repeat("ä", 5000)})
		}
		<-time.After(2 * time.Minute)
		for range 30 { // one caller, who asks all the time
			l.Refuse(ledger.Refusal{ID: "loop", Time: time.Now(), PodUID: "loop", Reason: "ImageUnsigned"})
			<-time.After(5 * time.Second)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		sum, records, loops := 0, 0, 0
		for _, e := range query(t, disk, ledger.Filter{}) {
			records++
			sum += e.Refusal.Count
			if e.Refusal.PodUID == "loop" {
				loops++
			}
			if len(e.Refusal.Detail) > 1024 {
				t.Fatalf("a detail of %d bytes was recorded", len(e.Refusal.Detail))
			}
		}
		if dropped := int(value(t, registry, "hallmark_ledger_refusals_dropped_total")); sum+dropped != callers+30 || dropped == 0 {
			t.Errorf("%d refusals recorded, %d dropped, want %d together", sum, dropped, callers+30)
		}
		if loops > 2*4 {
			t.Errorf("30 refusals within 150 s are %d records, want two a minute", loops)
		}
	})
}

// The record of refusals has a budget of its own, and the newest stay.
func TestRefusalFilesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := faultfs.Memory()
		for n := range 30 {
			cfg := config(disk)
			l, stop := start(t, cfg)
			l.Refuse(ledger.Refusal{ID: fmt.Sprint("run", n), Time: time.Now(), Reason: "ImageUnsigned"})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		}
		got := query(t, disk, ledger.Filter{})
		if len(got) != 16 || got[15].Refusal.ID != "run29" {
			t.Errorf("%d records are left, want those of the newest 16 files", len(got))
		}
	})
}
