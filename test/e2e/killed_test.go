package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/test/bench/caller"
	"github.com/hallmark-ca/hallmark/test/bench/envoy"
	"github.com/hallmark-ca/hallmark/test/bench/hallmark"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
)

const kills = 20

// kill -9, twenty times, in the middle of issuance: each time the ledger
// verifies, no certificate was given out that it does not know, and Envoys keep
// working.
func TestKilledTwentyTimes(t *testing.T) {
	s := newScene(t, 10*time.Minute, mesh.Config{})
	p := s.newPair(envoy.EnvoyGRPC, "", "", s.run("client"), s.run("server"))
	burst := newBurst(s)
	stop := p.traffic()
	given := map[string]string{} // serial to whom
	for n := range kills {
		issue := burst.start()
		// Killed at another moment each time, with issuance under way.
		s.eventually(30*time.Second, func() error {
			if burst.count() < 20+7*n {
				return fmt.Errorf("%d certificates in this round", burst.count())
			}
			return nil
		})
		s.Hallmark.Kill()
		maps.Copy(given, issue())
		if report, err := s.Hallmark.Verify(s.ctx); err != nil {
			t.Fatalf("kill %d: %v %+v", n+1, err, report)
		}
		must(t, s.Hallmark.Start(s.ctx))
		for _, e := range []*envoy.Envoy{p.client, p.server} {
			id, err := e.Identity(s.ctx)
			if err != nil {
				t.Fatalf("kill %d: %v", n+1, err)
			}
			given[id.Serial()] = id.ID
		}
	}
	calls, failed := stop()
	if len(failed) > 0 || calls < 200 {
		t.Errorf("%d of %d requests between Envoys failed: %v", len(failed), calls, failed)
	}
	report, err := s.Hallmark.Verify(s.ctx)
	must(t, err)
	entries, err := s.Hallmark.Query(s.ctx)
	must(t, err)
	unknown := missing(entries, given)
	t.Logf("%d kills, %d certificates given out, %d records, %d may have been issued", kills, len(given), report.Records, report.Open)
	if len(given) < kills*10 {
		t.Errorf("only %d certificates were given out: this shows little", len(given))
	}
	for serial, identity := range unknown {
		t.Errorf("the ledger does not know certificate %s of %s", serial, identity)
	}
	// A server that was killed so often serves on: both come back by themselves.
	for _, e := range []*envoy.Envoy{p.client, p.server} {
		s.eventually(time.Minute, func() error {
			n, err := e.Streams(s.ctx)
			if err == nil && n < 2 {
				err = fmt.Errorf("it has %d streams", n)
			}
			return err
		})
	}
}

// missing returns those of given that no entry stands for.
func missing(entries []hallmark.Entry, given map[string]string) map[string]string {
	left := maps.Clone(given)
	for _, e := range entries {
		if i := e.Issuance; i != nil && i.Identity == given[i.Serial] && (e.Status == "issued" || e.Status == "may-have-been-issued") {
			delete(left, i.Serial)
		}
	}
	return left
}

// burst asks for certificates from several callers at once, and keeps what it
// was given.
type burst struct {
	s      *scene
	pods   []*mesh.Pod
	tokens []string

	mu    sync.Mutex // guards given
	given map[string]string
}

func newBurst(s *scene) *burst {
	b := &burst{s: s}
	img := s.signed("burst")
	for i := range 16 { // each with a bucket of its own
		p := s.run(fmt.Sprintf("burst-%d", i), app(img.String()))
		b.pods = append(b.pods, p)
		b.tokens = append(b.tokens, s.token(p))
	}
	return b
}

func (b *burst) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.given)
}

// start asks until the returned function is called, which returns what was given.
func (b *burst) start() (stop func() map[string]string) {
	ctx, cancel := context.WithCancel(b.s.ctx)
	b.mu.Lock()
	b.given = map[string]string{}
	b.mu.Unlock()
	var wg sync.WaitGroup
	for i, p := range b.pods {
		wg.Go(func() {
			csr, _, err := caller.NewCSR(p.Identity())
			if err != nil {
				b.s.t.Error(err)
				return
			}
			for ctx.Err() == nil {
				chain, err := b.s.conn.Create(ctx, b.tokens[i], csr, 3600)
				if err != nil {
					continue // the server is dead, or not yet back
				}
				leaf, err := b.s.verified(chain, p.Identity())
				if err != nil {
					b.s.t.Errorf("a bad answer: %v", err)
					return
				}
				b.mu.Lock()
				b.given[leaf.SerialNumber.Text(16)] = p.Identity()
				b.mu.Unlock()
			}
		})
	}
	return func() map[string]string {
		cancel()
		wg.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.given
	}
}
