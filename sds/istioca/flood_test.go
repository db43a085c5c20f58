package istioca_test

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"istio.io/api/security/v1alpha1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/sds/istioca"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
)

// handlerOf returns the handler of the world's CreateCertificate.
func handlerOf(tb testing.TB, w *ratest.World) grpc.StreamHandler {
	tb.Helper()
	service, err := istioca.New(istioca.Config{RA: w.RA, Registerer: w.Metrics})
	if err != nil {
		tb.Fatal(err)
	}
	var r registry
	service.Register(&r)
	return r.handler
}

// TestGarbageLeavesNothing sends 100,000 tokens of nobody: nothing is recorded,
// next to nothing logged, no memory kept.
func TestGarbageLeavesNothing(t *testing.T) {
	const tokens = 100_000
	w := ratest.New(t, ratest.Config{})
	handler := handlerOf(t, w)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+strings.Repeat("x", 1000)))
	flood := func(n int) {
		for range n {
			if err := handler(nil, &oneCall{ctx: ctx}); attest.DenialOf(err).Reason != attest.TokenRejected {
				t.Fatalf("error is %v", err)
			}
		}
	}
	flood(1000)
	before := heap()
	flood(tokens - 1000)
	if after := heap(); after > before+1<<20 {
		t.Errorf("%d bytes are kept", after-before)
	}
	if got := w.Refused(t, attest.TokenRejected, istioca.Door); got != tokens {
		t.Errorf("%v refusals are counted", got)
	}
	if got := w.Authority.Ledger.Refusals(); len(got) != 0 {
		t.Errorf("the ledger took %d refusals of nobody", len(got))
	}
	if lines := strings.Count(w.Log.String(), "TokenRejected"); lines < 20 || lines > 200 {
		t.Errorf("%d lines are logged", lines)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestGarbageHoldsUpNobody floods the port while a real caller asks.
func TestGarbageHoldsUpNobody(t *testing.T) {
	t.Parallel()
	d := open(t, ratest.Config{}, nil)
	_, token, identity := d.pod(t, "web-1")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 16 {
		client := v1alpha1.NewIstioCertificateServiceClient(d.Dial(t, d.addr))
		wg.Go(func() {
			for ctx.Err() == nil {
				_, err := client.CreateCertificate(ratest.With(ctx, strings.Repeat("x", 1000)), &v1alpha1.IstioCertificateRequest{Csr: "x"})
				if status.Code(err) != codes.Unauthenticated && ctx.Err() == nil {
					t.Errorf("answer is %v", err)
					return
				}
			}
		})
	}
	req := request(t, catest.CSR(t, d.key, identity), nil)
	for range 50 {
		if _, err := d.call(t, token, req); err != nil {
			t.Errorf("the real caller is answered %v", err)
		}
	}
	stop()
	wg.Wait()
}

// TestClientThatLeaves: what it asked for is not signed, and its going is no
// refusal.
func TestClientThatLeaves(t *testing.T) {
	t.Parallel()
	arrived, left := make(chan struct{}), make(chan struct{})
	wait := func(ctx context.Context, i *ledger.Intent) error {
		if i.Door != istioca.Door {
			return nil
		}
		close(arrived)
		<-ctx.Done()
		close(left)
		return nil // it was durable all the same
	}
	var l catest.Ledger
	l.OnAppend = wait
	d := open(t, ratest.Config{CA: func(c *ca.Config) { c.Ledger = &l }, RA: func(c *ra.Config) { c.Timeout = attest.GrantLifetime }}, nil)
	_, token, identity := d.pod(t, "web-1")
	ctx, cancel := context.WithCancel(ratest.With(t.Context(), token))
	answer := make(chan error, 1)
	go func() {
		_, err := d.client.CreateCertificate(ctx, request(t, catest.CSR(t, d.key, identity), nil))
		answer <- err
	}()
	<-arrived
	cancel()
	if err := <-answer; status.Code(err) != codes.Canceled {
		t.Errorf("answer is %v", err)
	}
	<-left
	deadline := time.After(10 * time.Second)
	for len(l.Outcomes()) < 2 { // the serving certificate's is the first
		select {
		case <-deadline:
			t.Fatal("no outcome was recorded")
		case <-time.After(time.Millisecond):
		}
	}
	if got := l.Outcomes()[1].Status; got != ledger.Abandoned {
		t.Errorf("the outcome is %s", got)
	}
	if got := d.Count(t, "hallmark_refusals_total"); got != 0 {
		t.Errorf("%v refusals are counted", got)
	}
}
