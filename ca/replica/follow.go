package replica

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hallmark-ca/hallmark/ca/journal"
)

// Renew makes a new issuing CA under the active root and puts it in force.
func (r *Replica) Renew(ctx context.Context) (*x509.Certificate, error) {
	done, err := r.take(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	state, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	if state, err = r.renewMain(ctx, state); err != nil {
		return nil, err
	}
	if err := r.apply(state); err != nil {
		return nil, err
	}
	// Our own certificate is not what callers wait for; a fault of it is said by
	// the next Follow.
	if err := r.follow(ctx, state); err != nil {
		r.cfg.Log.Error("making an issuing CA for our own certificate failed", "error", err)
	}
	return r.main.cert, nil
}

// Follow makes what the journal says true in memory: the bundle, an issuing CA
// under the active root, and our own certificate under the oldest root of ours
// that is trusted. Where memory is as the journal says, it does nothing.
func (r *Replica) Follow(ctx context.Context) error {
	done, err := r.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	state, err := r.load(ctx)
	if err != nil {
		return err
	}
	return r.follow(ctx, state)
}

// renewDue renews what has come to half of its life.
func (r *Replica) renewDue(ctx context.Context) error {
	done, err := r.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	state, err := r.load(ctx)
	if err != nil {
		return err
	}
	if !r.cfg.Now().Before(r.main.due) {
		if state, err = r.renewMain(ctx, state); err != nil {
			return err
		}
	}
	return r.follow(ctx, state)
}

// Rehearse has our serving certificate signed under the active root, although an
// older one is trusted, or ends that.
func (r *Replica) Rehearse(ctx context.Context, on bool) error {
	done, err := r.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	was := r.rehearsing
	r.rehearsing = on
	state, err := r.load(ctx)
	if err == nil {
		err = r.follow(ctx, state)
	}
	if err != nil {
		r.rehearsing = was
	}
	return err
}

// load reads what is durable. The turn is held.
func (r *Replica) load(ctx context.Context) (journal.State, error) {
	state, err := r.cfg.Store.Load(ctx)
	if err != nil {
		return state, err
	}
	if state.TrustDomain != r.cfg.TrustDomain.String() {
		return state, fmt.Errorf("the journal is of trust domain %q, the configuration of %q", state.TrustDomain, r.cfg.TrustDomain)
	}
	return state, journal.KeepMemo(r.cfg.MemoFS, r.cfg.MemoFile, state)
}

// follow makes what is missing and puts it in force. The turn is held.
func (r *Replica) follow(ctx context.Context, state journal.State) error {
	active, ok := state.ActiveRoot()
	if !ok {
		return errors.New("the journal has no active root")
	}
	var err error
	if r.main == nil || r.main.root != active.ID || r.main.tainted(&state) {
		if state, err = r.renewMain(ctx, state); err != nil {
			return err
		}
	}
	if err := r.apply(state); err != nil {
		return err
	}
	// Leaves are signed by now as the journal says.
	return r.serve(ctx, state, active)
}

// renewMain makes a new issuing CA under the active root. The one before it is
// kept for our own certificate where its root drains. The turn is held.
func (r *Replica) renewMain(ctx context.Context, state journal.State) (journal.State, error) {
	active, ok := state.ActiveRoot()
	if !ok {
		return state, errors.New("the journal has no active root")
	}
	made, state, err := r.issue(ctx, state, active, false)
	if err != nil {
		return state, err
	}
	if before := r.main; before != nil && before.root != made.root && !before.tainted(&state) && r.old == nil {
		r.old = before
	}
	r.main = made
	return state, nil
}

// apply installs the snapshot of main and state, where another is in force. The
// turn is held.
func (r *Replica) apply(state journal.State) error {
	if snap := r.cfg.Authority.Current(); snap != nil && snap.Sequence() == state.Sequence && snap.Issuer().Equal(r.main.cert) {
		return nil
	}
	snap, err := r.snapshot(state, r.main)
	if err != nil {
		return err
	}
	if err := r.cfg.Authority.Install(snap); err != nil {
		return err
	}
	r.rootEnd.Set(float64(snap.Root().NotAfter.Unix()))
	r.ownEnd.Set(float64(r.main.cert.NotAfter.Unix()))
	r.cfg.Log.Info("issuing CA in force", "authority", snap.AuthorityID(), "root", r.main.root, "notAfter", r.main.cert.NotAfter, "sequence", state.Sequence)
	return nil
}

// serve sees to what our own certificate is signed under. The turn is held.
func (r *Replica) serve(ctx context.Context, state journal.State, active journal.Root) error {
	want := active
	if !r.rehearsing {
		want = oldest(&state, active)
	}
	if want.ID == active.ID {
		if !slices.ContainsFunc(state.In(journal.Draining), func(root journal.Root) bool { return r.old != nil && root.ID == r.old.root }) {
			r.old = nil // its root is trusted no more
		}
		if r.served != nil {
			r.served = nil
			r.cfg.Authority.InstallServing(nil)
			r.cfg.Log.Info("our own certificate is under the active root", "root", active.ID)
		}
		return nil
	}
	if r.old == nil || r.old.root != want.ID || r.old.tainted(&state) || !r.cfg.Now().Before(r.old.due) {
		made, next, err := r.issue(ctx, state, want, true)
		if err != nil {
			return fmt.Errorf("making an issuing CA for our own certificate: %w", err)
		}
		r.old, state = made, next
	}
	if r.served == r.old {
		return nil
	}
	snap, err := r.snapshot(state, r.old)
	if err != nil {
		return fmt.Errorf("making an issuing CA for our own certificate: %w", err)
	}
	r.served = r.old
	r.cfg.Authority.InstallServing(snap)
	r.cfg.Log.Info("our own certificate stays under the oldest root that is trusted", "root", want.ID, "authority", snap.AuthorityID())
	return nil
}

// oldest returns the oldest root that is trusted and has a key of ours.
func oldest(state *journal.State, active journal.Root) journal.Root {
	for _, root := range state.Roots { // in the order in which they came
		if root.KeyURI != "" && (root.Phase == journal.Draining || root.Phase == journal.Active) {
			return root
		}
	}
	return active
}

// half is when what ends at end is to be renewed.
func half(now, end time.Time) time.Time { return now.Add(end.Sub(now) / 2) }
