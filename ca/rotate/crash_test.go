package rotate_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// goal is a command, and when it need not be given again.
type goal struct {
	name    string
	command func(context.Context, *world, *rotate.Runner) error
	met     func([]journal.Phase) bool
}

func lives(p journal.Phase) func([]journal.Phase) bool {
	return func(phases []journal.Phase) bool { return slices.Contains(phases, p) }
}

func untrust(ctx context.Context, w *world, r *rotate.Runner) error {
	for i, p := range w.phases() {
		if p == journal.Trusted {
			return r.Untrust(ctx, who, w.root(i).ID, forced)
		}
	}
	return nil
}

// lifetimes are the lives that are cut at every call.
var lifetimes = []struct {
	name  string
	goals []goal
	end   []journal.Phase
}{
	{"a whole life", []goal{
		{"start", start, lives(journal.Published)},
		{"activate", activate, lives(journal.Draining)},
		{"retire", retire, lives(journal.Retired)},
	}, []journal.Phase{journal.Retired, journal.Active}},
	{"by itself", []goal{
		{"run", func(ctx context.Context, _ *world, r *rotate.Runner) error { return r.RunAll(ctx, who) }, lives(journal.Retired)},
	}, []journal.Phase{journal.Retired, journal.Active}},
	{"forced", []goal{
		{"start", start, lives(journal.Published)},
		{"activate", func(ctx context.Context, _ *world, r *rotate.Runner) error { return r.Activate(ctx, who, forced) }, lives(journal.Draining)},
		{"retire", func(ctx context.Context, _ *world, r *rotate.Runner) error { return r.Retire(ctx, who, "", forced) }, lives(journal.Retired)},
	}, []journal.Phase{journal.Retired, journal.Active}},
	{"aborted", []goal{
		{"start", start, lives(journal.Published)},
		{"abort", func(ctx context.Context, _ *world, r *rotate.Runner) error { return r.Abort(ctx, who) }, lives(journal.Aborted)},
	}, []journal.Phase{journal.Active, journal.Aborted}},
	{"only trusted", []goal{
		{"trust", trust, lives(journal.Trusted)},
		{"untrust", untrust, lives(journal.Retired)},
	}, []journal.Phase{journal.Active, journal.Retired}},
}

// TestEveryCut fails each call of each life in every way, once: what was not
// stored, what was and was reported as failed, and the end of the process before
// and after it. A new process on the same store brings each to the same end.
func TestEveryCut(t *testing.T) {
	t.Parallel()
	for _, life := range lifetimes {
		t.Run(life.name, func(t *testing.T) {
			t.Parallel()
			var calls []string
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				liveOut(t, w, life.goals)
				w.prove(t)
				want(t, w, life.end...)
				calls = w.calls
			})
			if len(calls) < 10 {
				t.Fatalf("only %d calls: the life was not lived", len(calls))
			}
			for at, call := range calls {
				if call == "load" && at+1 < len(calls) && calls[at+1] == "load" {
					continue // nothing came of it
				}
				if testing.Short() && at%4 != 0 {
					continue
				}
				for _, f := range []fault{fails, unknown, unknownYet, failsDone, rival, diesBefore, diesAfter} {
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(t)
						what := ""
						w.fault = func(call string) fault {
							if len(w.calls) != at+1 || what != "" {
								return none
							}
							what = call
							return f
						}
						liveOut(t, w, life.goals)
						w.prove(t)
						if diff := w.phases(); !slices.Equal(settled(diff), settled(life.end)) {
							t.Errorf("call %d (%s), fault %d: the end is %v, want %v", at, what, f, diff, life.end)
						}
						if t.Failed() {
							t.Logf("%s, call %d (%s), fault %d", life.name, at, what, f)
						}
					})
				}
			}
		})
	}
}

// settled leaves out roots that were on their way when a command was cut that a
// person then gave once more.
func settled(phases []journal.Phase) []journal.Phase {
	out := slices.Clone(phases)
	slices.Sort(out)
	return out
}

// liveOut gives each command until its goal is met, by new processes where one
// has ended, and waits until no key is left that has to go.
func liveOut(t *testing.T, w *world, goals []goal) {
	t.Helper()
	w.policy.KeyHold = 10 * time.Minute
	c := &trial{world: w, t: t, rng: rand.New(rand.NewPCG(1, 1)), stop: func() {}}
	c.m = w.populate(c.rng, 2)
	c.restart()
	for _, g := range goals {
		for tries := 0; !g.met(w.phases()); tries++ {
			if tries == 60 {
				t.Fatalf("%s does not come about: %v", g.name, w.phases())
			}
			c.revive()
			err := g.command(t.Context(), w, c.r)
			c.pass(2)
			if err == nil && g.name != "run" && !g.met(w.phases()) {
				t.Errorf("%s reported success, and nothing of it is there: %v", g.name, w.phases())
			}
			if g.name == "run" {
				c.pass(10)
			}
		}
	}
	for range 6 {
		if !c.over() {
			c.pass(10)
		}
	}
	if !c.over() {
		t.Errorf("a key is left: %v", fmt.Sprint(w.phases()))
	}
	c.stop()
}
