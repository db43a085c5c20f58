package rotate

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

// Status is everything that a person asks of a rotation.
type Status struct {
	At          time.Time      `json:"at"`
	TrustDomain string         `json:"trustDomain"`
	Record      uint64         `json:"record"`   // the journal's last
	Sequence    uint64         `json:"sequence"` // of the bundle
	Phase       string         `json:"phase"`
	Course      journal.Course `json:"course"`
	Automatic   Automatic      `json:"automatic"`
	Roots       []RootStatus   `json:"roots"`
	// Gates: A of the published root, B of each one that drains, and trust of
	// each that is only trusted, which shows who does not hold it yet.
	Gates []Gate `json:"gates,omitempty"`
	// Next is the step that is about to be taken by itself, Wait what it waits
	// for where there is none.
	Next Step `json:"next,omitzero"`
	Wait Wait `json:"wait,omitzero"`
	// Frozen is the step whose outcome is not known, Failure why the last one
	// did not come about.
	Frozen  *Failure `json:"frozen,omitempty"`
	Failure *Failure `json:"failure,omitempty"`
}

// RootStatus is one root, as it stands.
type RootStatus struct {
	ID        string        `json:"id"`
	Subject   string        `json:"subject"`
	Phase     journal.Phase `json:"phase"`
	Since     time.Time     `json:"since"`
	NotBefore time.Time     `json:"notBefore"`
	NotAfter  time.Time     `json:"notAfter"`
	Sequence  uint64        `json:"sequence,omitempty"`
	LifeUsed  float64       `json:"lifeUsed"`        // 0 to 1
	Alert     int           `json:"alert,omitempty"` // 50, 75, 90 or 97, in percent
	// Leaves under it that are unexpired, and the end of the last.
	Leaves      int       `json:"leaves,omitempty"`
	LeavesUntil time.Time `json:"leavesUntil,omitzero"`
	// KeyUntil is when the key of a root that is out is destroyed, Destroyed
	// when it was.
	KeyUntil  time.Time  `json:"keyUntil,omitzero"`
	Destroyed *time.Time `json:"destroyed,omitempty"`
}

// Failure is a step that did not come about.
type Failure struct {
	At     time.Time `json:"at"`
	Step   Act       `json:"step,omitempty"`
	Record uint64    `json:"record,omitempty"` // that it would have been
	Error  string    `json:"error"`
}

// Status reads the journal and asks the census. It does not wait for a step
// that is being taken, and takes none. With an error it still tells what this
// process knows: whether it is frozen, and why.
func (r *Runner) Status(ctx context.Context) (Status, error) {
	state, err := r.cfg.Store.Load(ctx)
	now, unsteady := r.lookAtClock()
	r.mu.Lock()
	seen := Seen{Rehearsed: r.rehearsed, Unsteady: unsteady}
	s := Status{At: now.UTC(), Automatic: r.cfg.Policy.Automatic, Failure: r.failure}
	if f := r.frozen; f != nil {
		s.Frozen = &Failure{Step: f.step, Record: f.write.number, At: f.at.UTC(), Error: f.err.Error()}
	}
	r.mu.Unlock()
	if err != nil {
		return s, fmt.Errorf("reading rotation status: %w", err)
	}
	q := questionFor(state, seen.Rehearsed, r.cfg.Policy)
	seen.Summary = r.cfg.Census.Summary(q)
	published := state.In(journal.Published)
	if len(published) > 0 {
		seen.Places = r.places(published[0].Sequence)
	}
	v := view{&state, &seen, &r.cfg.Policy, now}
	s.TrustDomain, s.Record, s.Sequence = state.TrustDomain, state.Number, state.Sequence
	s.Phase, s.Course = phaseOf(&state), state.Course
	for _, root := range state.Roots {
		s.Roots = append(s.Roots, v.rootStatus(root))
	}
	if len(published) > 0 {
		s.Gates = append(s.Gates, gateA(published[0], v))
	}
	if active, ok := state.ActiveRoot(); ok {
		for _, old := range state.In(journal.Draining) {
			s.Gates = append(s.Gates, gateB(old, active, v))
		}
	}
	for _, root := range state.In(journal.Trusted) {
		s.Gates = append(s.Gates, r.trustGate(root, v))
	}
	s.Next, s.Wait = Next(state, seen, r.cfg.Policy, now)
	return s, nil
}

// trustGate shows who does not hold a root that is only trusted: until then,
// others must not present certificates under it.
func (r *Runner) trustGate(root journal.Root, v view) Gate {
	q := census.Question{Sequence: root.Sequence, Since: root.Since, AsideAfter: 2 * v.policy.LeafLifetime, Names: journal.MaxBehind}
	s := r.cfg.Census.Summary(q)
	v.seen = &Seen{Summary: s, Places: r.places(root.Sequence)}
	g := gateA(root, v)
	g.Name = "trust"
	if !g.Open {
		g.Why = fmt.Sprintf("%d of %d consumers are not known to hold root %s", g.BehindCount+g.AsideCount, g.Consumers, short(root.ID))
		g.Mend = "do not present certificates under it yet"
	}
	return g
}

func (v view) rootStatus(root journal.Root) RootStatus {
	leaves := v.seen.Summary.Leaves[root.ID]
	s := RootStatus{
		ID: root.ID, Phase: root.Phase, Since: root.Since, Sequence: root.Sequence,
		Leaves: leaves.Count, LeavesUntil: leaves.Until, Destroyed: root.Destroyed,
	}
	if cert, err := x509.ParseCertificate(root.Certificate); err == nil { // the journal takes no other
		s.Subject, s.NotBefore, s.NotAfter = cert.Subject.String(), cert.NotBefore, cert.NotAfter
		s.LifeUsed = lifeUsed(cert, v.now)
		s.Alert = alertFor(s.LifeUsed)
	}
	if out(root) && root.KeyURI != "" && root.Destroyed == nil {
		s.KeyUntil = root.Since.Add(v.policy.KeyHold)
	}
	return s
}
