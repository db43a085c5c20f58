package ca_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

const century = 100 * 365 * 24 * time.Hour

func ledgerOn(disk *faultfs.Disk) ledger.Config {
	return ledger.Config{
		FS: disk, Dir: "ledger", Segment: 64 << 10, MaxBytes: 64 << 20, Retention: century, MaxLeaf: century,
		Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
}

// given are the certificates that left the authority: serial → operations of
// the disk that had begun by then.
type given struct {
	mu      sync.Mutex // guards all below
	at      map[string]int
	refused []error
}

// burstOf has callers ask an authority, whose ledger is on disk, for each
// certificates. It runs in a bubble.
func burstOf(t *testing.T, disk *faultfs.Disk, callers, each int) *given {
	t.Helper()
	records, err := ledger.Open(t.Context(), ledgerOn(disk))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- records.Run(ctx) }()
	w := newWorld(t, time.Now, func(cfg *ca.Config) { cfg.Ledger = records })
	csr := catest.CSR(t, catest.Key(t), w.identity)
	out := &given{at: map[string]int{}}
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for n := range each {
				issued, err := w.Issue(ctx, w.grant(t), ca.Request{ID: fmt.Sprintf("%d-%d", c, n), Door: "test", CSR: csr})
				ops := disk.Ops()
				out.mu.Lock()
				if err != nil {
					out.refused = append(out.refused, err)
				} else {
					out.at[issued.Serial] = ops
				}
				out.mu.Unlock()
				<-time.After(time.Duration(100+c*29) * time.Millisecond)
			}
		})
	}
	wg.Wait()
	stop()
	if err := <-stopped; err != nil && disk.Inject == nil {
		t.Fatal(err)
	}
	return out
}

// known opens what a cut left, as the next process would, and returns the
// serials that it knows.
func known(t *testing.T, when string, disk *faultfs.Disk) map[string]bool {
	t.Helper()
	if _, err := ledger.Open(context.Background(), ledgerOn(disk)); err != nil {
		t.Fatalf("%s: open: %v", when, err)
	}
	report, err := ledger.Verify(context.Background(), disk, "ledger", nil)
	if err != nil || len(report.Findings) > 0 {
		t.Fatalf("%s: verify: %v, findings %q", when, err, report.Findings)
	}
	out := map[string]bool{}
	for e, err := range ledger.Query(context.Background(), disk, "ledger", ledger.Filter{}) {
		if err != nil {
			t.Fatalf("%s: query: %v", when, err)
		}
		out[e.Intent.Serial] = true
	}
	return out
}

// TestNoCertificateThatTheLedgerDoesNotKnow cuts the power after every write of
// a burst of issuance, with any part of what was not synced lost: every
// certificate that had left by then is known to the ledger that is found.
func TestNoCertificateThatTheLedgerDoesNotKnow(t *testing.T) {
	disk := faultfs.New()
	var got *given
	synctest.Test(t, func(t *testing.T) { got = burstOf(t, disk, 8, 8) })
	if len(got.at) != 64 || len(got.refused) > 0 {
		t.Fatalf("%d certificates, refused: %v", len(got.at), got.refused)
	}
	images := 8
	if testing.Short() {
		images = 3
	}
	cuts := 0
	for cut := range disk.Cuts() {
		cuts++
		for name, image := range cut.Images(images) {
			when := fmt.Sprintf("cut after %v, %s", cut.Last, name)
			found := known(t, when, image)
			for serial, ops := range got.at {
				if cut.After > 0 && cut.Last.N+1 >= ops && !found[serial] {
					t.Fatalf("%s: certificate %s had left, and the ledger does not know it", when, serial)
				}
			}
		}
	}
	if cuts < 50 {
		t.Errorf("a burst has only %d writes", cuts)
	}
}

// TestNoCertificateWhereTheWriteFailed fails each write of a burst: callers are
// told so with LedgerUnwritable, and whoever got a certificate is in the ledger.
func TestNoCertificateWhereTheWriteFailed(t *testing.T) {
	refusals := 0
	for n := 8; n < 60; n++ {
		for kind, fault := range map[string]faultfs.Fault{"not done": {Err: syscall.EIO}, "done": {Err: syscall.EIO, Done: true}, "short": {Err: syscall.ENOSPC, Short: 300}} {
			if testing.Short() && n%7 != 0 {
				continue
			}
			when := fmt.Sprintf("operation %d failed (%s)", n, kind)
			disk := faultfs.New()
			disk.Inject = func(op faultfs.Op) *faultfs.Fault {
				if op.N == n {
					return &fault
				}
				return nil
			}
			var got *given
			synctest.Test(t, func(t *testing.T) { got = burstOf(t, disk, 4, 5) })
			for _, err := range got.refused {
				refusals++
				if reasonOf(err) != attest.LedgerUnwritable {
					t.Fatalf("%s: refused with %v", when, err)
				}
			}
			end := len(disk.Log())
			for cut := range disk.Cuts() {
				if cut.After != end {
					continue
				}
				found := known(t, when, cut.Image(faultfs.Lost))
				for serial := range got.at {
					if !found[serial] {
						t.Fatalf("%s: certificate %s left, and the ledger does not know it", when, serial)
					}
				}
				break
			}
		}
	}
	if refusals == 0 {
		t.Error("no failed write refused anything: the test fails the wrong operations")
	}
}
