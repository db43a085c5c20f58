package census_test

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/census"
)

// logger is a log that is looked at.
func (s *scene) logger() *slog.Logger { return slog.New(slog.NewTextHandler(&s.log, nil)) }

// mesh is the callers of a large mesh: 20 pods a node, 1,000 accounts.
func mesh(s *scene, n int) []attest.Caller {
	callers := make([]attest.Caller, n)
	for i := range callers {
		namespace := fmt.Sprintf("namespace-%03d", i%200)
		callers[i] = attest.Caller{
			Cluster: "Kubernetes", Identity: s.identity(s.tb, namespace, fmt.Sprintf("account-%d", i%5)),
			Node: fmt.Sprintf("ip-10-0-%d.eu-central-1.compute.internal", i/20),
			Pod:  attest.PodRef{Namespace: namespace, Name: fmt.Sprintf("deployment-%05d-7d9c6b5f48-x2x%dz", i%7000, i), UID: fmt.Sprintf("0b5a9d1e-94f6-4c1c-8f0e-%012d", i)},
		}
	}
	return callers
}

// fill gives n consumers two leaves each, three in four by streams; one in four
// is behind bundle 2.
func fill(s *scene, n int) {
	now := time.Now()
	old, next := s.snapshot(s.tb, 0, 1), s.snapshot(s.tb, 1, 2)
	for i, caller := range mesh(s, n) {
		door := streams
		if i%4 == 0 {
			door = answers
		} else {
			s.Opened(door, caller, now)
		}
		facts := attest.Facts{Identity: caller.Identity, Caller: caller}
		ends := now.Add(time.Hour + time.Duration(i%20_000)*time.Second)
		s.Issued(door, &ca.Issued{Snapshot: old, NotAfter: ends, Facts: facts})
		if i%8 != 0 {
			s.Issued(door, &ca.Issued{Snapshot: next, NotAfter: ends.Add(3 * time.Hour), Facts: facts})
		}
		if door == streams && i%8 != 1 {
			s.Confirmed(door, caller.Instance(), 2)
		}
	}
}

const large = 200_000

// BenchmarkSummary asks of 200,000 consumers. Published has all of them behind,
// each asked after by name: the hour after a root went out.
func BenchmarkSummary(b *testing.B) {
	s := newScene(b, func(cfg *census.Config) {
		cfg.Now = time.Now
		cfg.Gone = func(string, attest.PodRef, time.Time) bool { return false }
	})
	before := heap()
	fill(s, large)
	each := float64(heap()-before) / large
	for name, q := range map[string]census.Question{
		"OneInFourBehind": {Sequence: 2, Since: time.Now(), AsideAfter: aside, Names: 100},
		"Published":       {Sequence: 3, Since: time.Now(), AsideAfter: aside, SeenSince: time.Now().Add(time.Hour), Names: 100},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			begin := cpu(b)
			for b.Loop() {
				if sum := s.Summary(q); sum.Consumers != large {
					b.Fatalf("%d consumers", sum.Consumers)
				}
			}
			b.ReportMetric(float64(cpu(b)-begin)/float64(b.N)/1e6, "cpu-ms/op")
			b.ReportMetric(each, "B/consumer")
		})
	}
}

// BenchmarkIssued is what the census adds to each signature.
func BenchmarkIssued(b *testing.B) {
	s := newScene(b, func(cfg *census.Config) { cfg.Now = time.Now })
	fill(s, large)
	snap := s.snapshot(b, 1, 2)
	issued := make([]*ca.Issued, large)
	for i, caller := range mesh(s, large) {
		issued[i] = &ca.Issued{Snapshot: snap, NotAfter: time.Now().Add(life), Facts: attest.Facts{Identity: caller.Identity, Caller: caller}}
	}
	var next atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s.Issued(streams, issued[next.Add(7919)%large])
		}
	})
}

func cpu(b *testing.B) int64 {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}
