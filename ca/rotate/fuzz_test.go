package rotate_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// moves are the steps of a root's life, written down once more.
var moves = map[rotate.Act]journal.Phase{rotate.Publish: journal.Prepared, rotate.Activate: journal.Published, rotate.Retire: journal.Draining}

// FuzzNext holds every decision against what it may rest on.
func FuzzNext(f *testing.F) {
	all := []journal.Phase{journal.Prepared, journal.Published, journal.Active, journal.Draining, journal.Retired, journal.Aborted, journal.Trusted}
	made := stateWith(f, append(all, all...)...)
	for i := range 64 {
		f.Add([]byte{byte(i), byte(i * 7), byte(i * 13)}, uint64(i), int64(i)*int64(time.Hour))
	}
	f.Fuzz(func(t *testing.T, phases []byte, seed uint64, after int64) {
		rng := rand.New(rand.NewPCG(seed, 1))
		state := journal.State{TrustDomain: "cluster.local", Sequence: 9, Course: []journal.Course{journal.Manual, journal.Run, journal.Paused}[rng.IntN(3)]}
		for i, b := range phases[:min(len(phases), len(made.Roots))] {
			r := made.Roots[i]
			r.Phase = all[int(b)%len(all)]
			if rng.IntN(4) == 0 {
				gone := began
				r.Destroyed = &gone
			}
			state.Roots = append(state.Roots, r)
		}
		now := began.Add(time.Duration(after))
		pol := policy()
		pol.Automatic = []rotate.Automatic{rotate.Disabled, rotate.Propose, rotate.RunAlone}[rng.IntN(3)]
		seen := fuzzedSeen(rng, state, now)
		step, wait := rotate.Next(state, seen, pol, now)
		again, waitAgain := rotate.Next(state, seen, pol, now)
		if diff := cmp.Diff(step, again, cmpopts.IgnoreUnexported(rotate.Step{})) + cmp.Diff(wait, waitAgain); diff != "" {
			t.Fatalf("the same question has two answers:\n%s", diff)
		}
		if step.Act == "" && (wait.For == "" || wait.Reason == "") {
			t.Fatalf("no step, and no reason why: %+v", wait)
		}
		judge(t, state, seen, pol, now, step)
	})
}

func fuzzedSeen(rng *rand.Rand, state journal.State, now time.Time) rotate.Seen {
	s := rotate.Seen{Summary: census.Summary{
		Consumers: rng.IntN(50), BehindCount: rng.IntN(3), AsideCount: rng.IntN(3), UnseenCount: rng.IntN(2), Restoring: rng.IntN(5) == 0,
		Leaves: map[string]census.Leaves{},
	}}
	for _, r := range state.Roots {
		if rng.IntN(3) == 0 {
			s.Summary.Leaves[r.ID] = census.Leaves{Count: 1 + rng.IntN(3), Until: now.Add(time.Hour)}
		}
	}
	if rng.IntN(4) == 0 {
		s.Places = []rotate.Place{{Name: "file", Held: now.Add(time.Duration(rng.IntN(3)-1) * time.Minute)}}
	}
	if rng.IntN(8) == 0 {
		s.Unsteady = now.Add(time.Minute)
	}
	if n := len(state.Roots); n > 0 && rng.IntN(2) == 0 {
		active, _ := state.ActiveRoot()
		s.Rehearsed = rotate.Rehearsed{Root: state.Roots[rng.IntN(n)].ID, Active: active.ID, Begun: now.Add(-time.Duration(rng.IntN(5)) * time.Minute), Broken: rng.IntN(6) == 0}
	}
	return s
}

// judge says whether a step rests on what it must rest on.
func judge(t *testing.T, state journal.State, seen rotate.Seen, pol rotate.Policy, now time.Time, step rotate.Step) {
	t.Helper()
	root, known := state.Root(step.Root)
	alone := state.Course == journal.Run || pol.Automatic == rotate.RunAlone
	if from, ok := moves[step.Act]; ok && (!known || root.Phase != from) {
		t.Fatalf("%s of a root that is %q", step.Act, root.Phase)
	}
	if step.Act != "" && step.Act != rotate.Revert {
		if now.Before(seen.Unsteady) {
			t.Fatalf("%s by a clock that has jumped", step.Act)
		}
		for _, r := range state.Roots {
			if r.Since.After(now.Add(30 * time.Second)) {
				t.Fatalf("%s by a clock that is behind the journal", step.Act)
			}
		}
		if state.Course == journal.Paused && step.Act != rotate.Destroy {
			t.Fatalf("%s in a pause", step.Act)
		}
	}
	s := seen.Summary
	switch step.Act {
	case "", rotate.Publish, rotate.Revert:
	case rotate.Prepare:
		if !alone || len(state.In(journal.Prepared))+len(state.In(journal.Published)) > 0 {
			t.Fatal("a root is prepared though nobody asked, or while another is on its way")
		}
	case rotate.Activate:
		late := len(seen.Places) > 0 && seen.Places[0].Held.After(now)
		if !alone || s.BehindCount > 0 || late || s.AsideCount*100 > s.Consumers*5 {
			t.Fatalf("gate A was passed: alone %v, %+v, %+v", alone, s, seen.Places)
		}
	case rotate.Rehearse:
		if s.Restoring || s.Leaves[root.ID].Count > 0 || root.Phase != journal.Draining || !seen.Rehearsed.Begun.IsZero() && seen.Rehearsed.Root == root.ID && !seen.Rehearsed.Broken {
			t.Fatalf("a rehearsal begins: %+v, %+v", s, seen.Rehearsed)
		}
	case rotate.Retire:
		r := seen.Rehearsed
		if !alone || s.Restoring || s.Leaves[root.ID].Count > 0 || s.UnseenCount > 0 || r.Root != root.ID || r.Begun.IsZero() || r.Broken {
			t.Fatalf("gate B was passed: alone %v, %+v, %+v", alone, s, r)
		}
	case rotate.Destroy:
		if root.Phase != journal.Retired && root.Phase != journal.Aborted || root.Destroyed != nil || now.Before(root.Since.Add(pol.KeyHold)) {
			t.Fatalf("the key of a root that is %s since %s is destroyed at %s", root.Phase, root.Since, now)
		}
	case rotate.SetCourse:
		if state.Course != journal.Run || step.Course != journal.Manual {
			t.Fatalf("course %s becomes %s", state.Course, step.Course)
		}
	default:
		t.Fatalf("step %q is nobody's but a person's", step.Act)
	}
}
