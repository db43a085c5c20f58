package journal_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

// life is a journal with any number of roots, all of whose keys are at hand.
type life struct {
	tb      testing.TB
	records []journal.Record
	state   journal.State
	keys    map[string]journal.Signer
	certs   map[string]*x509.Certificate
	now     time.Time
}

// begin founds a journal.
func begin(tb testing.TB) *life {
	tb.Helper()
	l := &life{tb: tb, keys: map[string]journal.Signer{}, certs: map[string]*x509.Certificate{}, now: time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)}
	root := l.root(journal.Active)
	l.must(journal.Body{Founded: &root}, root.ID)
	return l
}

// root makes a root that is in no journal yet.
func (l *life) root(phase journal.Phase) journal.Root {
	l.tb.Helper()
	key := catest.Key(l.tb)
	cert := catest.Certify(l.tb, ca.Root, attesttest.Domain(l.tb, "cluster.local"), key, ca.Parent{}, catest.RootLifetime, l.now)
	r := journal.Root{ID: hex.EncodeToString(cert.SubjectKeyId), Certificate: cert.Raw, Phase: phase, Since: l.now}
	if phase != journal.Trusted {
		r.KeyURI = "softkms:path=" + r.ID
	}
	l.keys[r.ID], l.certs[r.ID] = journal.Signer{Root: r.ID, Key: key}, cert
	return r
}

// write has the roots sign what body says, and appends it.
func (l *life) write(body journal.Body, by ...string) error {
	l.now = l.now.Add(time.Minute)
	body.Time, body.TrustDomain, body.By = l.now, "cluster.local", "test"
	var signers []journal.Signer
	for _, id := range by {
		signers = append(signers, l.keys[id])
	}
	rec, err := journal.NewRecord(l.state, body, signers...)
	if err != nil {
		return err
	}
	// What is made must be what a reader makes of it.
	next, err := journal.Replay(append(l.records[:len(l.records):len(l.records)], rec))
	if err != nil {
		l.tb.Fatalf("a record was made that does not replay: %v", err)
	}
	l.records, l.state = append(l.records, rec), next
	return nil
}

func (l *life) must(body journal.Body, by ...string) {
	l.tb.Helper()
	if err := l.write(body, by...); err != nil {
		l.tb.Fatal(err)
	}
}

func (l *life) active() string {
	r, _ := l.state.ActiveRoot()
	return r.ID
}

func (l *life) step(id string, to journal.Phase, also ...string) error {
	return l.write(journal.Body{Step: &journal.Step{Root: id, To: to}}, append(also, l.active())...)
}

// in returns a root that has come to phase, by the shortest way.
func (l *life) in(phase journal.Phase) string {
	l.tb.Helper()
	if phase == journal.Active {
		return l.active()
	}
	first := journal.Prepared
	if phase == journal.Trusted {
		first = journal.Trusted
	}
	r := l.root(first)
	by := []string{l.active()}
	if first == journal.Prepared {
		by = append(by, r.ID)
	}
	l.must(journal.Body{Added: &r}, by...)
	way := map[journal.Phase][]journal.Phase{
		journal.Published: {journal.Published}, journal.Aborted: {journal.Aborted},
		journal.Draining: {journal.Published, journal.Active}, journal.Retired: {journal.Published, journal.Active},
	}[phase]
	for _, to := range way {
		if err := l.step(r.ID, to, r.ID); err != nil {
			l.tb.Fatal(err)
		}
	}
	if phase == journal.Draining || phase == journal.Retired {
		l.in(journal.Published) // another one takes over
		next := l.state.In(journal.Published)[0].ID
		if err := l.step(next, journal.Active, next); err != nil {
			l.tb.Fatal(err)
		}
	}
	if phase == journal.Retired {
		if err := l.step(r.ID, journal.Retired); err != nil {
			l.tb.Fatal(err)
		}
	}
	if got, _ := l.state.Root(r.ID); got.Phase != phase {
		l.tb.Fatalf("the root is %s, want %s", got.Phase, phase)
	}
	return r.ID
}

var phases = []journal.Phase{journal.Prepared, journal.Published, journal.Active, journal.Draining, journal.Retired, journal.Aborted, journal.Trusted}

