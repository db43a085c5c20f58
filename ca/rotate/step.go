package rotate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/hallmark-ca/hallmark/ca/journal"
)

const (
	// maxRounds bounds how often one command looks at the journal anew.
	maxRounds = 16
	// askIdle is how often the census is asked while no root goes round.
	askIdle = time.Minute
)

// decide says what is to be done, after taken steps of the same command are
// durable. No Step and no error: the command is done.
type decide func(v view, taken int) (Step, error)

// act is the one way of every step: of a person's command, of one that is due
// by itself, and of what start-up finds half done.
func (r *Runner) act(ctx context.Context, who string, d decide) error {
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("waiting for another step to end: %w", context.Cause(ctx))
	}
	defer func() { <-r.turn }()
	err := r.rounds(ctx, who, d)
	r.settle(err)
	return err
}

// settle keeps why nothing moved for Status. A refusal is an answer, and no
// failure.
func (r *Runner) settle(err error) {
	var refused *RefusedError
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.failure = nil
	case errors.As(err, &refused) && refused.Err == nil:
	default:
		r.failure = &Failure{At: r.cfg.Now().UTC(), Error: err.Error()}
	}
}

func (r *Runner) rounds(ctx context.Context, who string, d decide) error {
	taken := 0
	var unknown error // of the last round
	for range maxRounds {
		// 1. What is durable. It also shows how a write ended whose outcome was
		// not known: until then this fails, and nothing moves.
		state, stored, err := r.load(ctx)
		if err != nil {
			return err
		}
		switch {
		case stored:
			taken++
		case unknown != nil: // trying on might do it twice where it fails for a reason
			return fmt.Errorf("the journal shows that the step was not stored, and nothing has changed: %w", unknown)
		}
		unknown = nil
		// 2. It is made true in memory before anything is based on it. A cut
		// before this leaves a step that is durable and not carried out: the next
		// start comes through here first.
		if err := r.follow(ctx, state); err != nil {
			return err
		}
		// 3. The decision, on nothing but values.
		v := r.look(state)
		step, err := d(v, taken)
		if err != nil || step.Act == "" {
			return err
		}
		// 4. The step. A cut before its record is durable leaves the journal as it
		// was: the decision is made again.
		switch err := r.take(ctx, v, step, who); {
		case err == nil:
			taken++
		case errors.Is(err, journal.ErrConflict): // another was first: load, decide again
		case errors.Is(err, journal.ErrStateUnknown):
			unknown = err
		default:
			return err
		}
		// A cut here leaves a durable step: as at 2.
	}
	if who == itself {
		return nil // it goes on at the next look
	}
	return fmt.Errorf("giving up after %d rounds, the last of which found: %w", maxRounds, journal.ErrConflict)
}

// load returns the durable state. stored tells that it has the record whose
// outcome was not known.
func (r *Runner) load(ctx context.Context) (state journal.State, stored bool, err error) {
	state, err = r.cfg.Store.Load(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		if f := r.frozen; f != nil {
			return state, false, &RefusedError{
				Why:  fmt.Sprintf("whether the journal holds the last step (%s, at %s) is not known, and it cannot be read: %v", f.step, stamp(f.at), err),
				Mend: "nothing moves, and issuance goes on, until it can be read again; see that its storage works",
				Err:  errors.Join(journal.ErrStateUnknown, f.err, err),
			}
		}
		return state, false, fmt.Errorf("loading journal: %w", err)
	}
	if state.TrustDomain != r.cfg.TrustDomain.String() {
		return state, false, fmt.Errorf("loading journal: it is of trust domain %q, not %q", state.TrustDomain, r.cfg.TrustDomain)
	}
	if !state.Extends(r.seen.number, r.seen.head) || state.Sequence < r.seen.sequence {
		return state, false, fmt.Errorf("loading journal: %w", journal.ErrRolledBack)
	}
	r.seen = markOf(state)
	if f := r.frozen; f != nil {
		stored = state.Number >= f.write.number && state.Extends(f.write.number, f.write.head)
		r.cfg.Log.Info("the outcome of a journal write is known now", "step", f.step, "record", f.write.number, "stored", stored)
		r.frozen = nil
		r.metrics.frozen.Set(0)
		r.metrics.steps.WithLabelValues(string(f.step), outcome(stored)).Inc()
	}
	return state, stored, nil
}

