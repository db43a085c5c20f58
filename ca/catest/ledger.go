package catest

import (
	"context"
	"slices"
	"sync"

	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// Ledger keeps in memory what it is told. The zero value is ready.
type Ledger struct {
	// OnAppend runs before an intent is kept; its error refuses the intent. It
	// is set before the first use.
	OnAppend func(context.Context, *ledger.Intent) error

	mu       sync.Mutex // guards all below
	fail     error
	intents  []ledger.Intent
	outcomes []ledger.Outcome
	refusals []ledger.Refusal
}

// Fail makes every further Append fail with err; nil mends it.
func (l *Ledger) Fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = err
}

// Append implements ca.Ledger.
func (l *Ledger) Append(ctx context.Context, i *ledger.Intent) error {
	if l.OnAppend != nil {
		if err := l.OnAppend(ctx, i); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	l.intents = append(l.intents, *i)
	return nil
}

// Finish implements ca.Ledger.
func (l *Ledger) Finish(o ledger.Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outcomes = append(l.outcomes, o)
}

// Refuse keeps a refusal.
func (l *Ledger) Refuse(r ledger.Refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refusals = append(l.refusals, r)
}

// Intents returns what was appended so far, oldest first.
func (l *Ledger) Intents() []ledger.Intent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.intents)
}

// Outcomes returns what was finished so far, oldest first.
func (l *Ledger) Outcomes() []ledger.Outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.outcomes)
}

// Refusals returns what was refused so far, oldest first.
func (l *Ledger) Refusals() []ledger.Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.refusals)
}
