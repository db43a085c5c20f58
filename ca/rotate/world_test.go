package rotate_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

const (
	rootLifetime = 5 * 365 * 24 * time.Hour
	leafLifetime = 30 * time.Minute
	keyHold      = 2 * time.Hour
	window       = 2 * time.Minute
	pause        = 15 * time.Minute
	settle       = 15 * time.Minute
	interval     = time.Minute
)

func policy() rotate.Policy {
	return rotate.Policy{
		Automatic: rotate.Propose, RootLifetime: rootLifetime, LeafLifetime: leafLifetime, KeyHold: keyHold,
		RehearsalWindow: window, RehearsalPause: pause, ClockSettle: settle,
	}
}

func trustDomain(tb testing.TB) attest.TrustDomain {
	tb.Helper()
	td, err := attest.ParseTrustDomain("cluster.local")
	if err != nil {
		tb.Fatal(err)
	}
	return td
}

// How a call of the Runner to one of its neighbours goes wrong.
type fault int

const (
	none       fault = iota
	fails            // nothing was done
	unknown          // reported as unknown, nothing was done
	unknownYet       // reported as unknown, and done all the same
	failsDone        // reported failed, and done all the same
	rival            // another writer is first
	diesBefore       // the process ends before it is done
	diesAfter        // and after
)

var (
	errAway = errors.New("it is away")
	errDead = errors.New("this process has ended")
)

// world is everything around a Runner: a store, keys, what is given out, and
// what was seen of it all.
type world struct {
	tb     testing.TB
	td     attest.TrustDomain
	policy rotate.Policy

	mu        sync.Mutex    // guards all below
	offset    time.Duration // of the wall clock
	records   []journal.Record
	state     journal.State
	keys      map[string]crypto.Signer
	destroyed map[string]bool
	bundle    map[string]bool // given out, by root
	sequence  uint64
	issuing   string // the root that is signed under
	serving   string // the root that we serve under
	rehearsal bool
	reverted  bool // a rehearsal was, by this or an earlier process
	summary   func(census.Question) census.Summary
	places    []rotate.Place
	asked     []census.Question
	fault     func(call string) fault
	calls     []string
	process   int  // the one that lives
	blind     bool // a write's outcome is not known to it
	broken    []string
	// Called with mu held, where set: after each Follow, with each record and the
	// state before it, after each change of the serving certificate.
	follows func()
	stored  func(before journal.State, body []byte)
	begun   func()
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{
		tb: tb, td: trustDomain(tb), policy: policy(), keys: map[string]crypto.Signer{}, destroyed: map[string]bool{}, bundle: map[string]bool{},
		summary: func(census.Question) census.Summary { return census.Summary{} },
		fault:   func(string) fault { return none },
	}
	root, key, err := w.makeRoot(rootLifetime, w.now())
	if err != nil {
		tb.Fatal(err)
	}
	root.Phase = journal.Active
	w.keys[root.ID] = key
	rec, err := journal.NewRecord(journal.State{}, journal.Body{Time: w.now().UTC(), TrustDomain: w.td.String(), By: "test", Founded: &root}, journal.Signer{Root: root.ID, Key: key})
	if err != nil {
		tb.Fatal(err)
	}
	if err := w.append(rec); err != nil {
		tb.Fatal(err)
	}
	return w
}

func (w *world) now() time.Time { return time.Now().Add(w.offset) }

// Now is the wall clock.
func (w *world) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now()
}

func (w *world) makeRoot(life time.Duration, now time.Time) (journal.Root, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return journal.Root{}, nil, err
	}
	cert, err := ca.Certify(ca.Root, w.td, key.Public(), ca.Parent{Signer: key}, life, now)
	if err != nil {
		return journal.Root{}, nil, err
	}
	id := hex.EncodeToString(cert.SubjectKeyId)
	return journal.Root{ID: id, Certificate: cert.Raw, KeyURI: "softkms:path=" + id, Since: now.UTC()}, key, nil
}

// append stores rec; mu is held, or nobody else is there yet.
func (w *world) append(rec journal.Record) error {
	var b journal.Body
	if err := json.Unmarshal(rec.Body, &b); err != nil {
		return err
	}
	if b.Number != w.state.Number+1 || b.Previous != w.state.Head {
		return journal.ErrConflict
	}
	next, err := journal.Replay(append(w.records[:len(w.records):len(w.records)], rec))
	if err != nil {
		w.wrong("invariant 5: a record was appended that does not replay: %v", err)
		return err
	}
	before := w.state
	w.records, w.state = append(w.records, rec), next
	if w.stored != nil {
		w.stored(before, rec.Body)
	}
	return nil
}