func outcome(stored bool) string {
	if stored {
		return "done"
	}
	return "failed"
}

// follow has memory follow the journal. Nothing else moves until it does: a
// root that is to be retired may still be what this process signs under.
func (r *Runner) follow(ctx context.Context, state journal.State) error {
	if r.followed == markOf(state) {
		return nil
	}
	if err := r.cfg.Follower.Follow(ctx); err != nil {
		return fmt.Errorf("carrying out what the journal says (up to record %d; it is tried again until it works, and the last snapshot stays in force): %w", state.Number, err)
	}
	r.followed = markOf(state)
	return nil
}

// look collects what a decision rests on.
func (r *Runner) look(state journal.State) view {
	now, unsteady := r.lookAtClock()
	seen := Seen{Unsteady: unsteady}
	r.mu.Lock()
	if root, ok := state.Root(r.rehearsed.Root); !ok || root.Phase != journal.Draining {
		r.rehearsed = Rehearsed{} // its root is out: what is served is Follow's again
	}
	seen.Rehearsed = r.rehearsed
	r.mu.Unlock()
	mono := time.Since(r.epoch)
	published := state.In(journal.Published)
	// The census forgets who is gone when it is asked, so that it is also where
	// nothing hangs on the answer.
	if idle := len(published)+len(state.In(journal.Draining)) == 0; !idle || mono >= r.ask {
		r.ask = mono + askIdle
		seen.Summary = r.cfg.Census.Summary(questionFor(state, seen.Rehearsed, r.cfg.Policy))
	}
	if len(published) > 0 {
		seen.Places = r.places(published[0].Sequence)
	}
	v := view{&state, &seen, &r.cfg.Policy, now}
	r.metrics.show(v)
	return v
}

func (r *Runner) places(sequence uint64) []Place {
	if r.cfg.Places == nil {
		return nil
	}
	return r.cfg.Places(sequence)
}

// take carries out one step.
func (r *Runner) take(ctx context.Context, v view, step Step, who string) error {
	err := r.carryOut(ctx, v, step, who)
	if errors.Is(err, journal.ErrStateUnknown) {
		return err // counted when it is known
	}
	r.metrics.steps.WithLabelValues(string(step.Act), outcome(err == nil)).Inc()
	if err != nil {
		return fmt.Errorf("taking step %s: %w", step.Act, err)
	}
	r.cfg.Log.Info("rotation step taken", "step", step.Act, "root", step.Root, "by", who, "why", step.Failed)
	return nil
}

// phases are where the journalled moves of a root lead.
var phases = map[Act]journal.Phase{
	Publish: journal.Published, Activate: journal.Active, Retire: journal.Retired, Abort: journal.Aborted,
}

func (r *Runner) carryOut(ctx context.Context, v view, step Step, who string) error {
	switch step.Act {
	case Prepare:
		return r.prepare(ctx, v, who)
	case Rehearse:
		return r.rehearse(ctx, v, step)
	case Revert:
		return r.revert(ctx, v, step)
	}
	root, ok := v.state.Root(step.Root)
	body := journal.Body{}
	var signers []journal.Signer
	switch to, moves := phases[step.Act]; {
	case step.Act == Trust:
		body.Added = step.trust
	case step.Act == SetCourse:
		body.Course = &step.Course
	case !ok:
		return fmt.Errorf("root %s is not known", step.Root)
	case step.Act == Destroy:
		// A cut after it leaves a key that is gone and a journal that does not
		// say so: it is destroyed once more, which changes nothing.
		if err := r.cfg.Keys.Destroy(ctx, root); err != nil {
			return fmt.Errorf("destroying key of root %s: %w", root.ID, err)
		}
		body.Destroyed = &root.ID
	case moves:
		body.Step = &journal.Step{Root: root.ID, To: to, Passed: step.Passed}
	default:
		return fmt.Errorf("there is no step %q", step.Act)
	}
	if step.Act == Publish || step.Act == Activate {
		// A root whose key cannot be opened is published for nothing; its
		// activation is signed by it too.
		key, err := r.cfg.Keys.Open(ctx, root)
		if err != nil {
			return fmt.Errorf("opening key of root %s, which is on its way (hallmark rotate abort takes it back): %w", root.ID, err)
		}
		if step.Act == Activate {
			signers = append(signers, journal.Signer{Root: root.ID, Key: key})
		}
	}
	return r.record(ctx, v, step.Act, body, who, signers...)
}

