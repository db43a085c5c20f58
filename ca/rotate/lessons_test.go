package rotate_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// Lesson: the key was used again on rotation.
func TestLessonNoKeyIsUsedAgain(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		for range 3 {
			must(t, activated(t.Context(), w, r))
		}
		seen := map[string]bool{}
		for i := range w.state.Roots {
			cert, err := x509.ParseCertificate(w.root(i).Certificate)
			must(t, err)
			for _, s := range []string{string(cert.RawSubjectPublicKeyInfo), string(cert.RawSubject)} {
				if seen[s] {
					t.Errorf("root %d has the key or the name of another", i)
				}
				seen[s] = true
			}
		}
		// A maker that gives the same key again is refused by the journal, and
		// the key that is in use is not destroyed as one that nobody needs.
		cfg := w.config(prometheus.NewRegistry())
		again := &sameKey{Keys: cfg.Keys, root: w.root(3)}
		cfg.Keys = again
		forgetful, err := rotate.New(cfg)
		must(t, err)
		if err := forgetful.Start(t.Context(), who); err == nil || !strings.Contains(err.Error(), "has the key of root") {
			t.Errorf("error is %v", err)
		}
		if again.destroyed {
			t.Error("the key of the active root was destroyed")
		}
	})
}

// Lesson: replicas that each notice on their own tick. Two that look at the same
// journal take each step once.
func TestLessonStepsAreTakenOnce(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, _ *rotate.Runner) {
		w.policy.Automatic = rotate.RunAlone
		<-time.After(rootLifetime / 2)
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			r, err := rotate.New(w.config(prometheus.NewRegistry()))
			must(t, err)
			go r.Run(ctx)
		}
		<-time.After(5 * interval)
		cancel()
		synctest.Wait()
		want(t, w, journal.Retired, journal.Active)
	})
}

// Lesson: a new root was handed out by one bad replica for two hours. Nothing of
// a step is used before it is durable.
func TestLessonNothingIsUsedBeforeItIsDurable(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{fails, unknown, diesBefore} {
		inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
			w.fault = func(call string) fault {
				if call == "append" {
					return f
				}
				return none
			}
			if err := r.Start(t.Context(), who); err == nil {
				t.Error("the command succeeded")
			}
			if len(w.bundle) > 1 || w.sequence > 1 {
				t.Errorf("fault %d: a root was given out that is not in the journal", f)
			}
		})
	}
}

// Lesson: a journal error that is only logged while signing goes on. It comes
// back to whoever asked, shows in status and metrics, and nothing moves.
func TestLessonJournalErrorsAreNotOnlyLogged(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, _ *rotate.Runner) {
		reg := prometheus.NewRegistry()
		r, err := rotate.New(w.config(reg))
		must(t, err)
		looks(t, r, 1)
		away := map[string]fault{"append": unknown}
		w.fault = func(call string) fault {
			f := away[call]
			if call == "append" {
				away["load"] = fails // so that nobody can tell
			}
			return f
		}
		err = r.Start(t.Context(), who)
		refused(t, err, "is not known, and it cannot be read", "until it can be read again")
		if !errors.Is(err, journal.ErrStateUnknown) || !errors.Is(err, errAway) {
			t.Errorf("what stands behind it is lost: %v", err)
		}
		made := count(w, "make")
		looks(t, r, 5)
		refused(t, r.Start(t.Context(), who), "not known", "")
		if count(w, "make") != made || count(w, "append") != 1 {
			t.Error("something moved")
		}
		s, err := r.Status(t.Context())
		if err == nil || s.Frozen == nil || s.Frozen.Step != rotate.Prepare || s.Frozen.Record != 2 || s.Failure == nil {
			t.Errorf("status is %+v, %v", s, err)
		}
		if got := gauge(t, reg, "hallmark_rotation_frozen"); got != 1 {
			t.Errorf("frozen is %v", got)
		}
		clear(away)
		looks(t, r, 1) // the truth: it was not stored
		if s, err := r.Status(t.Context()); err != nil || s.Frozen != nil || s.Failure != nil {
			t.Errorf("status is %+v, %v", s, err)
		}
		if got := gauge(t, reg, "hallmark_rotation_frozen"); got != 0 {
			t.Errorf("frozen is %v", got)
		}
		w.fault = func(string) fault { return none }
		must(t, r.Start(t.Context(), who))
	})
}

