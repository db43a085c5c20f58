// Package rotate moves roots through their lives: it publishes a new root,
// activates it when every consumer is known to hold it, retires the old one
// when nothing under it is left and a rehearsal has shown that nobody needs it,
// and destroys its key after a hold.
//
// Invariants: [Next] is pure and decides alone; a step is in the journal before
// anything of it is used, and is made true by the same code after a start as
// after a step; while the outcome of a write is not known, nothing moves; a gate
// is passed only open, or by a person whose reason is journalled with who was
// behind. Issuance never waits for any of it.
//
// The package holds no key, makes no Snapshot and speaks to no consumer: that is
// its neighbours' work, whose interfaces stand in this file. A [Runner] is safe
// for concurrent use; it takes one step at a time.
package rotate

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

// Follower makes what is durable true in memory.
//
// Follow MUST read the journal itself and put in force what it says: the bundle,
// an issuing CA under the active root, the serving certificate under the oldest
// trusted root that has a key of ours (or, between Begin and Revert of a
// [Rehearsal], as they left it). It MUST be idempotent, and where memory is as
// the journal says, do nothing and write nothing. While it fails, the last
// Snapshot MUST stay in force.
type Follower interface {
	Follow(ctx context.Context) error
}

// Keys makes, opens and destroys the keys of roots.
//
// Make MUST make the key durable before it returns, under a name and a Subject
// that were never used. Open MUST check that the key is the root's. Destroy MUST
// be durable on return, and MUST NOT fail because the key is gone already.
type Keys interface {
	Make(ctx context.Context, td attest.TrustDomain, lifetime time.Duration, now time.Time) (journal.Root, crypto.Signer, error)
	Open(ctx context.Context, root journal.Root) (crypto.Signer, error)
	Destroy(ctx context.Context, root journal.Root) error
}

// Census knows who holds what. *census.Census is the real one.
type Census interface {
	Summary(q census.Question) census.Summary
}

// Rehearsal is the change of our serving certificate before a root is retired.
//
// Begin MUST present a serving certificate under the active root, end each
// connection that was made before, and return the moment from which on new
// connections met that certificate. Revert MUST present the
// one under the oldest root again, also where Begin failed half-way. Both MUST
// be idempotent. After a restart of the process the old one is presented. Once
// the oldest root is retired, Follow alone decides.
type Rehearsal interface {
	Begin(ctx context.Context) (since time.Time, err error)
	Revert(ctx context.Context) error
}

// Config is what [New] needs. All fields but Places are required.
type Config struct {
	TrustDomain attest.TrustDomain
	Store       journal.Store
	Follower    Follower
	Keys        Keys
	Census      Census
	Rehearsal   Rehearsal
	// Places tells, without waiting, where the bundle is published for readers
	// that do not answer, and since when those of each can be taken to hold one
	// of at least that sequence; nil: nowhere.
	Places     func(sequence uint64) []Place
	Policy     Policy
	Interval   time.Duration // between two looks at journal and gates
	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
}

// Runner takes the steps. It is their only writer in this process.
type Runner struct {
	cfg     Config
	metrics *metrics
	epoch   time.Time     // of the monotonic clock
	turn    chan struct{} // holds one: whose turn it is. It guards the three below.
	seen    mark          // the newest state that was loaded
	// followed is the state up to which memory is as the journal says.
	followed mark
	ask      time.Duration // when the census is next asked, on the monotonic clock

	mu        sync.Mutex // guards all below
	frozen    *frozen
	failure   *Failure
	rehearsed Rehearsed
	clock     clock
}

// mark is a point of the journal.
type mark struct {
	number, sequence uint64
	head             string
}

func markOf(s journal.State) mark { return mark{s.Number, s.Sequence, s.Head} }

// frozen is a write whose outcome is not known.
type frozen struct {
	step  Act
	at    time.Time
	write mark
	err   error
}

// New returns a Runner that moves nothing until Run or a command.
func New(cfg Config) (*Runner, error) {
	if cfg.TrustDomain.IsZero() || cfg.Store == nil || cfg.Follower == nil || cfg.Keys == nil || cfg.Census == nil ||
		cfg.Rehearsal == nil || cfg.Interval <= 0 || cfg.Registerer == nil || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("making rotation: trust domain, store, follower, keys, census, rehearsal, interval, registerer, log and clock are all required")
	}
	if err := cfg.Policy.check(); err != nil {
		return nil, fmt.Errorf("making rotation: %w", err)
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("making rotation: %w", err)
	}
	r := &Runner{cfg: cfg, metrics: m, epoch: time.Now(), turn: make(chan struct{}, 1)}
	r.lookAtClock()
	return r, nil
}

// Run finishes what a cut has left, takes the steps that are due by themselves,
// and ends with ctx. It never gives up: what fails is tried again at the next
// look, and shows in Status and the metrics until it does not.
func (r *Runner) Run(ctx context.Context) error {
	for {
		if err := r.act(ctx, itself, r.next); err != nil && ctx.Err() == nil {
			r.cfg.Log.Error("the rotation does not move", "error", err, "retryIn", r.cfg.Interval.String())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(r.cfg.Interval):
		}
	}
}

// itself is who asked for a step that nobody asked for.
const itself = "rotation"

// next decides for a step that nobody asked for.
func (r *Runner) next(v view, _ int) (Step, error) {
	step, _ := Next(*v.state, *v.seen, *v.policy, v.now)
	return step, nil
}

// lookAtClock returns the time, and until when it is not to be relied on.
func (r *Runner) lookAtClock() (now, unsteady time.Time) {
	now = r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	return now, r.clock.observe(now, time.Since(r.epoch), r.cfg.Policy.ClockSettle)
}

// clock finds out that the wall clock jumps, by the monotonic one.
type clock struct {
	wall     time.Time
	mono     time.Duration
	settled  time.Duration // on the monotonic clock
	observed bool
}

// observe returns until when the wall clock is not to be relied on, zero where
// it is. A clock that is wrong from the start shows only against the journal.
func (c *clock) observe(wall time.Time, mono, settle time.Duration) time.Time {
	wall = wall.Round(0)
	if c.observed {
		if drift := wall.Sub(c.wall) - (mono - c.mono); drift.Abs() > maxSkew {
			c.settled = mono + settle
		}
	}
	c.wall, c.mono, c.observed = wall, mono, true
	if mono >= c.settled {
		return time.Time{}
	}
	return wall.Add(c.settled - mono)
}
