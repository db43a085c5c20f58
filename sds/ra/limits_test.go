package ra_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
)

// slow is a world whose ledger answers when it is let to.
type slow struct {
	*ratest.World
	arrived chan struct{} // one for each append that waits
	release func()
}

func newSlow(tb testing.TB, change func(*ra.Config)) *slow {
	tb.Helper()
	s := &slow{arrived: make(chan struct{}, 100)}
	gate := make(chan struct{})
	s.release = sync.OnceFunc(func() { close(gate) })
	tb.Cleanup(s.release)
	s.World = ratest.New(tb, ratest.Config{RA: change})
	s.Authority.Ledger.OnAppend = func(ctx context.Context, _ *ledger.Intent) error {
		s.arrived <- struct{}{}
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s
}

func issue(ctx context.Context, tb testing.TB, w *ratest.World, c attest.Caller) error {
	tb.Helper()
	_, err := w.RA.Issue(ctx, door, c, c.Identity, ca.Request{CSR: catest.CSR(tb, catest.Key(tb), c.Identity), Lifetime: time.Hour})
	return err
}

func wantReason(tb testing.TB, err error, want attest.Reason, code codes.Code) {
	tb.Helper()
	var refusal *ra.Refusal
	if !errors.As(err, &refusal) || refusal.Deny.Reason != want || status.Code(ra.Status(err)) != code {
		tb.Errorf("error is %v (%v), want %s", err, ra.Status(err), want)
	}
}

func TestIssueNamesRequestAndDoor(t *testing.T) {
	t.Parallel()
	w := ratest.New(t, ratest.Config{})
	if err := issue(t.Context(), t, w, caller(t, w)); err != nil {
		t.Fatal(err)
	}
	intents := w.Authority.Ledger.Intents()
	if len(intents) != 1 || intents[0].Door != door || len(intents[0].ID) != 16 {
		t.Errorf("the ledger has %+v", intents)
	}
	if w.Count(t, "hallmark_issued_total", "door", door) != 1 || w.Count(t, "hallmark_issuance_seconds", "door", door) != 1 || w.Count(t, "hallmark_attest_seconds") != 1 {
		t.Error("not counted")
	}
}

// TestQueueIsBounded: one slot and one place to wait; the third is told so at
// once, and the place is free again afterwards.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	s := newSlow(t, func(c *ra.Config) { c.InFlight, c.Queue, c.Timeout = 1, 1, attest.GrantLifetime })
	c := caller(t, s.World)
	answers := make(chan error, 2)
	go func() { answers <- issue(t.Context(), t, s.World, c) }()
	<-s.arrived
	go func() { answers <- issue(t.Context(), t, s.World, c) }()
	eventually(t, func() bool { return s.Count(t, "hallmark_issuances_waiting") == 1 })
	wantReason(t, issue(t.Context(), t, s.World, c), attest.Overloaded, codes.Unavailable)
	if got := s.Count(t, "hallmark_issuances_in_flight"); got != 1 {
		t.Errorf("%v are in flight", got)
	}
	s.release()
	for range 2 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if err := issue(t.Context(), t, s.World, c); err != nil {
		t.Error(err)
	}
}

// TestAnswerInTime: whatever is slow, the answer comes, and nothing is signed.
func TestAnswerInTime(t *testing.T) {
	t.Parallel()
	short := func(c *ra.Config) { c.InFlight, c.Timeout = 1, 50*time.Millisecond }
	t.Run("ledger", func(t *testing.T) {
		t.Parallel()
		s := newSlow(t, short)
		wantReason(t, issue(t.Context(), t, s.World, caller(t, s.World)), attest.Overloaded, codes.Unavailable)
		if len(s.Authority.Ledger.Intents()) != 0 {
			t.Error("an intent was kept")
		}
	})
	t.Run("queue", func(t *testing.T) {
		t.Parallel()
		s := newSlow(t, short)
		c := caller(t, s.World)
		long, cancel := context.WithCancel(t.Context())
		defer cancel()
		go issue(long, t, s.World, c)
		<-s.arrived
		wantReason(t, issue(t.Context(), t, s.World, c), attest.Overloaded, codes.Unavailable)
	})
	t.Run("images", func(t *testing.T) {
		t.Parallel()
		w := ratest.New(t, ratest.Config{RA: short})
		c := caller(t, w)
		defer w.Gate.Block()()
		wantReason(t, issue(t.Context(), t, w, c), attest.EvidencePending, codes.Unavailable)
		wantReason(t, w.RA.Check(t.Context(), door, c, c.Identity), attest.EvidencePending, codes.Unavailable)
	})
	t.Run("review", func(t *testing.T) {
		t.Parallel()
		w := ratest.New(t, ratest.Config{RA: short, Cluster: func(c attest.Cluster) attest.Cluster { return stuck{c} }})
		_, err := w.RA.Attest(t.Context(), door, attest.Credential{Token: "any"})
		wantReason(t, err, attest.Overloaded, codes.Unavailable)
	})
}