// Lesson: only one old root can be addressed. Any number drain at a time, each
// by its id.
func TestLessonEachOldRootIsAddressable(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		for range 3 {
			must(t, activated(t.Context(), w, r))
		}
		want(t, w, journal.Draining, journal.Draining, journal.Draining, journal.Active)
		s, err := r.Status(t.Context())
		must(t, err)
		if len(s.Gates) != 3 {
			t.Errorf("%d gates are shown", len(s.Gates))
		}
		must(t, r.Retire(t.Context(), who, w.root(1).ID, forced))
		want(t, w, journal.Draining, journal.Retired, journal.Draining, journal.Active)
		must(t, r.Retire(t.Context(), who, w.root(0).ID, rotate.Force{}))
		must(t, r.Retire(t.Context(), who, w.root(2).ID, rotate.Force{}))
		want(t, w, journal.Retired, journal.Retired, journal.Retired, journal.Active)
		if n := count(w, "begin"); n != 2 {
			t.Errorf("%d rehearsals, want one for each root that was not forced", n)
		}
	})
}

// Lesson: an operator guessing when it is safe to go on.
func TestLessonStatusSaysWhenItIsSafe(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, r.Start(t.Context(), who))
		soon, late := w.Now().Add(time.Minute).UTC(), w.Now().Add(time.Hour).UTC()
		w.summary = func(q census.Question) census.Summary {
			return census.Summary{Consumers: 212, Confirmed: 209, BehindCount: 3, Behind: []census.Consumer{consumer(t, "cart")}, Earliest: soon, Latest: late}
		}
		s, err := r.Status(t.Context())
		must(t, err)
		text, err := json.Marshal(s)
		must(t, err)
		for _, says := range []string{
			`"phase":"published"`, `"name":"A"`, `"consumers":212,"confirmed":209,"behindCount":3`,
			`"door":"sds","identity":"spiffe://cluster.local/ns/shop/sa/cart","namespace":"shop","pod":"cart","uid":"uid-cart","node":"node-1"`,
			`"earliest":"` + soon.Format(time.RFC3339Nano) + `","latest":"` + late.Format(time.RFC3339Nano) + `"`,
			`"wait":{"for":"gate-a","next":"activate","root":"` + w.root(1).ID + `","reason":"gate A is shut: 3 of 212 consumers`,
		} {
			if !strings.Contains(string(text), says) {
				t.Errorf("status does not say %s:\n%s", says, text)
			}
		}
	})
}

// Lesson: clocks. One that is wrong for a moment takes nothing out that is
// needed, and destroys no key.
func TestLessonAClockThatJumps(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, activated(t.Context(), w, r))
		must(t, retire(t.Context(), w, r))
		looks(t, r, 1)
		w.jump(100 * keyHold)
		looks(t, r, 10)
		w.jump(-100 * keyHold)
		looks(t, r, 10)
		if count(w, "destroy") > 0 {
			t.Error("a key was destroyed by a clock that was wrong for ten minutes")
		}
		w.jump(100 * keyHold) // now it stays
		looks(t, r, int(settle/interval)+2)
		if count(w, "destroy") != 1 {
			t.Error("a key outlives its hold")
		}
	})
}

// A clock that is set back is noticed, and one that is set before the first look.
func TestAClockThatJumpsIsNoticed(t *testing.T) {
	t.Parallel()
	for _, by := range []time.Duration{31 * time.Second, -31 * time.Second, time.Hour, -time.Hour} {
		inBubble(t, func(t *testing.T, w *world, _ *rotate.Runner) {
			<-time.After(10 * time.Hour)
			r := w.start(t)
			w.jump(by)
			refused(t, r.Start(t.Context(), who), "the clock has jumped", "wait")
			<-time.After(settle - time.Second)
			refused(t, r.Start(t.Context(), who), "the clock has jumped", "wait")
			<-time.After(time.Second)
			must(t, r.Start(t.Context(), who))
		})
	}
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		w.jump(29 * time.Second) // as far as peers may be off
		must(t, r.Start(t.Context(), who))
	})
}

