package istioca_test

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"istio.io/api/security/v1alpha1"

	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
)

// forgetful is a ledger that costs nothing.
type forgetful struct{}

func (forgetful) Append(context.Context, *ledger.Intent) error { return nil }
func (forgetful) Finish(ledger.Outcome)                        {}

// BenchmarkCreateCertificate is one certificate over TLS on loopback, client and
// server in one process: 32 callers on 8 connections.
func BenchmarkCreateCertificate(b *testing.B) {
	benchmark(b, func(d *door) string {
		_, token, _ := d.pod(b, "web-1")
		return token
	})
}

// BenchmarkRefuse is the refusal of a stranger, likewise.
func BenchmarkRefuse(b *testing.B) {
	benchmark(b, func(*door) string { return "garbage" })
}

func benchmark(b *testing.B, tokenOf func(*door) string) {
	const callers, connections = 32, 8
	d := open(b, ratest.Config{
		RA: func(c *ra.Config) {
			c.CallerRate, c.CallerBurst, c.Log = 1e9, 1e9, slog.New(slog.DiscardHandler)
		},
		CA: func(c *ca.Config) { c.Ledger = forgetful{} },
	}, nil)
	token := tokenOf(d)
	req := request(b, catest.CSR(b, d.key, d.Identity(b, "shop", "default")), nil)
	ctx := ratest.With(context.Background(), token)
	var clients []v1alpha1.IstioCertificateServiceClient
	for range connections {
		clients = append(clients, v1alpha1.NewIstioCertificateServiceClient(d.Dial(b, d.addr)))
		clients[len(clients)-1].CreateCertificate(ctx, req) // connects
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ReportAllocs()
	before := cpu(b)
	b.ResetTimer()
	for i := range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				answer, err := clients[i%connections].CreateCertificate(ctx, req)
				if (err == nil) != (token != "garbage") || err == nil && len(answer.GetCertChain()) < 3 {
					b.Errorf("answer is %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// cpu is the processor time that the process has had.
func cpu(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
