package rotate

import (
	"context"
	"fmt"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

// Force passes a gate that is shut. What else refuses a step (a pause, the
// clock, a journal whose state is not known) it does not pass.
type Force struct {
	Pass   bool   // the gate may be shut
	Reason string // why, for the journal; required with Pass, at most 512 bytes
}

// RefusedError says why a command was not carried out, and what to do.
type RefusedError struct {
	Why, Mend string
	Err       error // that stands behind it, nil where the rules do
}

// Error returns the whole text.
func (e *RefusedError) Error() string {
	if e.Mend == "" {
		return e.Why
	}
	return e.Why + ": " + e.Mend
}

// Unwrap returns the failure behind it.
func (e *RefusedError) Unwrap() error { return e.Err }

func refuse(mend, why string, args ...any) error {
	return &RefusedError{Why: fmt.Sprintf(why, args...), Mend: mend}
}

// Bounds of what a person tells the journal, in bytes.
const (
	maxWho    = 256
	maxReason = 512
)

// command checks who asks and takes the steps that d decides.
func (r *Runner) command(ctx context.Context, who string, d decide) error {
	if who == "" || len(who) > maxWho || who == itself {
		return refuse("", "who asks is not known, or is a name of more than %d bytes", maxWho)
	}
	return r.act(ctx, attest.Escape(who), d)
}

func (f Force) check() error {
	switch {
	case f.Pass && f.Reason == "":
		return refuse("--reason says why, for the journal", "a gate is not passed without a reason")
	case len(f.Reason) > maxReason:
		return refuse("say it shorter", "the reason has %d bytes, at most %d are journalled", len(f.Reason), maxReason)
	}
	return nil
}

// Start makes a new root and publishes it. One that was prepared before, and
// cut off there, is published instead.
func (r *Runner) Start(ctx context.Context, who string) error {
	return r.command(ctx, who, func(v view, taken int) (Step, error) {
		if prepared := v.state.In(journal.Prepared); len(prepared) > 0 {
			return v.permit(Step{Act: Publish, Root: prepared[0].ID})
		}
		if taken > 0 {
			return Step{}, nil
		}
		if published := v.state.In(journal.Published); len(published) > 0 {
			return Step{}, refuse("hallmark rotate activate, or abort, it first", "root %s is on its way already", short(published[0].ID))
		}
		return v.permit(Step{Act: Prepare})
	})
}

// Activate has the published root sign, if gate A is open or force passes it.
func (r *Runner) Activate(ctx context.Context, who string, force Force) error {
	if err := force.check(); err != nil {
		return err
	}
	return r.command(ctx, who, func(v view, taken int) (Step, error) {
		if taken > 0 {
			return Step{}, nil
		}
		published := v.state.In(journal.Published)
		if len(published) == 0 {
			return Step{}, refuse("hallmark rotate start", "no root is published that could be activated")
		}
		gate := gateA(published[0], v)
		step := Step{Act: Activate, Root: gate.Root, Passed: gate.asidePassed()}
		if !gate.Open {
			if !force.Pass {
				return Step{}, &RefusedError{Why: gate.Why, Mend: gate.Mend}
			}
			step.Passed = gate.forced(attest.Escape(force.Reason))
		}
		return v.permit(step)
	})
}

// Retire takes a draining root out of the bundle, if gate B is open or force
// passes it; no root means the oldest. Where a rehearsal is all that is missing,
// it is held now.
func (r *Runner) Retire(ctx context.Context, who, root string, force Force) error {
	if err := force.check(); err != nil {
		return err
	}
	return r.command(ctx, who, func(v view, taken int) (Step, error) {
		old, err := v.drainingRoot(root)
		if err != nil {
			if taken > 0 && root != "" {
				return Step{}, nil
			}
			return Step{}, err
		}
		root = old.ID // also of the rounds to come
		active, _ := v.state.ActiveRoot()
		gate := gateB(old, active, v)
		switch {
		case gate.Open:
			return v.permit(Step{Act: Retire, Root: old.ID})
		case force.Pass:
			return v.permit(Step{Act: Retire, Root: old.ID, Passed: gate.forced(attest.Escape(force.Reason))})
		case gate.rehearse && taken == 0:
			return v.permit(Step{Act: Rehearse, Root: old.ID})
		}
		return Step{}, &RefusedError{Why: gate.Why, Mend: gate.Mend}
	})
}

func (v view) drainingRoot(id string) (journal.Root, error) {
	old := v.state.In(journal.Draining)
	switch root, ok := v.state.Root(id); {
	case id == "" && len(old) == 0:
		return root, refuse("", "no root is draining that could be retired")
	case id == "":
		return old[0], nil
	case !ok:
		return root, refuse("hallmark rotate status lists them", "root %s is not known", attest.Escape(id))
	case root.Phase == journal.Trusted:
		return root, refuse("hallmark rotate untrust", "root %s is only trusted and never signed here", short(id))
	case root.Phase != journal.Draining:
		return root, refuse("", "root %s is %s, and only one that is draining can be retired", short(id), root.Phase)
	default:
		return root, nil
	}
}

// Abort takes back the root that is on its way, before it has signed. It works
// also in a pause and by a clock that is not relied on: it is the way back.
func (r *Runner) Abort(ctx context.Context, who string) error {
	return r.command(ctx, who, func(v view, taken int) (Step, error) {
		if taken > 0 {
			return Step{}, nil
		}
		for _, root := range append(v.state.In(journal.Prepared), v.state.In(journal.Published)...) {
			return Step{Act: Abort, Root: root.ID}, nil
		}
		return Step{}, refuse("", "no root is on its way that could be aborted; one that is active cannot be, only replaced (hallmark rotate start)")
	})
}

// Trust takes a root into the bundle that is not ours to sign with; der is its
// certificate.
func (r *Runner) Trust(ctx context.Context, who string, der []byte) error {
	return r.command(ctx, who, func(v view, taken int) (Step, error) {
		if taken > 0 {
			return Step{}, nil
		}
		root, err := v.foreign(der)
		if err != nil {
			return Step{}, err
		}
		return v.permit(Step{Act: Trust, Root: root.ID, trust: root})
	})
}

// Untrust takes a root out again that was only trusted. Who still has a
// certificate under it is not known here, so that a person says why it may go.
func (r *Runner) Untrust(ctx context.Context, who, root string, force Force) error {
	if err := force.check(); err != nil {
		return err
	}
	return r.command(ctx, who, func(v view, taken int) (Step, error) {
		if taken > 0 {
			return Step{}, nil
		}
		switch known, ok := v.state.Root(root); {
		case !ok:
			return Step{}, refuse("hallmark rotate status lists them", "root %s is not known", attest.Escape(root))
		case known.Phase != journal.Trusted:
			return Step{}, refuse("", "root %s is %s, and not only trusted", short(root), known.Phase)
		case !force.Pass:
			return Step{}, refuse("--force --reason says that nobody has", "who still has a certificate under root %s, which is not ours, is not known here", short(root))
		}
		return v.permit(Step{Act: Retire, Root: root, Passed: passed(attest.Escape(force.Reason), 0, nil)})
	})
}

// Pause stops the rotation where it is; a rehearsal that is on is taken back.
func (r *Runner) Pause(ctx context.Context, who string) error {
	return r.command(ctx, who, onCourse(journal.Paused))
}

// Resume ends a pause. The rotation goes on by a person's steps, or by itself
// where the policy says so.
func (r *Runner) Resume(ctx context.Context, who string) error {
	return r.command(ctx, who, func(v view, taken int) (Step, error) {
		if taken == 0 && v.state.Course != journal.Paused {
			return Step{}, refuse("", "the rotation is not paused")
		}
		return onCourse(journal.Manual)(v, taken)
	})
}

func onCourse(course journal.Course) decide {
	return func(v view, _ int) (Step, error) {
		if v.state.Course == course {
			return Step{}, nil
		}
		return Step{Act: SetCourse, Course: course}, nil
	}
}

// RunAll has the rotation that is under way, or else a new one, go on by itself
// through all phases, waiting at the gates. It ends a pause. The course is
// journalled: it survives a restart.
func (r *Runner) RunAll(ctx context.Context, who string) error {
	return r.command(ctx, who, func(v view, _ int) (Step, error) {
		s := v.state
		switch prepared := s.In(journal.Prepared); {
		case len(prepared) > 0:
			// A cut before the course is set leaves a root that is on its way by
			// steps of a person.
			return v.steady(Step{Act: Publish, Root: prepared[0].ID})
		case len(s.In(journal.Published))+len(s.In(journal.Draining)) == 0:
			return v.steady(Step{Act: Prepare})
		}
		return onCourse(journal.Run)(v, 0)
	})
}

// permit returns step unless a pause or the clock is in its way.
func (v view) permit(step Step) (Step, error) {
	if v.state.Course == journal.Paused {
		return Step{}, refuse("hallmark rotate resume", "the rotation is paused")
	}
	return v.steady(step)
}

// steady returns step unless the clock is in its way.
func (v view) steady(step Step) (Step, error) {
	if wait := v.clock(); wait.For != "" {
		return Step{}, refuse(wait.Mend, "%s", wait.Reason)
	}
	return step, nil
}
