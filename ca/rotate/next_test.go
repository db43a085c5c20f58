package rotate_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// began is when the active root of the tables was made; its half is 2½ years
// later.
var began = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC) // a Monday

// madeRoot returns a root that was made at began.
func madeRoot(tb testing.TB) journal.Root {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := ca.Certify(ca.Root, trustDomain(tb), key.Public(), ca.Parent{Signer: key}, rootLifetime, began)
	if err != nil {
		tb.Fatal(err)
	}
	return journal.Root{ID: hex.EncodeToString(cert.SubjectKeyId), Certificate: cert.Raw, KeyURI: "softkms:path=x", Since: began}
}

// stateWith gives a state with a root in each of the phases, the oldest first.
func stateWith(tb testing.TB, phases ...journal.Phase) journal.State {
	tb.Helper()
	s := journal.State{TrustDomain: "cluster.local", Number: 9, Sequence: 5, Course: journal.Manual}
	for i, p := range phases {
		r := madeRoot(tb)
		r.Phase, r.Since = p, began.Add(time.Duration(i)*time.Minute)
		if p != journal.Prepared {
			r.Sequence = uint64(i + 1)
		}
		if p == journal.Trusted {
			r.KeyURI = ""
		}
		s.Roots = append(s.Roots, r)
	}
	return s
}

func consumer(tb testing.TB, name string) census.Consumer {
	tb.Helper()
	id, err := attest.NewIdentity(trustDomain(tb), "shop", name)
	if err != nil {
		tb.Fatal(err)
	}
	return census.Consumer{
		Door: "sds", Identity: id, Instance: attest.Instance{Cluster: "Kubernetes", PodUID: "uid-" + name},
		Pod: attest.PodRef{Namespace: "shop", Name: name, UID: "uid-" + name}, Node: "node-1", Confirmed: 1, Seen: began,
	}
}

