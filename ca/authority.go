package ca

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// Ledger records issuances; *ledger.Ledger is the real one.
//
// Append MUST return nil only when the intent is durable. Finish MUST NOT wait.
// Both MUST be safe for concurrent use.
type Ledger interface {
	Append(context.Context, *ledger.Intent) error
	Finish(ledger.Outcome)
}

// Config is what [New] needs.
type Config struct {
	Leaf   *profile.Leaf
	Ledger Ledger
	// LintShape runs the slow lints on the first certificate of each shape (key
	// kind and profile) under each issuer, before it is signed. Its signature
	// is a placeholder. nil runs none.
	LintShape func(der []byte) error
	// Issued is told of each certificate of a caller before it leaves; nil tells
	// nobody. It MUST NOT block.
	Issued     func(door string, issued *Issued)
	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
}

// Authority issues certificates under the current [Snapshot].
type Authority struct {
	cfg     Config
	current atomic.Pointer[Snapshot]
	serving atomic.Pointer[Snapshot] // of Mint, where it differs
	clipped prometheus.Counter

	mu   sync.Mutex // guards subs, and the order in which snapshots are installed
	subs []func(*Snapshot)
}

// New returns an authority that refuses everything until the first Snapshot is
// installed.
func New(cfg Config) (*Authority, error) {
	if cfg.Leaf == nil || cfg.Ledger == nil || cfg.Log == nil || cfg.Now == nil || cfg.Registerer == nil {
		return nil, errors.New("making authority: leaf profile, ledger, log, clock and registerer are all required")
	}
	a := &Authority{cfg: cfg, clipped: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "hallmark_leaves_clipped_total",
		Help: "Leaves whose lifetime was cut to their issuer's end.",
	})}
	if err := cfg.Registerer.Register(a.clipped); err != nil {
		return nil, fmt.Errorf("making authority: %w", err)
	}
	return a, nil
}

// Current returns the snapshot in force, nil before the first.
func (a *Authority) Current() *Snapshot { return a.current.Load() }

// Subscribe calls fn with each snapshot from now on, and at once with the
// current one where there is one. fn MUST return at once and MUST NOT call
// Subscribe or Install.
func (a *Authority) Subscribe(fn func(*Snapshot)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.subs = append(a.subs, fn)
	if s := a.current.Load(); s != nil {
		fn(s)
	}
}

// InstallServing makes [Authority.Mint] sign under s, or under the current
// snapshot again where s is nil, and tells the subscribers. While an old root is
// trusted, clients may know no other: our own certificate stays under it.
func (a *Authority) InstallServing(s *Snapshot) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.serving.Store(s)
	if current := a.current.Load(); current != nil {
		a.tell(current)
	}
}

// tell hands s to the subscribers; mu is held.
func (a *Authority) tell(s *Snapshot) {
	for _, fn := range a.subs {
		fn(s)
	}
}

// Install puts s in force. Only ca/replica calls it, after what s rests on is
// durable in the journal. The bundle never goes back, and never changes without
// its sequence: consumers would keep the old one (SPIFFE Trust Domain and Bundle
// section 4.1.1).
func (a *Authority) Install(s *Snapshot) error {
	if s == nil {
		return errors.New("installing snapshot: there is none")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.current.Load(); old != nil {
		switch {
		case old.trustDomain != s.trustDomain:
			return fmt.Errorf("installing snapshot: it is of trust domain %s, the current one of %s", s.trustDomain, old.trustDomain)
		case old.sequence > s.sequence:
			return fmt.Errorf("installing snapshot: sequence %d is below the current %d", s.sequence, old.sequence)
		case old.sequence == s.sequence && !bytes.Equal(old.bundlePEM, s.bundlePEM):
			return fmt.Errorf("installing snapshot: the bundle is another, and its sequence the same (%d)", s.sequence)
		}
	}
	a.current.Store(s)
	a.tell(s)
	return nil
}