// stuck is a cluster that only a deadline frees.
type stuck struct{ attest.Cluster }

func (stuck) Review(ctx context.Context, _ string) (attest.Bound, error) {
	<-ctx.Done()
	return attest.Bound{}, ctx.Err()
}

// TestImagesHoldNoSlot: those who wait for a registry do not hold up others.
func TestImagesHoldNoSlot(t *testing.T) {
	t.Parallel()
	w := ratest.New(t, ratest.Config{RA: func(c *ra.Config) { c.InFlight = 1 }})
	c := caller(t, w)
	release := w.Gate.Block()
	waiting := make(chan error, 1)
	go func() { waiting <- issue(t.Context(), t, w, c) }()
	eventually(t, func() bool { return w.Gate.Checks() == 1 })
	if got := w.Count(t, "hallmark_issuances_in_flight"); got != 0 {
		t.Errorf("%v are in flight", got)
	}
	release()
	if err := <-waiting; err != nil {
		t.Error(err)
	}
}

// TestWhoHasGoneGetsNothing: no signature, no refusal, no record of one.
func TestWhoHasGoneGetsNothing(t *testing.T) {
	t.Parallel()
	s := newSlow(t, nil)
	c := caller(t, s.World)
	ctx, cancel := context.WithCancel(t.Context())
	answer := make(chan error, 1)
	go func() { answer <- issue(ctx, t, s.World, c) }()
	<-s.arrived
	cancel()
	if err := <-answer; !errors.Is(err, context.Canceled) || status.Code(ra.Status(err)) != codes.Canceled {
		t.Errorf("error is %v", err)
	}
	for _, o := range s.Authority.Ledger.Outcomes() {
		if o.Status == ledger.Issued {
			t.Error("something was signed")
		}
	}
	if _, err := s.RA.Attest(ctx, door, attest.Credential{Token: "any"}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	past, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if err := s.RA.Check(past, door, c, c.Identity); !errors.Is(err, context.DeadlineExceeded) || status.Code(ra.Status(err)) != codes.DeadlineExceeded {
		t.Errorf("error is %v", err)
	}
	if got := s.Count(t, "hallmark_refusals_total"); got != 0 || len(s.Authority.Ledger.Refusals()) != 0 {
		t.Errorf("%v refusals are counted", got)
	}
}

// TestCallerRate: a pod in a loop is stopped before anything is asked for it,
// and another pod of the same account is not.
func TestCallerRate(t *testing.T) {
	t.Parallel()
	w := ratest.New(t, ratest.Config{RA: func(c *ra.Config) { c.CallerRate, c.CallerBurst = 0.001, 3 }})
	c := caller(t, w)
	for range 3 {
		if err := issue(t.Context(), t, w, c); err != nil {
			t.Fatal(err)
		}
	}
	asked := w.Gate.Checks()
	wantReason(t, issue(t.Context(), t, w, c), attest.CallerRateExceeded, codes.ResourceExhausted)
	if w.Gate.Checks() != asked {
		t.Error("images were looked at")
	}
	if err := w.RA.Check(t.Context(), door, c, c.Identity); err != nil {
		t.Errorf("a check of ours is refused: %v", err)
	}
	_, token := w.Pod("shop", "web-2", "default", image)
	other, err := w.RA.Attest(t.Context(), door, attest.Credential{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	if err := issue(t.Context(), t, w, other); err != nil {
		t.Error(err)
	}
}

// eventually waits for ok, at most ten seconds.
func eventually(tb testing.TB, ok func() bool) {
	tb.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			tb.Fatal("it did not come to pass")
		}
	}
}

// TestQueueKnowsItsPace: who would be served too late is told so without a wait.
func TestQueueKnowsItsPace(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	q := ra.NewQueue(1, 10, func() time.Time { return now })
	for range 100 {
		if err := ra.Enter(q, t.Context()); err != nil {
			t.Fatal(err)
		}
		start := now
		now = now.Add(time.Hour)
		ra.Leave(q, start)
	}
	if err := ra.Enter(q, t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	if err := ra.Enter(q, ctx); attest.DenialOf(err).Reason != attest.Overloaded {
		t.Errorf("error is %v", err)
	}
	ra.Leave(q, now)
	if err := ra.Enter(q, ctx); err != nil {
		t.Errorf("a free slot is refused: %v", err)
	}
}
