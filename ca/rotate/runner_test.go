package rotate_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, change := range map[string]func(*rotate.Config){
		"no trust domain":     func(c *rotate.Config) { c.TrustDomain = attest.TrustDomain{} },
		"no store":            func(c *rotate.Config) { c.Store = nil },
		"no follower":         func(c *rotate.Config) { c.Follower = nil },
		"no keys":             func(c *rotate.Config) { c.Keys = nil },
		"no census":           func(c *rotate.Config) { c.Census = nil },
		"no rehearsal":        func(c *rotate.Config) { c.Rehearsal = nil },
		"no interval":         func(c *rotate.Config) { c.Interval = 0 },
		"no registerer":       func(c *rotate.Config) { c.Registerer = nil },
		"no log":              func(c *rotate.Config) { c.Log = nil },
		"no clock":            func(c *rotate.Config) { c.Now = nil },
		"automatic by chance": func(c *rotate.Config) { c.Policy.Automatic = "chance" },
		"no hold":             func(c *rotate.Config) { c.Policy.KeyHold = 0 },
		"a negative pause":    func(c *rotate.Config) { c.Policy.RehearsalPause = -1 },
	} {
		cfg := w.config(prometheus.NewRegistry())
		change(&cfg)
		if _, err := rotate.New(cfg); err == nil {
			t.Errorf("%s: a Runner was made", name)
		}
	}
	reg := prometheus.NewRegistry()
	if _, err := rotate.New(w.config(reg)); err != nil {
		t.Error(err)
	}
	if _, err := rotate.New(w.config(reg)); err == nil {
		t.Error("the metrics were registered twice")
	}
}

// The journal of another trust domain is nobody's to move.
func TestForeignJournal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(prometheus.NewRegistry())
		var err error
		cfg.TrustDomain, err = attest.ParseTrustDomain("other.local")
		must(t, err)
		r, err := rotate.New(cfg)
		must(t, err)
		if err := r.Start(t.Context(), who); err == nil || len(w.records) != 1 || count(w, "make") > 0 {
			t.Errorf("error is %v", err)
		}
	})
}

// One who writes all the time keeps a command from going on for ever, and costs
// no key that stays behind.
func TestConflictsEnd(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		w.fault = func(call string) fault {
			if call == "append" {
				return rival
			}
			return none
		}
		if err := r.Start(t.Context(), who); !errors.Is(err, journal.ErrConflict) {
			t.Errorf("error is %v", err)
		}
		if len(w.keys) != 1 {
			t.Errorf("%d keys are left of which one has a root", len(w.keys))
		}
		looks(t, r, 1) // and by itself it tries again
		w.fault = func(string) fault { return none }
		must(t, r.Start(t.Context(), who))
	})
}

// A command does not wait for ever for a step that hangs.
func TestOneStepAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(prometheus.NewRegistry())
		hanging := hangs{make(chan struct{})}
		cfg.Follower = hanging
		r, err := rotate.New(cfg)
		must(t, err)
		done := make(chan error)
		go func() { done <- r.Start(t.Context(), who) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Abort(ctx, who); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
		if s, err := r.Status(t.Context()); err != nil || s.Record != 1 {
			t.Errorf("status waits too: %+v, %v", s, err)
		}
		close(hanging.until)
		must(t, <-done)
	})
}

type hangs struct{ until chan struct{} }

func (h hangs) Follow(context.Context) error { <-h.until; return nil }

// What is durable and not carried out stops everything else: a root that is to
// be retired may still be what is signed under.
func TestNothingMovesWhileMemoryDoesNotFollow(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, r.Start(t.Context(), who))
		w.fault = func(call string) fault {
			if call == "follow" {
				return fails
			}
			return none
		}
		if err := r.Activate(t.Context(), who, rotate.Force{}); !errors.Is(err, errAway) {
			t.Errorf("error is %v", err)
		}
		want(t, w, journal.Draining, journal.Active)
		if err := r.Retire(t.Context(), who, "", forced); !errors.Is(err, errAway) {
			t.Errorf("error is %v", err)
		}
		looks(t, r, 3)
		want(t, w, journal.Draining, journal.Active)
		if s, err := r.Status(t.Context()); err != nil || s.Failure == nil || w.issuing != w.root(0).ID {
			t.Errorf("status is %+v, %v", s, err)
		}
		w.fault = func(string) fault { return none }
		looks(t, r, 1)
		if s, err := r.Status(t.Context()); err != nil || s.Failure != nil || w.issuing != w.root(1).ID {
			t.Errorf("status is %+v, %v", s, err)
		}
	})
}

// The key of a root that is on its way is looked at before anybody is told of
// it, and a root without one can be taken back.
func TestAKeyThatIsLost(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		w.fault = func(call string) fault {
			if call == "append" && len(w.records) == 2 {
				return diesBefore // after the root was prepared
			}
			return none
		}
		if err := r.Start(t.Context(), who); err == nil {
			t.Fatal("the process did not die")
		}
		want(t, w, journal.Active, journal.Prepared)
		w.fault = func(string) fault { return none }
		id := w.root(1).ID
		key := w.keys[id]
		delete(w.keys, id)
		r = w.start(t)
		looks(t, r, 2)
		want(t, w, journal.Active, journal.Prepared)
		if s, err := r.Status(t.Context()); err != nil || s.Failure == nil {
			t.Errorf("status is %+v, %v", s, err)
		}
		must(t, r.Abort(t.Context(), who))
		want(t, w, journal.Active, journal.Aborted)
		w.keys[id] = key
	})
}

// A key that cannot be destroyed keeps nothing else from moving.
func TestAKeyThatStays(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, activated(t.Context(), w, r))
		must(t, retire(t.Context(), w, r))
		<-time.After(keyHold)
		w.fault = func(call string) fault {
			if call == "destroy" {
				return fails
			}
			return none
		}
		must(t, r.RunAll(t.Context(), who))
		looks(t, r, 4)
		want(t, w, journal.Retired, journal.Retired, journal.Active)
		if s, err := r.Status(t.Context()); err != nil || s.Failure == nil || s.Roots[0].KeyUntil.IsZero() {
			t.Errorf("status is %+v, %v", s, err)
		}
	})
}
