package proxies_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/proxies"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

// BenchmarkStreams opens streams of 20 on each proxy, without gRPC and its
// buffers, and reports what one keeps in use, the client's few bytes included.
func BenchmarkStreams(b *testing.B) {
	const each = 20
	w := ratest.New(b, ratest.Config{})
	ps, err := proxies.New(proxies.Config{RA: w.RA, Authority: w.Authority.Authority, Feed: &attest.Feed{}, Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	server, err := sds.New(sds.Config{Source: ps, Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now, MaxStreams: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ps.Run(ctx) }()
	before := used()
	var streams []*sdstest.Stream
	token := ""
	for n := 0; b.Loop(); n++ {
		if n%each == 0 {
			_, token = w.Pod("shop", fmt.Sprint("pod-", n), "web", "registry.example/web@sha256:aa")
		}
		c := sdstest.Open(b, server, token, time.Now)
		c.First(nil, []string{"default", "ROOTCA"}[n%2])
		streams = append(streams, c)
		for !c.Waiting() {
			runtime.Gosched()
		}
	}
	b.ReportMetric(float64(used()-before)/float64(len(streams)), "B/stream")
	cancel()
	<-done
	for _, c := range streams {
		<-c.Done()
	}
}

func used() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
