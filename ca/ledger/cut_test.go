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

	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

const century = 100 * 365 * 24 * time.Hour

// told is what callers of a burst were told, and when.
type told struct {
	mu      sync.Mutex     // guards all below
	durable map[string]int // serial → operations begun when its Append returned nil
	refused map[string]error
}

// burst issues from callers goroutines, each of them each times, with pauses
// that let the housekeeping run in between. It runs in a bubble.
func burst(t *testing.T, disk *faultfs.Disk, l *ledger.Ledger, callers, each int) *told {
	t.Helper()
	out := &told{durable: map[string]int{}, refused: map[string]error{}}
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for n := range each {
				i := wideIntent(1 + n + each*c)
				err := l.Append(t.Context(), i)
				ops := disk.Ops()
				out.mu.Lock()
				if err == nil {
					out.durable[i.Serial] = ops
				} else {
					out.refused[i.Serial] = err
				}
				out.mu.Unlock()
				if err == nil {
					l.Finish(ledger.Outcome{ID: i.ID, Serial: i.Serial, Time: time.Now().UTC(), Status: ledger.Issued})
				}
				<-time.After(time.Duration(50+c*37) * time.Millisecond)
			}
		})
	}
	wg.Wait()
	return out
}

// wideIntent is as large as several sectors, so that it can be torn.
func wideIntent(n int) *ledger.Intent {
	i := intent(n)
	i.Images[0].Image += strings.Repeat("x", 2200)
	return i
}

// checkFiles holds the promise against files: they verify, and everything that
// callers were told is there.
func checkFiles(t *testing.T, when string, disk *faultfs.Disk, cfg ledger.Config, must map[string]bool) {
	t.Helper()
	report, err := ledger.Verify(context.Background(), disk, dir, cfg.Verifier)
	if err != nil || len(report.Findings) > 0 {
		t.Fatalf("%s: verify: %v, findings %q", when, err, report.Findings)
	}
	found := map[string]bool{}
	for e, err := range ledger.Query(context.Background(), disk, dir, ledger.Filter{}) {
		if err != nil {
			t.Fatalf("%s: query: %v", when, err)
		}
		if e.Intent != nil {
			found[e.Intent.Serial] = true
		}
	}
	for serial := range must {
		if !found[serial] {
			t.Fatalf("%s: %s was acknowledged, and is gone", when, serial)
		}
	}
}

// recoverFrom opens what a cut left, and goes on with it.
func recoverFrom(t *testing.T, when string, disk *faultfs.Disk, cfg ledger.Config, must map[string]bool) {
	t.Helper()
	cfg.FS, cfg.Registerer = disk, prometheus.NewRegistry()
	cfg.Retention, cfg.MaxLeaf = century, century // in the bubble it was the year 2000
	if names, err := disk.List(dir); err == nil && len(names) > 1 {
		report, err := ledger.Verify(context.Background(), disk, dir, cfg.Verifier)
		if len(report.Findings) > 0 || err != nil && !strings.Contains(err.Error(), "there is none") {
			t.Fatalf("%s: before recovery: %v, findings %q", when, err, report.Findings)
		}
	}
	l, err := ledger.Open(context.Background(), cfg)
	if err != nil {
		t.Fatalf("%s: open: %v", when, err)
	}
	checkFiles(t, when+", recovered", disk, cfg, must)
	stop := run(t, l)
	again := intent(999_999)
	if err := l.Append(context.Background(), again); err != nil {
		t.Fatalf("%s: append after recovery: %v", when, err)
	}
	if err := stop(); err != nil {
		t.Fatalf("%s: stop: %v", when, err)
	}
	must[again.Serial] = true
	checkFiles(t, when+", gone on", disk, cfg, must)
	delete(must, again.Serial)
}

