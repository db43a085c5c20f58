package ca_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/ca/lint/zlint"
)

// benchCallers issue at once, as callers of a mesh do: the ledger commits them
// in groups.
const benchCallers = 32

// BenchmarkIssue makes one certificate through the whole pipeline: grant,
// request, validity, bytes, checks, durable intent, signature, outcome. The
// ledger is the real one, on files in memory. The goal is 190 allocations.
func BenchmarkIssue(b *testing.B) {
	issue, grant := newPipeline(b, b.N)
	grant(b.N)
	b.SetParallelism(benchCallers / 2)
	b.ReportAllocs()
	b.ResetTimer()
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := issue(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkIssueOverBare does both by turns, so that a machine that is shared
// treats both alike, and reports the ratio of their CPU times: the goal is 1.25.
func BenchmarkIssueOverBare(b *testing.B) {
	const turn = 16 * benchCallers
	b.StopTimer()
	issue, grant := newPipeline(b, turn)
	bare := newBare(b)
	var used [2]int64
	for range b.N {
		grant(turn)
		for i, work := range []func() error{issue, bare} {
			if i == 0 {
				b.StartTimer()
			}
			start := cpuTime(b)
			var wg sync.WaitGroup
			for range benchCallers {
				wg.Go(func() {
					for range turn / benchCallers {
						if err := work(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			used[i] += cpuTime(b) - start
			b.StopTimer()
		}
	}
	b.ReportMetric(float64(used[0])/float64(used[1]), "x-bare")
	b.ReportMetric(float64(used[0])/float64(b.N*turn), "cpu-ns/cert")
	b.ReportMetric(0, "ns/op")
}

// newPipeline returns what makes one certificate, and what makes the grants for
// so many of them, at most room at a time.
func newPipeline(b *testing.B, room int) (issue func() error, grant func(n int)) {
	b.Helper()
	log := slog.New(slog.DiscardHandler)
	private, public, err := note.GenerateKey(rand.Reader, "bench")
	if err != nil {
		b.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		b.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		b.Fatal(err)
	}
	records, err := ledger.Open(b.Context(), ledger.Config{
		FS: faultfs.Memory(), Dir: "ledger", Segment: 2 << 20, MaxBytes: 1 << 40, Retention: time.Hour, MaxLeaf: 24 * time.Hour,
		Signer: signer, Verifier: verifier, Registerer: prometheus.NewRegistry(), Log: log, Now: time.Now,
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- records.Run(ctx) }()
	b.Cleanup(func() { stop(); <-stopped })
	// The clock stands still, so that no grant made beforehand is stale.
	now := time.Now()
	w := newWorld(b, func() time.Time { return now }, func(cfg *ca.Config) { cfg.Ledger, cfg.LintShape = records, zlint.Check })
	csr := catest.CSR(b, catest.Key(b), w.identity)
	grants := make(chan *attest.Grant, room)
	issue = func() error {
		_, err := w.Issue(ctx, <-grants, ca.Request{ID: "01JZC9P3X7R1QG5V", Door: "istio-ca", CSR: csr})
		return err
	}
	grant = func(n int) {
		for range n {
			grants <- w.grant(b)
		}
	}
	return issue, grant
}

// reportCPU returns what reports the CPU time that was used meanwhile. On a
// machine that others share, it says more than the wall clock.
func reportCPU(b *testing.B) func() {
	start := cpuTime(b)
	return func() {
		b.StopTimer()
		b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N), "cpu-ns/op")
	}
}

func cpuTime(b *testing.B) int64 {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

// newBare returns the floor: a request's signature checked, and one made.
func newBare(b *testing.B) func() error {
	b.Helper()
	key := catest.Key(b)
	block, _ := pem.Decode(catest.CSR(b, key, attest.Identity{}))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		b.Fatal(err)
	}
	issuer := catest.Key(b)
	tbs := make([]byte, 500)
	return func() error {
		if err := csr.CheckSignature(); err != nil {
			return err
		}
		sum := sha256.Sum256(tbs)
		_, err := issuer.Sign(rand.Reader, sum[:], crypto.SHA256)
		return err
	}
}

// BenchmarkBare is the floor alone.
func BenchmarkBare(b *testing.B) {
	bare := newBare(b)
	b.SetParallelism(benchCallers / 2)
	b.ReportAllocs()
	b.ResetTimer()
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := bare(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