func TestNext(t *testing.T) {
	t.Parallel()
	now := began.Add(time.Hour)
	const (
		a = journal.Active
		p = journal.Published
		d = journal.Draining
	)
	behind := census.Summary{Consumers: 40, Confirmed: 38, BehindCount: 2, Behind: []census.Consumer{consumer(t, "cart")}, Earliest: now.Add(time.Minute)}
	type row struct {
		name   string
		phases []journal.Phase
		course journal.Course
		auto   rotate.Automatic
		seen   func(*rotate.Seen, *journal.State)
		policy func(*rotate.Policy)
		now    time.Time
		act    rotate.Act
		root   int
		wait   string
		says   string
		until  time.Time
	}
	rehearsed := func(change func(*rotate.Rehearsed)) func(*rotate.Seen, *journal.State) {
		return func(s *rotate.Seen, st *journal.State) {
			active, _ := st.ActiveRoot()
			s.Rehearsed = rotate.Rehearsed{Root: st.Roots[0].ID, Active: active.ID, Begun: now.Add(-time.Minute)}
			change(&s.Rehearsed)
		}
	}
	tests := []row{
		{name: "no root", wait: rotate.ForJournal, says: "no active root"},
		{name: "nothing is due", phases: []journal.Phase{a}, wait: rotate.ForNothing, says: "half of the root's life", until: began.Add((rootLifetime - time.Hour) / 2)},
		{name: "nothing is ever due", phases: []journal.Phase{a}, auto: rotate.Disabled, now: began.Add(rootLifetime), wait: rotate.ForNothing},
		{name: "half of its life: proposed", phases: []journal.Phase{a}, now: began.Add(rootLifetime / 2), wait: rotate.ForPerson, says: "a rotation is due"},
		{name: "half of its life: begun", phases: []journal.Phase{a}, auto: rotate.RunAlone, now: began.Add(rootLifetime / 2), act: rotate.Prepare, root: -1},
		{name: "half of its life, out of the window", phases: []journal.Phase{a}, auto: rotate.RunAlone, now: began.Add(rootLifetime / 2).Truncate(24 * time.Hour),
			policy: func(p *rotate.Policy) { p.Windows = []rotate.Window{parseWindow(t, "10:00-11:00")} }, wait: rotate.ForWindow,
			until: began.Add(rootLifetime / 2).Truncate(24 * time.Hour).Add(10 * time.Hour)},
		{name: "half of its life, and the last attempt was aborted", phases: []journal.Phase{a, journal.Aborted}, auto: rotate.RunAlone, now: began.Add(rootLifetime / 2),
			policy: func(p *rotate.Policy) { p.KeyHold = 2 * rootLifetime }, wait: rotate.ForPerson, says: "aborted"},
		{name: "half of its life, and an attempt before it was aborted", phases: []journal.Phase{journal.Aborted, a}, auto: rotate.RunAlone, now: began.Add(rootLifetime / 2),
			policy: func(p *rotate.Policy) { p.KeyHold = 2 * rootLifetime }, act: rotate.Prepare, root: -1},
		{name: "prepared", phases: []journal.Phase{a, journal.Prepared}, act: rotate.Publish, root: 1},
		{name: "prepared, and paused", phases: []journal.Phase{a, journal.Prepared}, course: journal.Paused, wait: rotate.ForPerson, says: "paused"},
		{name: "gate A is shut", phases: []journal.Phase{a, p}, course: journal.Run, seen: func(s *rotate.Seen, _ *journal.State) { s.Summary = behind },
			wait: rotate.ForGateA, says: "2 of 40 consumers have not confirmed", until: now.Add(time.Minute)},
		{name: "gate A is open", phases: []journal.Phase{a, p}, course: journal.Run, act: rotate.Activate, root: 1},
		{name: "gate A is open, by policy", phases: []journal.Phase{a, p}, auto: rotate.RunAlone, act: rotate.Activate, root: 1},
		{name: "gate A is open, and a person decides", phases: []journal.Phase{a, p}, wait: rotate.ForPerson, says: "gate A is open"},
		{name: "gate A is open, and paused", phases: []journal.Phase{a, p}, auto: rotate.RunAlone, course: journal.Paused, wait: rotate.ForPerson},
		{name: "5 % set aside", phases: []journal.Phase{a, p}, course: journal.Run,
			seen: func(s *rotate.Seen, _ *journal.State) {
				s.Summary = census.Summary{Consumers: 40, Confirmed: 38, AsideCount: 2}
			}, act: rotate.Activate, root: 1},
		{name: "more than 5 % set aside", phases: []journal.Phase{a, p}, course: journal.Run,
			seen: func(s *rotate.Seen, _ *journal.State) {
				s.Summary = census.Summary{Consumers: 40, Confirmed: 37, AsideCount: 3}
			}, wait: rotate.ForGateA, says: "more than 5 %"},
		{name: "the ledger is not read", phases: []journal.Phase{a, p}, course: journal.Run,
			seen: func(s *rotate.Seen, _ *journal.State) {
				s.Summary = census.Summary{Consumers: 1, BehindCount: 1, Restoring: true}
			}, wait: rotate.ForGateA, says: "the ledger is not read"},
		{name: "a file is not written", phases: []journal.Phase{a, p}, course: journal.Run,
			seen: func(s *rotate.Seen, _ *journal.State) {
				s.Places = []rotate.Place{{Name: "file", Why: "disk full"}}
			}, wait: rotate.ForGateA, says: "1 of 1"},
		{name: "a file is not read by all", phases: []journal.Phase{a, p}, course: journal.Run,
			seen: func(s *rotate.Seen, _ *journal.State) {
				s.Places = []rotate.Place{{Name: "file", Held: now.Add(time.Hour)}}
			}, wait: rotate.ForGateA, until: now.Add(time.Hour)},
		{name: "a file is read by all", phases: []journal.Phase{a, p}, course: journal.Run,
			seen: func(s *rotate.Seen, _ *journal.State) { s.Places = []rotate.Place{{Name: "file", Held: now}} }, act: rotate.Activate, root: 1},
		{name: "leaves are left", phases: []journal.Phase{d, a}, course: journal.Run,
			seen: func(s *rotate.Seen, st *journal.State) {
				s.Summary.Leaves = map[string]census.Leaves{st.Roots[0].ID: {Count: 7, Until: now.Add(time.Hour)}}
			}, wait: rotate.ForGateB, says: "7 leaves", until: now.Add(time.Hour)},
		{name: "who holds leaves is not known", phases: []journal.Phase{d, a}, course: journal.Run,
			seen: func(s *rotate.Seen, _ *journal.State) { s.Summary.Restoring = true }, wait: rotate.ForRehearsal, says: "ledger"},
		{name: "rehearsal", phases: []journal.Phase{d, a}, act: rotate.Rehearse, root: 0},
		{name: "rehearsal out of the window", phases: []journal.Phase{d, a}, policy: func(p *rotate.Policy) { p.Windows = []rotate.Window{parseWindow(t, "Sun 10:00-11:00")} },
			wait: rotate.ForWindow, until: time.Date(2026, 3, 8, 10, 0, 0, 0, time.UTC)},
		{name: "the oldest first", phases: []journal.Phase{d, d, a}, act: rotate.Rehearse, root: 0},
		{name: "rehearsal is on", phases: []journal.Phase{d, a}, seen: func(s *rotate.Seen, st *journal.State) {
			rehearsed(func(*rotate.Rehearsed) {})(s, st)
			s.Summary = census.Summary{Consumers: 3, UnseenCount: 1}
		}, wait: rotate.ForRehearsal, says: "1 of 3 consumers have not come back", until: now.Add(time.Minute)},
		{name: "rehearsal has failed", phases: []journal.Phase{d, a}, seen: func(s *rotate.Seen, st *journal.State) {
			rehearsed(func(r *rotate.Rehearsed) { r.Begun = now.Add(-window) })(s, st)
			s.Summary = census.Summary{Consumers: 3, UnseenCount: 1}
		}, act: rotate.Revert, root: 0, says: "1 consumer did not come back"},
		{name: "rehearsal could not begin", phases: []journal.Phase{d, a}, seen: rehearsed(func(r *rotate.Rehearsed) { r.Broken, r.Why = true, "no" }), act: rotate.Revert, root: 0, says: "no"},
		{name: "paused while a rehearsal is on", phases: []journal.Phase{d, a}, course: journal.Paused, seen: rehearsed(func(*rotate.Rehearsed) {}), act: rotate.Revert, root: 0},
		{name: "the clock jumps while a rehearsal is on", phases: []journal.Phase{d, a}, seen: func(s *rotate.Seen, st *journal.State) {
			rehearsed(func(*rotate.Rehearsed) {})(s, st)
			s.Unsteady = now.Add(time.Minute)
		}, act: rotate.Revert, root: 0},
		{name: "another root was activated while it is on", phases: []journal.Phase{d, a}, seen: rehearsed(func(r *rotate.Rehearsed) { r.Active = "other" }), act: rotate.Revert, root: 0},
		{name: "pause after a rehearsal", phases: []journal.Phase{d, a}, seen: rehearsed(func(r *rotate.Rehearsed) { r.Begun, r.Failed, r.Why = time.Time{}, now.Add(-time.Minute), "1 missing" }),
			wait: rotate.ForRehearsal, says: "1 missing", until: now.Add(pause - time.Minute)},
		{name: "next rehearsal", phases: []journal.Phase{d, a}, seen: rehearsed(func(r *rotate.Rehearsed) { r.Begun, r.Failed = time.Time{}, now.Add(-pause) }), act: rotate.Rehearse, root: 0},
		{name: "gate B is open", phases: []journal.Phase{d, a}, course: journal.Run, seen: rehearsed(func(*rotate.Rehearsed) {}), act: rotate.Retire, root: 0},
		{name: "gate B is open, and a person decides", phases: []journal.Phase{d, a}, seen: rehearsed(func(*rotate.Rehearsed) {}), wait: rotate.ForPerson, says: "gate B is open"},
		{name: "old ones go while a new one waits", phases: []journal.Phase{d, a, p}, course: journal.Run, seen: func(s *rotate.Seen, st *journal.State) {
			rehearsed(func(*rotate.Rehearsed) {})(s, st)
			s.Summary = behind
		}, act: rotate.Retire, root: 0},
		{name: "the course is over", phases: []journal.Phase{journal.Retired, a}, course: journal.Run, act: rotate.SetCourse, root: -1},
		{name: "a key is held", phases: []journal.Phase{journal.Retired, a}, now: began.Add(keyHold - time.Second), wait: rotate.ForNothing},
		{name: "a key goes", phases: []journal.Phase{journal.Retired, a}, now: began.Add(keyHold), act: rotate.Destroy, root: 0},
		{name: "a key goes in a pause", phases: []journal.Phase{journal.Retired, a}, course: journal.Paused, now: began.Add(keyHold), act: rotate.Destroy, root: 0},
		{name: "a key of an aborted root goes", phases: []journal.Phase{a, journal.Aborted}, now: began.Add(keyHold + time.Minute), act: rotate.Destroy, root: 1},
		{name: "a key goes last", phases: []journal.Phase{journal.Retired, a, p}, course: journal.Run, now: began.Add(keyHold), act: rotate.Activate, root: 2},
		{name: "the clock is behind the journal", phases: []journal.Phase{a, p}, course: journal.Run, now: began.Add(29 * time.Second), wait: rotate.ForClock, says: "ClockSkew", until: began.Add(time.Minute)},
		{name: "the clock is nearly right", phases: []journal.Phase{a, p}, course: journal.Run, now: began.Add(31 * time.Second), act: rotate.Activate, root: 1},
		{name: "the clock has jumped", phases: []journal.Phase{a, p}, course: journal.Run, seen: func(s *rotate.Seen, _ *journal.State) { s.Unsteady = now.Add(time.Minute) }, wait: rotate.ForClock, until: now.Add(time.Minute)},
		{name: "the clock has jumped, and a key is due", phases: []journal.Phase{journal.Retired, a}, now: began.Add(keyHold), seen: func(s *rotate.Seen, _ *journal.State) { s.Unsteady = now.Add(keyHold) }, wait: rotate.ForClock},
		{name: "a trusted root has no key to go", phases: []journal.Phase{a, journal.Trusted}, wait: rotate.ForNothing},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			state, seen, pol, at := stateWith(t, tt.phases...), rotate.Seen{}, policy(), tt.now
			if tt.course != "" {
				state.Course = tt.course
			}
			if tt.auto != "" {
				pol.Automatic = tt.auto
			}
			if tt.policy != nil {
				tt.policy(&pol)
			}
			if tt.seen != nil {
				tt.seen(&seen, &state)
			}
			if at.IsZero() {
				at = now
			}
			step, wait := rotate.Next(state, seen, pol, at)
			want := ""
			if tt.act != "" && tt.root >= 0 {
				want = state.Roots[tt.root].ID
			}
			if step.Act != tt.act || tt.act != "" && step.Root != want {
				t.Fatalf("step is %+v, want %s of %q; wait is %+v", step, tt.act, want, wait)
			}
			if tt.act == "" && (wait.For != tt.wait || wait.Reason == "") {
				t.Errorf("wait is %+v, want %s with a reason", wait, tt.wait)
			}
			if text := wait.Reason + step.Failed; !strings.Contains(text, tt.says) {
				t.Errorf("it says %q, want %q", text, tt.says)
			}
			if !tt.until.IsZero() && !wait.Until.Equal(tt.until) {
				t.Errorf("it waits until %s, want %s", wait.Until, tt.until)
			}
			if wait.For == rotate.ForPerson && wait.Mend == "" {
				t.Errorf("a person is waited for and not told what to do: %+v", wait)
			}
		})
	}
}

// Who no longer holds the gate is named in the journal.
func TestNextNamesThoseSetAside(t *testing.T) {
	t.Parallel()
	state := stateWith(t, journal.Active, journal.Published)
	state.Course = journal.Run
	seen := rotate.Seen{Summary: census.Summary{Consumers: 100, Confirmed: 98, AsideCount: 2, Aside: []census.Consumer{consumer(t, "cart"), consumer(t, "till")}}}
	step, _ := rotate.Next(state, seen, policy(), began.Add(time.Hour))
	want := rotate.Step{Act: rotate.Activate, Root: state.Roots[1].ID, Passed: &journal.Passed{Count: 2, Behind: []string{
		"shop/cart (uid-cart) at sds, node node-1", "shop/till (uid-till) at sds, node node-1",
	}}}
	if diff := cmp.Diff(want, step, cmpopts.IgnoreUnexported(rotate.Step{})); diff != "" {
		t.Error(diff)
	}
}

func parseWindow(tb testing.TB, s string) rotate.Window {
	tb.Helper()
	w, err := rotate.ParseWindow(s)
	if err != nil {
		tb.Fatal(err)
	}
	return w
}