// Every pair of phases is a step, or refused.
func TestEachStep(t *testing.T) {
	t.Parallel()
	allowed := []string{
		"prepared→published", "prepared→aborted", "published→active", "published→aborted", "draining→retired", "trusted→retired",
	}
	for _, from := range phases {
		for _, to := range append(phases, "", "gone") {
			l := begin(t)
			id := l.in(from)
			before := l.state
			err := l.step(id, to, id)
			name := fmt.Sprintf("%s→%s", from, to)
			if want := slices.Contains(allowed, name); want != (err == nil) {
				t.Errorf("%s: error is %v, want it allowed: %v", name, err, want)
			}
			if err != nil {
				continue
			}
			root, _ := l.state.Root(id)
			if root.Phase != to || !root.Since.Equal(l.now) {
				t.Errorf("%s: the root is %s since %s", name, root.Phase, root.Since)
			}
			// The sequence changes exactly when the bundle does, by one.
			rises := uint64(0)
			if from.InBundle() != to.InBundle() {
				rises = 1
			}
			if l.state.Sequence != before.Sequence+rises {
				t.Errorf("%s: the sequence goes from %d to %d", name, before.Sequence, l.state.Sequence)
			}
			if old, _ := before.Root(id); old.Sequence != 0 && root.Sequence != old.Sequence {
				t.Errorf("%s: the sequence that the root came with goes from %d to %d", name, old.Sequence, root.Sequence)
			}
			if to == journal.Published && root.Sequence != l.state.Sequence {
				t.Errorf("%s: the root came with sequence %d, the bundle has %d", name, root.Sequence, l.state.Sequence)
			}
		}
	}
}

func TestStepOfAnUnknownRoot(t *testing.T) {
	t.Parallel()
	l := begin(t)
	if err := l.step("00", journal.Published); err == nil {
		t.Error("a root was moved that is not known")
	}
}

// An activation is signed by both, and moves the one before.
func TestActivation(t *testing.T) {
	t.Parallel()
	l := begin(t)
	old, next := l.active(), l.in(journal.Published)
	body := func() journal.Body { return journal.Body{Step: &journal.Step{Root: next, To: journal.Active}} }
	for name, by := range map[string][]string{"nobody": {}, "the old one alone": {old}, "the new one alone": {next}} {
		if err := l.write(body(), by...); err == nil || !strings.Contains(err.Error(), "good signature") {
			t.Errorf("signed by %s: error is %v", name, err)
		}
	}
	l.must(body(), old, next)
	was, _ := l.state.Root(old)
	is, _ := l.state.Root(next)
	if was.Phase != journal.Draining || !was.Since.Equal(l.now) || is.Phase != journal.Active || len(l.state.In(journal.Active)) != 1 {
		t.Errorf("after the activation they are %s and %s", was.Phase, is.Phase)
	}
	// From here on the old one's word is worth nothing.
	run := journal.Run
	if err := l.write(journal.Body{Course: &run}, old); err == nil {
		t.Error("a root that drains signed a record")
	}
	l.must(journal.Body{Course: &run}, next)
}

