package e2e_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ca/hallmark/test/bench/caller"
	"github.com/hallmark-ca/hallmark/test/bench/hallmark"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
)

const (
	garbageTokens = 100_000
	flooders      = 64
	floodConns    = 8
)

// 100,000 garbage tokens, as fast as they go, grow no file; and while more of
// them come, a real caller is served as if there were none.
func TestGarbageTokensGrowNothingAndDelayNobody(t *testing.T) {
	s := newScene(t, 5*time.Minute, mesh.Config{})
	pod := s.run("caller")
	token := s.used(pod)
	f := newFlood(s, token)

	// The first second of each reason fills the log's sample, and the ledger makes
	// its next segment ready, whoever calls.
	f.send(1000)
	s.eventually(30*time.Second, func() error {
		files, err := s.Hallmark.Files()
		if err == nil && files["ledger/next"] < largestSegment(files) {
			err = errors.New("the next segment of the ledger is not there yet")
		}
		return err
	})
	before, err := s.Hallmark.Files()
	must(t, err)
	log := fileSize(t, s.Hallmark.LogFile())
	refused := s.metrics().Reasons()
	start := time.Now()
	f.send(garbageTokens)
	took := time.Since(start)
	t.Logf("%d garbage tokens in %s: %.0f a second", garbageTokens, took.Round(time.Millisecond), garbageTokens/took.Seconds())
	after, err := s.Hallmark.Files()
	must(t, err)
	// A checkpoint is one line every few seconds, whoever calls.
	delete(before, "ledger/checkpoints")
	delete(after, "ledger/checkpoints")
	if grown := hallmark.Grown(before, after); len(grown) > 0 {
		t.Errorf("files grew:\n%s", strings.Join(grown, "\n"))
	}
	// Some lines a second and reason are logged: less than a kilobyte each.
	if grown, most := fileSize(t, s.Hallmark.LogFile())-log, int64(20+3*took.Seconds())*1024; grown > most {
		t.Errorf("the log grew by %d bytes in %s, more than %d", grown, took, most)
	}
	counted := 0.0
	for reason, n := range s.metrics().Reasons() {
		counted += n - refused[reason]
		if !strings.HasPrefix(reason, "Token") {
			t.Errorf("%v refusals for %s: that is not the token", n, reason)
		}
	}
	if counted != garbageTokens {
		t.Errorf("%v refusals were counted, want %d", counted, garbageTokens)
	}

	calm := s.latencies(pod, token, 20)
	stop := f.start()
	flooded := s.latencies(pod, token, 40)
	stop()
	t.Logf("a real caller's median: %s; in the flood %s, the slowest %s", median(calm), median(flooded), slices.Max(flooded))
	// The flood's clients take most of this machine themselves. What must not
	// be is a queue: every answer within a second, of the five that are allowed.
	if slices.Max(flooded) > time.Second || median(flooded) > 250*time.Millisecond {
		t.Errorf("in the flood a real caller waits %s, the median %s", slices.Max(flooded), median(flooded))
	}
}

func largestSegment(files map[string]int64) int64 {
	largest := int64(1)
	for name, size := range files {
		if strings.HasSuffix(name, ".seg") {
			largest = max(largest, size)
		}
	}
	return largest
}

// latencies asks for certificates one after the other.
func (s *scene) latencies(p *mesh.Pod, token string, n int) []time.Duration {
	s.t.Helper()
	conn, err := s.Dial()
	must(s.t, err)
	csr, _, err := caller.NewCSR(p.Identity())
	must(s.t, err)
	var all []time.Duration
	for range n {
		start := time.Now()
		if _, err := conn.Create(s.ctx, token, csr, 3600); err != nil {
			s.t.Fatalf("a real caller is refused: %v", err)
		}
		all = append(all, time.Since(start))
		s.pass(20 * time.Millisecond)
	}
	return all
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// flood sends garbage of the kinds that cost a server most: noise, tokens in
// three parts, and real tokens of which one character was changed.
type flood struct {
	s     *scene
	conns []caller.Conn
	parts []string // of a real token
	csr   []byte
}

func newFlood(s *scene, token string) *flood {
	f := &flood{s: s, parts: strings.Split(token, ".")}
	for range floodConns {
		c, err := s.Dial()
		must(s.t, err)
		f.conns = append(f.conns, c)
	}
	var err error
	f.csr, _, err = caller.NewCSR("")
	must(s.t, err)
	return f
}

func (f *flood) token(n int) string {
	noise := make([]byte, 64)
	rand.Read(noise)
	text := base64.RawURLEncoding.EncodeToString(noise)
	switch n % 3 {
	case 0:
		return text
	case 1:
		return f.parts[0] + "." + text + "." + text
	}
	return f.parts[0] + "." + f.parts[1] + "." + text // a signature of the right length
}

// send sends n tokens and checks every answer.
func (f *flood) send(n int) {
	f.s.t.Helper()
	var next atomic.Int64
	f.run(func() bool { return next.Add(1) <= int64(n) })
}

// start floods until the returned function is called.
func (f *flood) start() (stop func()) {
	ctx, cancel := context.WithCancel(f.s.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.run(func() bool { return ctx.Err() == nil })
	}()
	return func() { cancel(); <-done }
}

func (f *flood) run(more func() bool) {
	var wg sync.WaitGroup
	for i := range flooders {
		wg.Go(func() {
			for n := i; more(); n++ {
				_, err := f.conns[i%floodConns].Create(f.s.ctx, f.token(n), f.csr, 3600)
				if status.Code(err) != codes.Unauthenticated {
					f.s.t.Errorf("garbage is answered %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.Size()
}