// prepare makes a root and journals it.
func (r *Runner) prepare(ctx context.Context, v view, who string) error {
	// A cut within Make or after it leaves a key that no journal names: it has
	// signed nothing but its own certificate, and the next attempt makes another.
	root, key, err := r.cfg.Keys.Make(ctx, r.cfg.TrustDomain, r.cfg.Policy.RootLifetime, v.now)
	if err != nil {
		return fmt.Errorf("making root: %w", err)
	}
	for _, known := range v.state.Roots {
		if known.ID == root.ID || known.KeyURI == root.KeyURI { // and so it must not be destroyed below
			return fmt.Errorf("making root: the key that came back (%s) has the key of root %s, or its place", root.KeyURI, known.ID)
		}
	}
	root.Phase, root.Since, root.Sequence, root.Destroyed = journal.Prepared, v.now.UTC(), 0, nil
	err = r.record(ctx, v, Prepare, journal.Body{Added: &root}, who, journal.Signer{Root: root.ID, Key: key})
	if err == nil || errors.Is(err, journal.ErrStateUnknown) {
		// Where the outcome is not known the key stays, whatever a read shows: a
		// write that is late may still name it.
		return err
	}
	if lost := r.cfg.Keys.Destroy(ctx, root); lost != nil {
		return errors.Join(err, fmt.Errorf("destroying the key that no journal names (%s): %w", root.KeyURI, lost))
	}
	return err
}

// record signs body and appends it.
func (r *Runner) record(ctx context.Context, v view, step Act, body journal.Body, who string, also ...journal.Signer) error {
	active, ok := v.state.ActiveRoot()
	if !ok {
		return errors.New("the journal has no active root")
	}
	key, err := r.cfg.Keys.Open(ctx, active)
	if err != nil {
		return fmt.Errorf("opening key of root %s: %w", active.ID, err)
	}
	body.Time, body.TrustDomain, body.By = v.now.UTC(), v.state.TrustDomain, who
	rec, err := journal.NewRecord(*v.state, body, append(also, journal.Signer{Root: active.ID, Key: key})...)
	if err != nil {
		return err
	}
	err = r.cfg.Store.Append(ctx, rec)
	if errors.Is(err, journal.ErrStateUnknown) {
		r.freeze(v, step, rec, err)
	}
	return err
}

func (r *Runner) freeze(v view, step Act, rec journal.Record, err error) {
	sum := sha256.Sum256(rec.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = &frozen{step: step, at: v.now, err: err, write: mark{number: v.state.Number + 1, head: hex.EncodeToString(sum[:])}}
	r.metrics.frozen.Set(1)
	r.cfg.Log.Error("whether a step is in the journal is not known: nothing moves until a read shows it", "step", step, "record", v.state.Number+1, "error", err)
}

// rehearse presents the new serving certificate.
func (r *Runner) rehearse(ctx context.Context, v view, step Step) error {
	active, _ := v.state.ActiveRoot()
	next := Rehearsed{Root: step.Root, Active: active.ID, Begun: v.now}
	// Before it begins: whatever of it fails has to be taken back.
	since, err := r.cfg.Rehearsal.Begin(ctx)
	if err != nil {
		next.Broken, next.Why = true, "presenting the certificate failed: "+err.Error()
		err = fmt.Errorf("beginning rehearsal: %w", err)
	} else {
		next.Begun = since
	}
	// A cut anywhere in it leaves nothing: the next process presents the old one.
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rehearsed = next
	return err
}

// revert takes a rehearsal back.
func (r *Runner) revert(ctx context.Context, v view, step Step) error {
	// From here on it cannot pass any more, whatever becomes of Revert: whoever
	// comes back may have met the old certificate.
	r.mu.Lock()
	if !r.rehearsed.Broken {
		r.rehearsed.Broken, r.rehearsed.Why = true, step.Failed
		r.rehearsed.Behind, r.rehearsed.Count = v.seen.Summary.Unseen, v.seen.Summary.UnseenCount
	}
	r.mu.Unlock()
	if err := r.cfg.Rehearsal.Revert(ctx); err != nil {
		return fmt.Errorf("taking the rehearsal back: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if step.Failed == "" {
		r.rehearsed = Rehearsed{}
		return nil
	}
	r.rehearsed.Begun, r.rehearsed.Broken, r.rehearsed.Failed = time.Time{}, false, v.now
	return nil
}
