package rotate

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

// maxSkew is how far the clock may be behind the journal, or jump, before no
// step is taken.
const maxSkew = 30 * time.Second

// Act is what a step does.
type Act string

// The acts. Rehearse and Revert change our serving certificate alone and are
// not journalled: after a restart it is the old one, and a rehearsal that had
// begun is held anew.
const (
	Prepare   Act = "prepare"    // make a root, trusted by nobody
	Publish   Act = "publish"    // put it into the bundle
	Activate  Act = "activate"   // sign with it; the one before drains
	Rehearse  Act = "rehearse"   // serve under it, and end all connections once
	Revert    Act = "revert"     // serve under the old one again
	Retire    Act = "retire"     // take a root out of the bundle
	Destroy   Act = "destroy"    // destroy the key of a root that is out
	Abort     Act = "abort"      // take a root back before it signed
	Trust     Act = "trust"      // take in a root that is not ours to sign with
	SetCourse Act = "set-course" // go on by itself, by steps, or not at all
)

// Step is what is to be done next. The zero Step does nothing.
type Step struct {
	Act    Act             `json:"act,omitempty"`
	Root   string          `json:"root,omitempty"` // journal.Root.ID, "" for a new one
	Course journal.Course  `json:"course,omitempty"`
	Passed *journal.Passed `json:"passed,omitempty"`
	// Failed says of a Revert that the rehearsal has failed, and why.
	Failed string `json:"failed,omitempty"`
	trust  *journal.Root
}

// What a [Wait] is for.
const (
	ForNothing   = "nothing"   // no rotation is under way, and none is due
	ForGateA     = "gate-a"    // consumers that lack the new root
	ForGateB     = "gate-b"    // leaves under the old one
	ForRehearsal = "rehearsal" // consumers that have not come back, or the next try
	ForPerson    = "person"
	ForWindow    = "window"
	ForClock     = "clock"
	ForJournal   = "journal" // it has nothing that could be rotated
)

// Wait says why there is no step.
type Wait struct {
	For    string    `json:"for,omitempty"`
	Next   Act       `json:"next,omitempty"` // the step that waits
	Root   string    `json:"root,omitempty"` // that it is about
	Reason string    `json:"reason,omitempty"`
	Mend   string    `json:"mend,omitempty"` // what a person can do
	Until  time.Time `json:"until,omitzero"` // the earliest; zero where nobody knows
}

// Seen is what is known of the world beside the journal.
type Seen struct {
	Summary   census.Summary // of the root that is on its way, or else the active one
	Places    []Place        // for the root that is on its way
	Rehearsed Rehearsed
	// Unsteady is until when the clock is not relied on because it has jumped.
	Unsteady time.Time
}

// Place is where the bundle is published for readers that do not tell us what
// they hold: a file, an object, an endpoint.
type Place struct {
	Name string
	// Held is when every reader there can be taken to hold the bundle that was
	// asked for: its writing, and the reader's delay. Zero: it is not written.
	Held time.Time
	Why  string // it is not written
}

// Rehearsed is where the rehearsal of gate B stands.
type Rehearsed struct {
	Root   string    // the draining root that it is for
	Active string    // the root that was presented
	Begun  time.Time // consumers seen since then have met it; zero: none is on
	Failed time.Time // when the last one was given up; zero: none was
	Why    string    // it was, or has to be
	Broken bool      // presenting failed: what is presented is not known
	Behind []census.Consumer
	Count  int // of consumers that did not return when it failed
}

// view is everything a decision rests on.
type view struct {
	state  *journal.State
	seen   *Seen
	policy *Policy
	now    time.Time
}

// Next decides what is to be done by itself, and says what the rotation waits
// for where that is nothing, or the end of a key. It changes none of its
// arguments. What it returns is safe at any point of a rotation that was cut: a
// root that was prepared is published, a rehearsal that cannot pass taken back.
//
// A key whose hold is over comes last, so that one that cannot be destroyed
// keeps nothing else from moving. A pause does not keep it: it was taken out by
// a step that nobody can take back.
func Next(state journal.State, seen Seen, policy Policy, now time.Time) (Step, Wait) {
	v := view{&state, &seen, &policy, now}
	if step := v.revert(); step.Act != "" {
		return step, Wait{}
	}
	if wait := v.clock(); wait.For != "" {
		return Step{}, wait
	}
	step, wait := v.move()
	if step.Act == "" {
		step = v.destroy()
	}
	return step, wait
}