// TestEveryCutKeepsThePromise cuts the power after every write of a burst of
// issuance that fills several segments, with any part of what was not synced
// lost, and recovers.
func TestEveryCutKeepsThePromise(t *testing.T) {
	t.Parallel()
	disk := faultfs.New()
	cfg := config(disk)
	cfg.Signer, cfg.Verifier = keys(t)
	var got *told
	synctest.Test(t, func(t *testing.T) {
		cfg := cfg
		l, stop := start(t, cfg)
		got = burst(t, disk, l, 6, 9)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
	if len(got.durable) != 54 || len(got.refused) != 0 {
		t.Fatalf("%d acknowledged, %v refused", len(got.durable), got.refused)
	}
	images := 5
	if testing.Short() {
		images = 3
	}
	cuts, seen := 0, 0
	for cut := range disk.Cuts() {
		cuts++
		must := map[string]bool{}
		if cut.After > 0 {
			for serial, ops := range got.durable {
				if cut.Last.N+1 >= ops {
					must[serial] = true
				}
			}
		}
		for name, image := range cut.Images(images) {
			seen++
			recoverFrom(t, fmt.Sprintf("cut after %v, %s", cut.Last, name), image, cfg, must)
		}
	}
	t.Logf("%d cuts, %d images", cuts, seen)
	if cuts < 130 || seen < 2*cuts {
		t.Errorf("%d cuts with %d images: too few to prove anything", cuts, seen)
	}
}

// faults are the ways in which one operation fails.
var faults = map[string]faultfs.Fault{
	"not done":    {Err: syscall.EIO},
	"done":        {Err: syscall.EIO, Done: true},
	"short":       {Err: syscall.ENOSPC, Short: 700},
	"short, torn": {Err: syscall.EIO, Short: 512},
}

// TestEveryFailedOperation fails each operation of a burst once, in each way.
// The ledger goes on by itself, keeps what it acknowledged, and a cut after all
// of it changes nothing.
func TestEveryFailedOperation(t *testing.T) {
	t.Parallel()
	for kind, fault := range faults {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				if testing.Short() && n%5 != 0 {
					continue
				}
				if !failOnce(t, n, fault) {
					if n < 60 {
						t.Fatalf("a burst has only %d operations", n)
					}
					return
				}
			}
		})
	}
}

// failOnce runs a burst whose operation n fails, and tells whether there was one.
func failOnce(t *testing.T, n int, fault faultfs.Fault) bool {
	t.Helper()
	disk := faultfs.New()
	var hit atomic.Pointer[faultfs.Op]
	disk.Inject = func(op faultfs.Op) *faultfs.Fault {
		if op.N != n {
			return nil
		}
		hit.Store(&op)
		return &fault
	}
	cfg := config(disk)
	cfg.Signer, cfg.Verifier = checkpointKeys(t)
	when := ""
	must := map[string]bool{}
	synctest.Test(t, func(t *testing.T) {
		l, err := ledger.Open(t.Context(), cfg)
		if err != nil {
			if hit.Load() == nil {
				t.Fatal(err)
			}
			when = fmt.Sprintf("%v failed, and so did open", hit.Load())
			return
		}
		stop := run(t, l)
		got := burst(t, disk, l, 3, 8)
		if failed := hit.Load(); failed != nil {
			when = failed.String() + " failed"
		}
		for serial, err := range got.refused {
			if !errors.Is(err, ledger.ErrUnwritable) {
				t.Fatalf("%s: %s was refused with %v", when, serial, err)
			}
		}
		for serial := range got.durable {
			must[serial] = true
		}
		<-time.After(time.Minute)
		if err := l.Ready(); err != nil {
			t.Fatalf("%s: not ready a minute later: %v", when, err)
		}
		late := intent(5000)
		err = l.Append(t.Context(), late)
		if failed := hit.Load(); failed != nil && failed.N == disk.Ops()-1 { // it was its turn to fail
			when = failed.String() + " failed"
			<-time.After(time.Minute)
			late = intent(5001)
			err = l.Append(t.Context(), late)
		}
		if err != nil {
			t.Fatalf("%s: append a minute later: %v", when, err)
		}
		must[late.Serial] = true
		<-time.After(time.Second)
		checkOutcomes(t, when, disk, got)
		before := hit.Load() != nil
		if err := stop(); err != nil && before {
			t.Fatalf("%s: stop: %v", when, err)
		}
	})
	failed := hit.Load()
	if failed == nil {
		return false
	}
	sameFileAgain(t, *failed, disk.Log())
	recoverFrom(t, when+", next process", disk.Reopen(), cfg, must)
	recoverFrom(t, when+", power cut", cutNow(disk), cfg, must)
	return true
}