// A step that was reported failed and was stored is done, and its command says so.
func TestAStepThatWasStoredAllTheSame(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]func(context.Context, *world, *rotate.Runner) error{
		"activate": activate, "abort": func(ctx context.Context, _ *world, r *rotate.Runner) error { return r.Abort(ctx, who) }, "trust": trust,
	} {
		inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
			must(t, r.Start(t.Context(), who))
			records, once := len(w.records), false
			w.fault = func(call string) fault {
				if call != "append" || once {
					return none
				}
				once = true
				return unknownYet
			}
			if err := command(t.Context(), w, r); err != nil || len(w.records) != records+1 {
				t.Errorf("%s: error is %v, %d records more", name, err, len(w.records)-records)
			}
		})
	}
}

// Lesson: the age of the root is seen by nobody.
func TestLessonTheRootsAgeIsAnAlert(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, _ *rotate.Runner) {
		reg := prometheus.NewRegistry()
		w.policy.Automatic = rotate.Disabled
		r, err := rotate.New(w.config(reg))
		must(t, err)
		begin := time.Now()
		for _, tt := range []struct{ after, percent float64 }{{0, 0}, {0.49, 0}, {0.501, 50}, {0.749, 50}, {0.751, 75}, {0.901, 90}, {0.969, 90}, {0.971, 97}, {1.2, 97}} {
			<-time.After(time.Until(begin.Add(time.Duration(tt.after * float64(rootLifetime)))))
			looks(t, r, 1)
			if got := gauge(t, reg, "hallmark_rotation_root_life_alert_percent"); got != tt.percent {
				t.Errorf("after %v of its life the alert is at %v percent, want %v", tt.after, got, tt.percent)
			}
			s, err := r.Status(t.Context())
			must(t, err)
			if s.Roots[0].Alert != int(tt.percent) {
				t.Errorf("status says %d percent", s.Roots[0].Alert)
			}
		}
	})
}

// A journal that does not continue what was seen moves nothing.
func TestRolledBackJournal(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, r.Start(t.Context(), who))
		records := w.records[:2:2]
		state, err := journal.Replay(records)
		must(t, err)
		w.records, w.state = records, state
		if err := r.Abort(t.Context(), who); !errors.Is(err, journal.ErrRolledBack) {
			t.Errorf("error is %v", err)
		}
		if len(w.records) != 2 {
			t.Error("it was written to")
		}
	})
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, _ *rotate.Runner) {
		reg := prometheus.NewRegistry()
		r, err := rotate.New(w.config(reg))
		must(t, err)
		w.summary = func(census.Question) census.Summary {
			return census.Summary{Consumers: 9, Confirmed: 6, BehindCount: 2, AsideCount: 1}
		}
		must(t, r.Start(t.Context(), who))
		looks(t, r, 1)
		got := values(t, reg)
		for name, value := range map[string]float64{
			"hallmark_rotation_gate_consumers A": 9, "hallmark_rotation_gate_confirmed A": 6, "hallmark_rotation_gate_behind A": 2, "hallmark_rotation_gate_aside A": 1,
			"hallmark_rotation_gate_consumers B": 0, "hallmark_rotation_gate_aside B": 0,
			"hallmark_rotation_phase published": 1, "hallmark_rotation_phase idle": 0, "hallmark_rotation_phase prepared": 0, "hallmark_rotation_phase draining": 0,
			"hallmark_rotation_steps_total done prepare": 1, "hallmark_rotation_steps_total done publish": 1,
		} {
			if v, ok := got[name]; !ok || v != value {
				t.Errorf("%s is %v (%v), want %v", name, v, ok, value)
			}
		}
		w.fault = func(call string) fault {
			if call == "append" {
				return fails
			}
			return none
		}
		if err := r.Abort(t.Context(), who); !errors.Is(err, errAway) {
			t.Errorf("error is %v", err)
		}
		if got := values(t, reg)["hallmark_rotation_steps_total failed abort"]; got != 1 {
			t.Errorf("%v failed steps", got)
		}
	})
}

// values returns the metrics by name and label values.
func values(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	must(t, err)
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

func gauge(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	v, ok := values(t, reg)[name]
	if !ok {
		t.Fatalf("there is no metric %s", name)
	}
	return v
}