func (w *world) wrong(format string, args ...any) {
	w.broken = append(w.broken, fmt.Sprintf(format, args...))
}

// hands are what one process has of the world.
type hands struct {
	w       *world
	process int
}

// do carries f out as the fault that is due has it. Nothing but a Load may be
// called while a write's outcome is not known.
func (h hands) do(call string, f func() error) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.process != h.w.process {
		return errDead
	}
	h.w.calls = append(h.w.calls, call)
	if h.w.blind && call != "load" {
		h.w.wrong("%s while the outcome of a write was not known", call)
	}
	switch h.w.fault(call) {
	case fails, unknown:
		return errAway
	case diesBefore:
		h.w.process++
		return errDead
	case diesAfter:
		_ = f()
		h.w.process++
		return errDead
	case failsDone, unknownYet:
		return errors.Join(f(), errAway)
	}
	return f()
}

type store struct{ hands }

func (s store) Load(context.Context) (state journal.State, err error) {
	err = s.do("load", func() error {
		state = s.w.state
		state.Roots = slices.Clone(state.Roots)
		s.w.blind = false
		return nil
	})
	return state, err
}

func (s store) Append(_ context.Context, rec journal.Record) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	w := s.w
	if s.process != w.process {
		return errDead
	}
	w.calls = append(w.calls, "append")
	if w.blind {
		w.wrong("append while the outcome of a write was not known")
	}
	switch w.fault("append") {
	case fails:
		return errAway
	case unknown:
		w.blind = true
		return fmt.Errorf("appending: %w", journal.ErrStateUnknown)
	case unknownYet, failsDone:
		if err := w.append(rec); err != nil {
			return err
		}
		w.blind = true
		return fmt.Errorf("appending: %w", journal.ErrStateUnknown)
	case diesBefore:
		w.process++
		return errDead
	case diesAfter:
		err := w.append(rec)
		w.process++
		return errors.Join(err, errDead)
	case rival:
		course := w.state.Course
		active, _ := w.state.ActiveRoot()
		other, err := journal.NewRecord(w.state, journal.Body{Time: w.now().UTC(), TrustDomain: w.td.String(), By: "rival", Course: &course},
			journal.Signer{Root: active.ID, Key: w.keys[active.ID]})
		if err == nil {
			err = w.append(other)
		}
		if err != nil {
			return err
		}
	}
	return w.append(rec)
}

type follower struct{ hands }

// Follow puts in force what the journal says, and holds it against what was
// given out before.
func (f follower) Follow(context.Context) error {
	return f.do("follow", func() error { f.w.follow(); return nil })
}

func (w *world) follow() {
	bundle := map[string]bool{}
	for _, r := range w.state.Roots {
		if r.Phase.InBundle() {
			bundle[r.ID] = true
		}
	}
	active, _ := w.state.ActiveRoot()
	switch same := maps.Equal(bundle, w.bundle); {
	case w.state.Sequence < w.sequence:
		w.wrong("invariant 3: the sequence fell from %d to %d", w.sequence, w.state.Sequence)
	case w.sequence == w.state.Sequence && !same:
		w.wrong("invariant 3: the bundle changed within sequence %d", w.sequence)
	}
	w.bundle, w.sequence, w.issuing, w.serving = bundle, w.state.Sequence, active.ID, active.ID
	for _, r := range w.state.Roots {
		if r.Phase == journal.Draining && !w.rehearsal {
			w.serving = r.ID
			break
		}
	}
	if w.follows != nil {
		w.follows()
	}
}

type keys struct{ hands }

func (k keys) Make(_ context.Context, td attest.TrustDomain, lifetime time.Duration, now time.Time) (root journal.Root, key crypto.Signer, err error) {
	err = k.do("make", func() error {
		if td != k.w.td {
			k.w.wrong("a key of trust domain %s was asked for", td)
		}
		root, key, err = k.w.makeRoot(lifetime, now)
		if err == nil {
			k.w.keys[root.ID] = key
		}
		return err
	})
	return root, key, err
}

func (k keys) Open(_ context.Context, root journal.Root) (key crypto.Signer, err error) {
	err = k.do("open", func() error {
		key = k.w.keys[root.ID]
		if key == nil {
			return fmt.Errorf("root %s has no key", root.ID)
		}
		return nil
	})
	return key, err
}

