package rotate_test

import (
	"strings"
	"testing"

	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// A rehearsal is held when the last leaf is gone, taken back when somebody does
// not return, and held again after a pause or when a person says so.
func TestRehearsal(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, activated(t.Context(), w, r))
		w.summary = func(q census.Question) census.Summary {
			s := census.Summary{Consumers: 3, Confirmed: 3}
			if !q.SeenSince.IsZero() {
				s.UnseenCount, s.Unseen = 1, []census.Consumer{consumer(t, "pinned")}
			}
			return s
		}
		looks(t, r, 1)
		if !w.rehearsal || w.serving != w.root(1).ID {
			t.Fatal("no rehearsal is on")
		}
		gate := gateOf(t, r, "B")
		if gate.Open || gate.BehindCount != 1 || gate.Behind[0].Pod != "pinned" || gate.Confirmed != 2 {
			t.Errorf("while it is on, gate B is %+v", gate)
		}
		refused(t, retire(t.Context(), w, r), "1 of 3 consumers have not come back", "wait")
		looks(t, r, 4)
		if w.rehearsal || w.serving != w.root(0).ID {
			t.Fatal("the old certificate is not presented again")
		}
		if gate = gateOf(t, r, "B"); gate.Open || gate.BehindCount != 1 || gate.Behind[0].Pod != "pinned" || !strings.Contains(gate.Why, "did not come back") {
			t.Errorf("after it failed, gate B is %+v", gate)
		}
		begun := count(w, "begin")
		looks(t, r, 5)
		if count(w, "begin") != begun {
			t.Error("it was held again before the pause was over")
		}
		// A person asks for the next one at once.
		refused(t, retire(t.Context(), w, r), "the rehearsal is on", "wait")
		if count(w, "begin") != begun+1 {
			t.Error("it was not held when a person said so")
		}
		looks(t, r, 4)
		looks(t, r, int(pause/interval)+2)
		if count(w, "begin") != begun+2 {
			t.Error("it was not held again after the pause")
		}
		w.summary = func(census.Question) census.Summary { return census.Summary{Consumers: 3, Confirmed: 3} }
		looks(t, r, 1)
		want(t, w, journal.Draining, journal.Active) // a person decides
		must(t, retire(t.Context(), w, r))
		want(t, w, journal.Retired, journal.Active)
	})
}

// What of a rehearsal fails is taken back, and tried until it is.
func TestRehearsalThatFails(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, activated(t.Context(), w, r))
		w.fault = func(call string) fault {
			switch {
			case call == "begin":
				return failsDone // it is presented, and yet it failed
			case call == "revert" && count2(w.calls, "revert") < 3:
				return fails
			}
			return none
		}
		looks(t, r, 5)
		if w.rehearsal || w.serving != w.root(0).ID || count(w, "begin") != 1 || count(w, "revert") != 3 {
			t.Errorf("it is presented: %v; calls %v", w.rehearsal, w.calls)
		}
		if gate := gateOf(t, r, "B"); !strings.Contains(gate.Why, "presenting the certificate failed") {
			t.Errorf("gate B is %+v", gate)
		}
		w.fault = func(string) fault { return none }
		must(t, r.Pause(t.Context(), who))
		must(t, r.Resume(t.Context(), who))
		must(t, retire(t.Context(), w, r))
	})
}

// Once it is being taken back it cannot pass: whoever is seen then may have come
// back to the old certificate.
func TestRehearsalThatCannotBeTakenBack(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, activated(t.Context(), w, r))
		w.summary = func(q census.Question) census.Summary {
			s := census.Summary{Consumers: 1, Confirmed: 1}
			if !q.SeenSince.IsZero() && !w.reverted {
				s.UnseenCount, s.Unseen = 1, []census.Consumer{consumer(t, "pinned")}
			}
			return s
		}
		w.fault = func(call string) fault {
			if call == "revert" {
				return failsDone // the old one is presented, and nobody knows
			}
			return none
		}
		looks(t, r, 5)
		if !w.reverted {
			t.Fatal("it was not taken back")
		}
		refused(t, retire(t.Context(), w, r), "is being taken back", "")
		if gate := gateOf(t, r, "B"); gate.Open {
			t.Errorf("gate B is %+v", gate)
		}
		w.fault = func(string) fault { return none }
		looks(t, r, 1)
		if gate := gateOf(t, r, "B"); gate.BehindCount != 1 || gate.Behind[0].Pod != "pinned" {
			t.Errorf("who was behind is forgotten: %+v", gate)
		}
		want(t, w, journal.Draining, journal.Active)
	})
}

// What was shown under one root proves nothing about the next.
func TestRehearsalOfAnotherRoot(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, activated(t.Context(), w, r))
		looks(t, r, 1)
		if gate := gateOf(t, r, "B"); !gate.Open {
			t.Fatalf("gate B is %+v", gate)
		}
		must(t, activated(t.Context(), w, r))
		if gate := gateOf(t, r, "B"); gate.Open || count(w, "begin") != 1 {
			t.Fatalf("gate B is %+v", gate)
		}
		looks(t, r, 2)
		if gate := gateOf(t, r, "B"); !gate.Open || count(w, "revert") != 1 || count(w, "begin") != 2 {
			t.Errorf("gate B is %+v", gate)
		}
	})
}
