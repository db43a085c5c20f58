package ca_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
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
// ledger is the real one, on files in memory. Compare it with BenchmarkBare of
// the same run: the goal is 1.25 times that, and 190 allocations.
func BenchmarkIssue(b *testing.B) {
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
		FS: faultfs.Memory(), Dir: "ledger", Segment: 8 << 20, MaxBytes: 1 << 40, Retention: time.Hour, MaxLeaf: 24 * time.Hour,
		Signer: signer, Verifier: verifier, Registerer: prometheus.NewRegistry(), Log: log, Now: time.Now,
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- records.Run(ctx) }()
	defer func() { stop(); <-stopped }()
	// The clock stands still, so that no grant made beforehand is stale.
	now := time.Now()
	w := newWorld(b, func() time.Time { return now }, func(cfg *ca.Config) { cfg.Ledger, cfg.LintShape = records, zlint.Check })
	csr := catest.CSR(b, catest.Key(b), w.identity)
	grants := grantsFor(b, w)
	b.SetParallelism(benchCallers / 2)
	b.ReportAllocs()
	b.ResetTimer()
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := w.Issue(ctx, <-grants, ca.Request{ID: "01JZC9P3X7R1QG5V", Door: "istioca", CSR: csr}); err != nil {
				b.Fatal(err)
			}
		}
	})
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

// grantsFor makes b.N grants beforehand.
func grantsFor(b *testing.B, w *world) <-chan *attest.Grant {
	b.Helper()
	grants := make(chan *attest.Grant, b.N+1)
	for range b.N + 1 {
		grants <- w.grant(b)
	}
	return grants
}

// BenchmarkBare is the floor: the request's signature checked, and one made.
func BenchmarkBare(b *testing.B) {
	key := catest.Key(b)
	block, _ := pem.Decode(catest.CSR(b, key, attest.Identity{}))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		b.Fatal(err)
	}
	issuer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	tbs := make([]byte, 500)
	b.SetParallelism(benchCallers / 2)
	b.ReportAllocs()
	b.ResetTimer()
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := csr.CheckSignature(); err != nil {
				b.Fatal(err)
			}
			sum := sha256.Sum256(tbs)
			if _, err := issuer.Sign(rand.Reader, sum[:], crypto.SHA256); err != nil {
				b.Fatal(err)
			}
		}
	})
}