// move decides about the roots that are on their way in or out.
func (v view) move() (Step, Wait) {
	active, ok := v.state.ActiveRoot()
	if !ok {
		return Step{}, Wait{For: ForJournal, Reason: "the journal has no active root"}
	}
	if v.state.Course == journal.Paused {
		return Step{}, Wait{For: ForPerson, Reason: "the rotation is paused", Mend: "hallmark rotate resume"}
	}
	if prepared := v.state.In(journal.Prepared); len(prepared) > 0 {
		return Step{Act: Publish, Root: prepared[0].ID}, Wait{}
	}
	step, first := v.onItsWay()
	if step.Act != "" {
		return step, Wait{}
	}
	step, second := v.draining(active)
	switch {
	case step.Act != "":
		return step, Wait{}
	case first.For != "":
		return Step{}, first
	case second.For != "":
		return Step{}, second
	}
	return v.idle(active)
}

// revert ends a rehearsal that can no longer pass.
func (v view) revert() Step {
	r := &v.seen.Rehearsed
	if r.Begun.IsZero() && !r.Broken {
		return Step{}
	}
	step := Step{Act: Revert, Root: r.Root}
	root, ok := v.state.Root(r.Root)
	active, _ := v.state.ActiveRoot()
	switch {
	case !ok || root.Phase != journal.Draining || active.ID != r.Active || v.state.Course == journal.Paused:
		return step // not its fault: the next one need not wait
	case v.now.Before(v.seen.Unsteady):
		return step // who came back before and who since cannot be told
	case r.Broken:
		step.Failed = r.Why
		return step
	case v.seen.Summary.UnseenCount > 0 && !v.now.Before(r.Begun.Add(v.policy.RehearsalWindow)):
		step.Failed = fmt.Sprintf("%s did not come back within %s", consumers(v.seen.Summary.UnseenCount), v.policy.RehearsalWindow)
		return step
	}
	return Step{}
}

// clock refuses to move anything by a clock that cannot be right: a root's
// phase cannot have begun in the future, and an hour that is skipped makes
// leaves look expired that are not.
func (v view) clock() Wait {
	for _, r := range v.state.Roots {
		if behind := r.Since.Sub(v.now); behind > maxSkew {
			return Wait{
				For: ForClock, Until: r.Since,
				Reason: fmt.Sprintf("the clock is %s behind the journal (ClockSkew)", behind.Round(time.Second)),
				Mend:   "set this machine's clock",
			}
		}
	}
	if v.now.Before(v.seen.Unsteady) {
		return Wait{
			For: ForClock, Until: v.seen.Unsteady,
			Reason: "the clock has jumped (ClockSkew), and nothing moves until it has been steady for a while",
			Mend:   "see that this machine's clock is right, and wait",
		}
	}
	return Wait{}
}

// destroy finds a key whose hold is over.
func (v view) destroy() Step {
	for _, r := range v.state.Roots {
		if out(r) && r.KeyURI != "" && r.Destroyed == nil && !v.now.Before(r.Since.Add(v.policy.KeyHold)) {
			return Step{Act: Destroy, Root: r.ID}
		}
	}
	return Step{}
}

// out tells whether a root has been in the bundle's reach, and no longer is.
func out(r journal.Root) bool { return r.Phase == journal.Retired || r.Phase == journal.Aborted }

// itself tells whether steps are taken by themselves.
func (v view) itself() bool {
	return v.state.Course == journal.Run || v.policy.Automatic == RunAlone && v.state.Course != journal.Paused
}