func TestAdded(t *testing.T) {
	t.Parallel()
	with := func(r journal.Root, change func(*journal.Root)) journal.Root {
		change(&r)
		return r
	}
	l := begin(t)
	fresh, foreign := l.root(journal.Prepared), l.root(journal.Trusted)
	known, _ := l.state.ActiveRoot()
	gone := l.now
	// The name of the active root under another key.
	named := l.root(journal.Trusted)
	template := *l.certs[named.ID]
	template.RawSubject, template.RawIssuer = l.certs[known.ID].RawSubject, l.certs[known.ID].RawSubject
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, l.keys[named.ID].Key.Public(), l.keys[named.ID].Key)
	if err != nil {
		t.Fatal(err)
	}
	named.Certificate = der
	for name, r := range map[string]journal.Root{
		"prepared without a key":            with(fresh, func(r *journal.Root) { r.KeyURI = "" }),
		"published at once":                 with(fresh, func(r *journal.Root) { r.Phase = journal.Published }),
		"active at once":                    with(fresh, func(r *journal.Root) { r.Phase = journal.Active }),
		"draining at once":                  with(fresh, func(r *journal.Root) { r.Phase = journal.Draining }),
		"in no phase":                       with(fresh, func(r *journal.Root) { r.Phase = "" }),
		"with a sequence":                   with(fresh, func(r *journal.Root) { r.Sequence = 1 }),
		"with a key that is gone":           with(fresh, func(r *journal.Root) { r.Destroyed = &gone }),
		"under the id of another key":       with(fresh, func(r *journal.Root) { r.ID = foreign.ID }),
		"that is no certificate":            with(fresh, func(r *journal.Root) { r.Certificate = []byte("no") }),
		"that is known":                     with(known, func(r *journal.Root) { r.Phase, r.Sequence = journal.Trusted, 0 }),
		"with the name of another":          named,
		"that is trusted and has a history": with(foreign, func(r *journal.Root) { r.Sequence = 1 }),
	} {
		err := l.write(journal.Body{Added: &r}, l.active(), fresh.ID, foreign.ID)
		if err == nil {
			t.Errorf("a root was added %s", name)
		} else if name == "with the name of another" && !strings.Contains(err.Error(), "has the name of root") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := l.write(journal.Body{Added: &fresh}, l.active()); err == nil {
		t.Error("a root was prepared without a signature of its key")
	}
	l.must(journal.Body{Added: &fresh}, l.active(), fresh.ID)
	if r, _ := l.state.Root(fresh.ID); l.state.Sequence != 1 || r.Sequence != 0 {
		t.Errorf("a root that nobody trusts has sequence %d of %d", r.Sequence, l.state.Sequence)
	}
	// One at a time is on its way; of those that are only trusted, any number.
	second := l.root(journal.Prepared)
	for _, phase := range []journal.Phase{journal.Prepared, journal.Published} {
		if err := l.write(journal.Body{Added: &second}, l.active(), second.ID); err == nil {
			t.Errorf("a root was prepared while another was %s", phase)
		}
		if phase == journal.Prepared {
			if err := l.step(fresh.ID, journal.Published); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.must(journal.Body{Added: &foreign}, l.active())
	if r, _ := l.state.Root(foreign.ID); r.Sequence != 3 || l.state.Sequence != 3 {
		t.Errorf("a root that is trusted has sequence %d of %d", r.Sequence, l.state.Sequence)
	}
}

func TestPassed(t *testing.T) {
	t.Parallel()
	many := slices.Repeat([]string{"shop/cart"}, journal.MaxBehind+1)
	for name, tt := range map[string]struct {
		passed journal.Passed
		ok     bool
	}{
		"nobody by name":       {journal.Passed{Reason: "moved", Count: 3}, true},
		"some by name":         {journal.Passed{Reason: "moved", Count: 3, Behind: many[:2]}, true},
		"as many as may be":    {journal.Passed{Count: len(many), Behind: many[:journal.MaxBehind]}, true},
		"too many":             {journal.Passed{Count: len(many), Behind: many}, false},
		"more than are behind": {journal.Passed{Count: 1, Behind: many[:2]}, false},
	} {
		l := begin(t)
		id := l.in(journal.Published)
		err := l.write(journal.Body{Step: &journal.Step{Root: id, To: journal.Active, Passed: &tt.passed}}, l.active(), id)
		if tt.ok != (err == nil) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func TestCourse(t *testing.T) {
	t.Parallel()
	l := begin(t)
	if l.state.Course != journal.Manual {
		t.Errorf("the course is %q at first", l.state.Course)
	}
	for _, c := range []journal.Course{journal.Run, journal.Paused, journal.Manual, "", "fast"} {
		err := l.write(journal.Body{Course: &c}, l.active())
		known := c == journal.Run || c == journal.Paused || c == journal.Manual
		if known != (err == nil) || known && l.state.Course != c {
			t.Errorf("course %q: it is %q, error is %v", c, l.state.Course, err)
		}
	}
	// No step changes it.
	run := journal.Run
	l.must(journal.Body{Course: &run}, l.active())
	l.in(journal.Draining)
	if l.state.Course != journal.Run {
		t.Errorf("after an activation the course is %q", l.state.Course)
	}
}

// The key of a root that is out is destroyed once.
func TestDestroyed(t *testing.T) {
	t.Parallel()
	for _, phase := range phases {
		l := begin(t)
		id := l.in(phase)
		err := l.write(journal.Body{Destroyed: &id}, l.active())
		if out := phase == journal.Retired || phase == journal.Aborted; out != (err == nil) {
			t.Errorf("key of a root that is %s: error is %v", phase, err)
		}
		if err != nil {
			continue
		}
		if r, _ := l.state.Root(id); r.Destroyed == nil || !r.Destroyed.Equal(l.now) || r.Phase != phase {
			t.Errorf("the root is %+v", r)
		}
		if err := l.write(journal.Body{Destroyed: &id}, l.active()); err == nil {
			t.Errorf("the key of a root that is %s was destroyed twice", phase)
		}
	}
	l := begin(t)
	nobody := "00"
	if err := l.write(journal.Body{Destroyed: &nobody}, l.active()); err == nil {
		t.Error("the key of nobody was destroyed")
	}
}

// Only the active root signs issuing CAs, and one that drains what we serve with.
func TestIssuingUnderEachPhase(t *testing.T) {
	t.Parallel()
	for _, phase := range phases {
		for _, serving := range []bool{false, true} {
			l := begin(t)
			id := l.in(phase)
			cert := catest.Certify(t, ca.Issuing, attesttest.Domain(t, "cluster.local"), catest.Key(t), ca.Parent{Certificate: l.certs[id], Signer: l.keys[id].Key}, time.Hour, l.now)
			err := l.write(journal.Body{Issuing: &journal.IssuingCA{
				ID: hex.EncodeToString(cert.SubjectKeyId), Certificate: cert.Raw, Replica: "r", Root: id, NotAfter: cert.NotAfter, Serving: serving,
			}}, l.active(), id)
			if want := phase == journal.Active || phase == journal.Draining && serving; want != (err == nil) {
				t.Errorf("issuing CA (serving: %v) under a root that is %s: error is %v", serving, phase, err)
			}
		}
	}
}

// Random steps, most of them refused, never break what every reader relies on.
func TestRandomSteps(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		rng := mathrand.New(mathrand.NewPCG(seed, 3))
		l := begin(t)
		for range 40 {
			before, written := l.state, len(l.records)
			id := l.state.Roots[rng.IntN(len(l.state.Roots))].ID
			switch rng.IntN(6) {
			case 0:
				r := l.root([]journal.Phase{journal.Prepared, journal.Trusted}[rng.IntN(2)])
				_ = l.write(journal.Body{Added: &r}, l.active(), r.ID) // refused or not: see below
			case 1:
				_ = l.write(journal.Body{Destroyed: &id}, l.active())
			default:
				_ = l.step(id, phases[rng.IntN(len(phases))], id)
			}
			if len(l.records) == written {
				if diff := cmp.Diff(before, l.state, cmpopts.IgnoreUnexported(journal.State{})); diff != "" {
					t.Fatalf("seed %d: a refused record changed the state:\n%s", seed, diff)
				}
				continue
			}
			certs, err := l.state.Certificates()
			if err != nil {
				t.Fatal(err)
			}
			was, err := before.Certificates()
			if err != nil {
				t.Fatal(err)
			}
			same := slices.EqualFunc(was, certs, (*x509.Certificate).Equal)
			switch {
			case len(l.state.In(journal.Active)) != 1:
				t.Fatalf("seed %d: %d active roots", seed, len(l.state.In(journal.Active)))
			case len(l.state.In(journal.Prepared))+len(l.state.In(journal.Published)) > 1:
				t.Fatalf("seed %d: two roots are on their way", seed)
			case same != (l.state.Sequence == before.Sequence) || l.state.Sequence < before.Sequence:
				t.Fatalf("seed %d: the bundle is the same (%v), and its sequence goes from %d to %d", seed, same, before.Sequence, l.state.Sequence)
			case !l.state.Extends(before.Number, before.Head) || before.Extends(l.state.Number, l.state.Head):
				t.Fatalf("seed %d: the chain does not run from record %d to %d", seed, before.Number, l.state.Number)
			}
		}
	}
}
