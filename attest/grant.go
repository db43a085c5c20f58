package attest

import (
	"errors"
	"sync/atomic"
	"time"
)

// GrantLifetime is how long after it was made a grant can be spent.
const GrantLifetime = 10 * time.Second

// Errors of [Grant.Spend].
var (
	ErrGrantSpent = errors.New("spending grant: it was spent before")
	ErrGrantStale = errors.New("spending grant: it is older than 10 s")
	ErrGrantEmpty = errors.New("spending grant: it was not made by the registrar")
)

// Facts are what a grant proves: whom a certificate may name, and why.
type Facts struct {
	Identity Identity // to be named
	Caller   Caller
	Pods     []*Pod          // the live pods that the identity rests on
	Images   []ImageEvidence // one for each of their containers that counts
	// Provisional: some image's digest is only what its tag resolved to.
	Provisional bool
}

// Grant is the single-use leave to issue one certificate. Only
// [Registrar.Grant] makes one, after who is calling and what runs there have
// both been checked.
type Grant struct {
	facts Facts
	made  time.Time
	spent atomic.Bool
}

// Spend gives the facts once, within [GrantLifetime] of the grant.
func (g *Grant) Spend(now time.Time) (Facts, error) {
	if g == nil || g.facts.Identity.IsZero() {
		return Facts{}, ErrGrantEmpty
	}
	if now.Sub(g.made) > GrantLifetime || now.Before(g.made.Add(-GrantLifetime)) {
		return Facts{}, ErrGrantStale
	}
	if g.spent.Swap(true) {
		return Facts{}, ErrGrantSpent
	}
	return g.facts, nil
}