func (k keys) Destroy(_ context.Context, root journal.Root) error {
	return k.do("destroy", func() error {
		known, ok := k.w.state.Root(root.ID)
		switch {
		case ok && known.Phase != journal.Retired && known.Phase != journal.Aborted:
			k.w.wrong("invariant 6: the key of root %s, which is %s, was destroyed", short(root.ID), known.Phase)
		case ok && k.w.now().Before(known.Since.Add(k.w.policy.KeyHold)):
			k.w.wrong("invariant 6: the key of root %s was destroyed before its hold was over", short(root.ID))
		}
		delete(k.w.keys, root.ID)
		k.w.destroyed[root.ID] = true
		return nil
	})
}

type rehearsal struct{ hands }

func (r rehearsal) Begin(context.Context) (since time.Time, err error) {
	err = r.do("begin", func() error {
		active, _ := r.w.state.ActiveRoot()
		r.w.rehearsal, r.w.serving = true, active.ID
		since = r.w.now().Add(1) // what was made at this very moment has met the old one
		if r.w.begun != nil {
			r.w.begun()
		}
		return nil
	})
	return since, err
}

func (r rehearsal) Revert(context.Context) error {
	return r.do("revert", func() error {
		r.w.rehearsal, r.w.reverted = false, true
		for _, root := range r.w.state.Roots {
			if root.Phase == journal.Draining {
				r.w.serving = root.ID
				break
			}
		}
		return nil
	})
}

type asked struct{ w *world }

func (a asked) Summary(q census.Question) census.Summary {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	a.w.asked = append(a.w.asked, q)
	return a.w.summary(q)
}

// config is what a Runner of the process that lives now gets.
func (w *world) config(reg prometheus.Registerer) rotate.Config {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := hands{w, w.process}
	return rotate.Config{
		TrustDomain: w.td, Store: store{h}, Follower: follower{h}, Keys: keys{h}, Rehearsal: rehearsal{h}, Census: asked{w},
		Places: func(uint64) []rotate.Place {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Clone(w.places)
		},
		Policy: w.policy, Interval: interval, Registerer: reg, Log: slog.New(slog.DiscardHandler), Now: w.Now,
	}
}

// start makes the Runner of a new process.
func (w *world) start(tb testing.TB) *rotate.Runner {
	tb.Helper()
	w.mu.Lock()
	w.process++
	w.rehearsal, w.blind = false, false // they lived in memory
	w.mu.Unlock()
	r, err := rotate.New(w.config(prometheus.NewRegistry()))
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// prove replays the whole journal, and checks the rest.
func (w *world) prove(tb testing.TB) {
	tb.Helper()
	w.mu.Lock()
	state, err := journal.Replay(w.records)
	if err != nil {
		w.wrong("invariant 5: %v", err)
	} else if diff := cmp.Diff(w.state.Roots, state.Roots); diff != "" {
		w.wrong("invariant 5: the records do not give the state:\n%s", diff)
	}
	w.mu.Unlock()
	w.check(tb)
}

// check reports what was found wrong.
func (w *world) check(tb testing.TB) {
	tb.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if active := w.state.In(journal.Active); len(active) != 1 {
		w.wrong("invariant 4: %d active roots", len(active))
	}
	for _, r := range w.state.Roots {
		gone := w.destroyed[r.ID]
		switch {
		case r.Destroyed != nil && !gone:
			w.wrong("invariant 6: the journal says that the key of %s is gone, and it is not", short(r.ID))
		case r.KeyURI != "" && gone && r.Phase != journal.Retired && r.Phase != journal.Aborted:
			w.wrong("root %s is %s and has no key", short(r.ID), r.Phase)
		}
	}
	for _, b := range w.broken {
		tb.Error(b)
	}
	w.broken = nil
}

// phases returns the phases of all roots, the oldest first.
func (w *world) phases() []journal.Phase {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []journal.Phase
	for _, r := range w.state.Roots {
		out = append(out, r.Phase)
	}
	return out
}

func (w *world) root(i int) journal.Root {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.Roots[i]
}

func short(id string) string { return id[:min(len(id), 8)] }

// sameKey makes a root that is there already.
type sameKey struct {
	rotate.Keys
	root      journal.Root
	destroyed bool
}

func (s *sameKey) Make(ctx context.Context, _ attest.TrustDomain, _ time.Duration, _ time.Time) (journal.Root, crypto.Signer, error) {
	key, err := s.Open(ctx, s.root)
	return s.root, key, err
}

func (s *sameKey) Destroy(ctx context.Context, root journal.Root) error {
	s.destroyed = true
	return s.Keys.Destroy(ctx, root)
}
