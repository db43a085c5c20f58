// Package ceremony makes roots: the first of a trust domain, with which its
// journal begins, and those that follow it in a rotation.
//
// Invariants: a key is durable before any record names it, nothing that exists
// is overwritten, and no two roots share a key or a name. Which roots are in
// force is the journal's to say, and nothing here moves one. The package keeps
// no state; its parts are safe for concurrent use.
package ceremony

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

// Founding is what [Found] needs.
type Founding struct {
	TrustDomain attest.TrustDomain
	Lifetime    time.Duration
	Roots       Roots
	FS          durable.FS // the state directory
	JournalDir  string     // in FS
	By          string     // who asked, for the journal
	Now         time.Time
}

// ErrFounded says that the state directory has an authority already.
var ErrFounded = errors.New("an authority was founded here before; nothing was changed")

// Found makes the first root of a trust domain and the journal's first record.
// It never overwrites anything.
func Found(ctx context.Context, f Founding) (journal.Root, error) {
	fail := func(err error) (journal.Root, error) {
		return journal.Root{}, fmt.Errorf("founding authority: %w", err)
	}
	store, err := journal.OpenFile(f.FS, f.JournalDir)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = store.Close() }() // what is durable is so by now
	switch _, err := store.Load(ctx); {
	case err == nil:
		return fail(ErrFounded)
	case !errors.Is(err, journal.ErrNoJournal):
		return fail(err)
	}
	root, key, err := f.Roots.Make(ctx, f.TrustDomain, f.Lifetime, f.Now)
	if err != nil {
		return fail(err)
	}
	// The first one is active at once: nobody has to learn it before.
	root.Phase = journal.Active
	record, err := journal.NewRecord(journal.State{},
		journal.Body{Time: f.Now.UTC(), TrustDomain: f.TrustDomain.String(), By: f.By, Founded: &root},
		journal.Signer{Root: root.ID, Key: key})
	if err != nil {
		return fail(err)
	}
	// A cut here leaves a key that no journal names: it signs nothing, and the
	// next attempt makes another.
	if err := store.Append(ctx, record); err != nil {
		return fail(err)
	}
	return root, nil
}