// sameFileAgain refuses a write to the segment that failed: the kernel may have
// dropped its pages, and report the second try a success.
func sameFileAgain(t *testing.T, failed faultfs.Op, log []faultfs.Op) {
	t.Helper()
	if failed.Kind != faultfs.Write && failed.Kind != faultfs.Sync || !strings.HasSuffix(failed.Name, ".seg") {
		return
	}
	for _, op := range log {
		if op.N <= failed.N || op.Name != failed.Name {
			continue
		}
		if op.Kind == faultfs.Rename {
			return // another file of that name
		}
		t.Fatalf("%v failed, and then there was %v", failed, op)
	}
}

// cutNow returns what a power cut leaves of disk at the worst.
func cutNow(disk *faultfs.Disk) *faultfs.Disk {
	end := len(disk.Log())
	for cut := range disk.Cuts() {
		if cut.After == end {
			return cut.Image(faultfs.Lost)
		}
	}
	panic("there is no last cut")
}

// checkOutcomes wants the outcome of every intent that was acknowledged: also
// of those whose first write failed.
func checkOutcomes(t *testing.T, when string, disk *faultfs.Disk, got *told) {
	t.Helper()
	status := map[string]string{}
	for e, err := range ledger.Query(t.Context(), disk, dir, ledger.Filter{}) {
		if err != nil {
			t.Fatalf("%s: query: %v", when, err)
		}
		if e.Intent != nil {
			status[e.Intent.Serial] = e.Status
		}
	}
	for serial := range got.durable {
		if status[serial] != ledger.Issued {
			t.Fatalf("%s: %s was issued, and reads as %q", when, serial, status[serial])
		}
	}
}

// TestNextProcessAfterAFailure fails one operation, kills the process before it
// could mend anything, goes on in the next one, which reads from the cache what
// the disk may not have, and then cuts the power.
func TestNextProcessAfterAFailure(t *testing.T) {
	t.Parallel()
	for kind, fault := range faults {
		for n := 1; ; n++ {
			when := fmt.Sprintf("operation %d failed (%s)", n, kind)
			disk := faultfs.New()
			hit := false
			disk.Inject = func(op faultfs.Op) *faultfs.Fault {
				if op.N != n {
					return nil
				}
				hit = true
				return &fault
			}
			must := map[string]bool{}
			next := disk
			synctest.Test(t, func(t *testing.T) {
				if appendUntil(t, disk, must, 1, 25) {
					return // the failure was none of an append
				}
				next = disk.Reopen()
				if !appendUntil(t, next, must, 101, 8) {
					t.Fatalf("%s: the next process failed", when)
				}
			})
			if !hit {
				if n < 30 {
					t.Fatalf("there were only %d operations", n)
				}
				break
			}
			recoverFrom(t, when, cutNow(next), config(nil), must)
		}
	}
}

// appendUntil appends in a new process until one fails, and tells whether none
// did.
func appendUntil(t *testing.T, disk *faultfs.Disk, must map[string]bool, from, n int) bool {
	t.Helper()
	cfg := config(disk)
	cfg.Retention, cfg.MaxLeaf = century, century
	l, err := ledger.Open(t.Context(), cfg)
	if err != nil {
		return false
	}
	run(t, l)
	for i := range n {
		if l.Append(t.Context(), wideIntent(from+i)) != nil {
			return false
		}
		must[wideIntent(from+i).Serial] = true
	}
	return true
}

// TestCutWhileSegmentsGo cuts the power while old segments are removed: what is
// left has no gap.
func TestCutWhileSegmentsGo(t *testing.T) {
	t.Parallel()
	disk := faultfs.New()
	cfg := config(disk)
	cfg.Signer, cfg.Verifier = checkpointKeys(t)
	from := 0
	synctest.Test(t, func(t *testing.T) {
		l, stop := start(t, cfg)
		fill(t, l, disk, 1, 4)
		<-time.After(59 * time.Minute)
		from = disk.Ops()
		<-time.After(2 * time.Minute)
		if err := stop(); err != nil || len(segmentFiles(t, disk)) != 1 {
			t.Fatalf("%v, %v", err, segmentFiles(t, disk))
		}
	})
	for cut := range disk.Cuts() {
		if cut.Last.N < from {
			continue
		}
		for name, image := range cut.Images(20) {
			recoverFrom(t, fmt.Sprintf("cut after %v, %s", cut.Last, name), image, cfg, map[string]bool{})
		}
	}
}