// due returns step if it may be taken now by itself, and what it waits for
// otherwise: its gate is open.
func (v view) due(step Step, reason, command string) (Step, Wait) {
	if !v.itself() {
		return Step{}, Wait{For: ForPerson, Next: step.Act, Root: step.Root, Reason: reason, Mend: command}
	}
	if open, from := v.policy.open(v.now); !open {
		return Step{}, Wait{For: ForWindow, Next: step.Act, Root: step.Root, Until: from, Reason: reason + "; the next window (rotation.windows) has not begun", Mend: "wait, or " + command}
	}
	return step, Wait{}
}

func (v view) onItsWay() (Step, Wait) {
	published := v.state.In(journal.Published)
	if len(published) == 0 {
		return Step{}, Wait{}
	}
	gate := gateA(published[0], v)
	if !gate.Open {
		return Step{}, Wait{For: ForGateA, Next: Activate, Root: gate.Root, Reason: gate.Why, Mend: gate.Mend, Until: gate.Earliest}
	}
	return v.due(Step{Act: Activate, Root: gate.Root, Passed: gate.asidePassed()}, "gate A is open", "hallmark rotate activate")
}

// draining looks at the oldest old root alone: our serving certificate is under
// it, so no other can be rehearsed before it is gone.
func (v view) draining(active journal.Root) (Step, Wait) {
	old := v.state.In(journal.Draining)
	if len(old) == 0 {
		return Step{}, Wait{}
	}
	gate := gateB(old[0], active, v)
	wait := Wait{For: gate.waits, Next: Retire, Root: gate.Root, Reason: gate.Why, Mend: gate.Mend, Until: gate.Earliest}
	switch {
	case gate.Open:
		return v.due(Step{Act: Retire, Root: gate.Root}, "gate B is open", "hallmark rotate retire")
	case gate.rehearse && !v.now.Before(gate.Earliest):
		if open, from := v.policy.open(v.now); !open {
			wait.For, wait.Next, wait.Until = ForWindow, Rehearse, from
			return Step{}, wait
		}
		return Step{Act: Rehearse, Root: gate.Root}, Wait{}
	}
	return Step{}, wait
}

// idle decides when nothing is on its way: whether a course is over, and
// whether a new root is due.
func (v view) idle(active journal.Root) (Step, Wait) {
	if v.state.Course == journal.Run {
		return Step{Act: SetCourse, Course: journal.Manual}, Wait{}
	}
	cert, err := x509.ParseCertificate(active.Certificate)
	if err != nil {
		return Step{}, Wait{For: ForJournal, Reason: fmt.Sprintf("root %s cannot be read: %v", active.ID, err)}
	}
	half := halfLife(cert)
	if v.policy.Automatic == Disabled {
		return Step{}, Wait{For: ForNothing, Reason: "no rotation is under way"}
	}
	if v.now.Before(half) {
		return Step{}, Wait{For: ForNothing, Next: Prepare, Until: half, Reason: "no rotation is under way; the next is due at half of the root's life"}
	}
	const reason = "half of the root's life is over: a rotation is due"
	for _, r := range v.state.In(journal.Aborted) {
		if r.Since.After(active.Since) { // what a person took back is not begun again behind their back
			return Step{}, Wait{For: ForPerson, Next: Prepare, Reason: reason + "; the last one was aborted", Mend: "hallmark rotate run"}
		}
	}
	return v.due(Step{Act: Prepare}, reason, "hallmark rotate run")
}

func halfLife(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
}

// lifeUsed returns the part of its life that a certificate is through with,
// from 0 to 1.
func lifeUsed(cert *x509.Certificate, now time.Time) float64 {
	whole := cert.NotAfter.Sub(cert.NotBefore)
	if whole <= 0 {
		return 1
	}
	return min(max(float64(now.Sub(cert.NotBefore))/float64(whole), 0), 1)
}

// alertFor returns the highest of the thresholds, in percent, that a root's age
// has passed, 0 below the first.
func alertFor(used float64) int {
	for _, percent := range []int{97, 90, 75, 50} {
		if used*100 >= float64(percent) {
			return percent
		}
	}
	return 0
}
