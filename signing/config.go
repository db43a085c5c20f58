package signing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/policy"
)

// Mode is what the gate does with a pod. The zero value is none, so that a mode
// that was forgotten is an error and not an open gate.
type Mode uint8

// The modes. Disabled: nothing is looked at. Audit: everything is decided, and
// nothing refused. Enforce: what does not pass is refused.
const (
	Disabled Mode = iota + 1
	Audit
	Enforce
)

// Collector asks registries. Implemented by package registry; tests inject
// faults.
//
// Resolve MUST return what the tag in image points to now. Collect MUST return
// evidence of s that passes [evidence.Evidence.Check]. Both MUST refuse by
// [*attest.DenyError], of kind Forbidden only where the registry itself says so
// (ImageNotFound), answer soon after ctx ends, and be safe for concurrent use.
type Collector interface {
	Resolve(ctx context.Context, image string) (evidence.Subject, error)
	Collect(ctx context.Context, s evidence.Subject) (*evidence.Evidence, error)
}

// Config is what [NewGate] needs. Durations and numbers that are zero have the
// defaults named; all else is required but Namespaces and Accounts.
type Config struct {
	Mode           Mode
	Namespaces     map[string]Mode // by name, where it differs from Mode
	Infrastructure Mode            // of Accounts, whatever their namespace says
	Accounts       []string        // NAMESPACE/ACCOUNT
	// ResolveTags: an image that is named by tag only is asked of the registry
	// before it runs; else it is refused.
	ResolveTags bool
	// CountEphemeral: ephemeral containers count also when they do not run.
	CountEphemeral bool

	Policies  func() *policy.Set // those in force now
	Collector Collector
	Store     *evidence.Store
	Feed      *attest.Feed // where changes of decisions are announced

	Wait         time.Duration // for a registry, in a request (4.5 s)
	AuditWait    time.Duration // the same where nothing can be refused (500 ms)
	FetchTimeout time.Duration // of one fetch (30 s)
	RetryAfter   time.Duration // between fetches after a refusal (10 s)
	RefreshAfter time.Duration // between looks for newer signatures (24 h)
	Parallel     int           // fetches at once (8)
	Queue        int           // fetches that wait (1024)

	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
}

// margin is left of a caller's deadline to answer in.
const margin = 250 * time.Millisecond

func (c *Config) check() error {
	modes := []Mode{c.Mode, c.Infrastructure}
	for _, m := range c.Namespaces {
		modes = append(modes, m)
	}
	for _, m := range modes {
		if m < Disabled || m > Enforce {
			return errors.New("making image gate: a mode is missing")
		}
	}
	for _, a := range c.Accounts {
		if ns, account, ok := strings.Cut(a, "/"); !ok || ns == "" || account == "" || strings.Contains(account, "/") {
			return fmt.Errorf("making image gate: %q is not NAMESPACE/ACCOUNT", a)
		}
	}
	if c.Policies == nil || c.Collector == nil || c.Store == nil || c.Feed == nil || c.Registerer == nil || c.Log == nil || c.Now == nil {
		return errors.New("making image gate: policies, collector, store, feed, registerer, log and clock are required")
	}
	c.Wait = or(c.Wait, 4500*time.Millisecond)
	c.AuditWait = or(c.AuditWait, 500*time.Millisecond)
	c.FetchTimeout = or(c.FetchTimeout, 30*time.Second)
	c.RetryAfter = or(c.RetryAfter, 10*time.Second)
	c.RefreshAfter = or(c.RefreshAfter, 24*time.Hour)
	c.Parallel = or(c.Parallel, 8)
	c.Queue = or(c.Queue, 1024)
	return nil
}

func or[T int | time.Duration](value, otherwise T) T {
	if value > 0 {
		return value
	}
	return otherwise
}
