package journal

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// event is one kind of what a record can say: whether a body says it, and what
// it makes of a state that may be changed.
type event struct {
	said  func(*Body) bool
	apply func(*State, *Body) error
}

var events = []event{
	{func(b *Body) bool { return b.Founded != nil }, found},
	{func(b *Body) bool { return b.Added != nil }, add},
	{func(b *Body) bool { return b.Step != nil }, step},
	{func(b *Body) bool { return b.Issuing != nil }, issuing},
	{func(b *Body) bool { return b.Taint != nil }, taint},
	{func(b *Body) bool { return b.Course != nil }, course},
	{func(b *Body) bool { return b.Destroyed != nil }, destroyed},
	{func(b *Body) bool { return b.Folded != nil }, fold},
}

// applyEvent returns what b makes of s, which stays as it is.
func applyEvent(s State, b Body) (State, error) {
	next := State{
		Sequence: s.Sequence, Course: s.Course,
		Roots: slices.Clone(s.Roots), Issuing: slices.Clone(s.Issuing), heads: maps.Clone(s.heads),
	}
	if next.heads == nil {
		next.heads = map[uint64]string{}
	}
	if next.Course == "" {
		next.Course = Manual
	}
	var said []event
	for _, e := range events {
		if e.said(&b) {
			said = append(said, e)
		}
	}
	if len(said) != 1 {
		return State{}, errors.New("it does not say exactly one thing")
	}
	if err := said[0].apply(&next, &b); err != nil {
		return State{}, err
	}
	return next, nil
}

// enter puts a new root into the state. Names and keys are used once: whoever
// re-used a key would not have rotated.
func (s *State) enter(r Root) error {
	cert, err := x509.ParseCertificate(r.Certificate)
	if err != nil {
		return fmt.Errorf("root %s: %w", r.ID, err)
	}
	if !cert.IsCA || hex.EncodeToString(cert.SubjectKeyId) != r.ID {
		return fmt.Errorf("root %s has a certificate that is no CA, or has another key identifier", r.ID)
	}
	for _, known := range s.Roots {
		other, err := x509.ParseCertificate(known.Certificate)
		if err != nil {
			return fmt.Errorf("root %s: %w", known.ID, err)
		}
		switch {
		case known.ID == r.ID || string(other.RawSubjectPublicKeyInfo) == string(cert.RawSubjectPublicKeyInfo):
			return fmt.Errorf("root %s has the key of root %s", r.ID, known.ID)
		case string(other.RawSubject) == string(cert.RawSubject):
			return fmt.Errorf("root %s has the name of root %s: %q", r.ID, known.ID, cert.Subject)
		}
	}
	s.Roots = append(s.Roots, r)
	s.bundleChanged(len(s.Roots) - 1)
	return nil
}

// bundleChanged raises the sequence where the root at i is in the bundle now,
// or was before. Whoever calls it has just changed that.
func (s *State) bundleChanged(i int) {
	switch r := &s.Roots[i]; {
	case r.Phase.InBundle() && r.Sequence == 0:
		s.Sequence++
		r.Sequence = s.Sequence
	case !r.Phase.InBundle() && r.Sequence != 0:
		s.Sequence++
	}
}

func found(s *State, b *Body) error {
	if len(s.Roots) > 0 || b.Founded.Phase != Active || b.Founded.Sequence != 0 {
		return errors.New("it founds a second active root, or one that is not active")
	}
	return s.enter(*b.Founded)
}

func add(s *State, b *Body) error {
	r := *b.Added
	if _, ok := s.ActiveRoot(); !ok {
		return errors.New("it adds a root where none is active")
	}
	switch {
	case r.Phase == Prepared && r.KeyURI == "":
		return errors.New("it prepares a root without a key")
	case r.Phase == Prepared && len(s.In(Prepared))+len(s.In(Published)) > 0:
		return errors.New("it prepares a root while another is on its way")
	case r.Phase != Prepared && r.Phase != Trusted:
		return fmt.Errorf("it adds a root that is %s", r.Phase)
	case r.Sequence != 0 || r.Destroyed != nil:
		return errors.New("it adds a root with a history")
	}
	return s.enter(r)
}

func step(s *State, b *Body) error {
	i := slices.IndexFunc(s.Roots, func(r Root) bool { return r.ID == b.Step.Root })
	if i < 0 {
		return fmt.Errorf("it moves root %s, which is not known", b.Step.Root)
	}
	from, to := s.Roots[i].Phase, b.Step.To
	if !slices.Contains(steps[from], to) {
		return fmt.Errorf("it moves root %s from %s to %s, which is no step", b.Step.Root, from, to)
	}
	if p := b.Step.Passed; p != nil && (len(p.Behind) > MaxBehind || p.Count < len(p.Behind)) {
		return errors.New("it names more consumers than were behind")
	}
	if to == Active {
		for j := range s.Roots {
			if s.Roots[j].Phase == Active {
				s.Roots[j].Phase, s.Roots[j].Since = Draining, b.Time
			}
		}
	}
	s.Roots[i].Phase, s.Roots[i].Since = to, b.Time
	s.bundleChanged(i)
	return nil
}

func issuing(s *State, b *Body) error {
	root, ok := s.Root(b.Issuing.Root)
	switch {
	case !ok || root.Phase != Active && !(root.Phase == Draining && b.Issuing.Serving):
		return fmt.Errorf("it names an issuing CA under %s, which is not the active root", b.Issuing.Root)
	case b.Issuing.Tainted != "":
		return errors.New("it names an issuing CA that is tainted from the start")
	case slices.ContainsFunc(s.Issuing, func(ca IssuingCA) bool { return ca.ID == b.Issuing.ID }):
		return fmt.Errorf("it names issuing CA %s once more", b.Issuing.ID)
	}
	if err := b.Issuing.check(root); err != nil {
		return fmt.Errorf("issuing CA %s: %w", b.Issuing.ID, err)
	}
	s.Issuing = append(s.Issuing, *b.Issuing)
	return nil
}

// check holds what is said of an issuing CA against its certificate.
func (ca *IssuingCA) check(root Root) error {
	cert, err := x509.ParseCertificate(ca.Certificate)
	if err != nil {
		return err
	}
	parent, err := x509.ParseCertificate(root.Certificate)
	if err != nil {
		return fmt.Errorf("root %s: %w", root.ID, err)
	}
	switch {
	case hex.EncodeToString(cert.SubjectKeyId) != ca.ID:
		return errors.New("its certificate has another key identifier")
	case !cert.IsCA || !cert.NotAfter.Equal(ca.NotAfter):
		return errors.New("its certificate is no CA, or ends at another time")
	}
	return cert.CheckSignatureFrom(parent)
}

func taint(s *State, b *Body) error {
	i := slices.IndexFunc(s.Issuing, func(ca IssuingCA) bool { return ca.ID == b.Taint.Issuing })
	if i < 0 || b.Taint.Reason == "" {
		return fmt.Errorf("it taints issuing CA %s, which is not known, or does not say why", b.Taint.Issuing)
	}
	s.Issuing[i].Tainted = b.Taint.Reason
	return nil
}

func course(s *State, b *Body) error {
	if c := *b.Course; c != Manual && c != Run && c != Paused {
		return fmt.Errorf("it sets the rotation on course %q", c)
	}
	s.Course = *b.Course
	return nil
}

func destroyed(s *State, b *Body) error {
	i := slices.IndexFunc(s.Roots, func(r Root) bool { return r.ID == *b.Destroyed })
	if i < 0 || s.Roots[i].Phase != Retired && s.Roots[i].Phase != Aborted || s.Roots[i].Destroyed != nil {
		return fmt.Errorf("it destroys the key of root %s, which is not retired, or has none", *b.Destroyed)
	}
	at := b.Time
	s.Roots[i].Destroyed = &at
	return nil
}

func fold(s *State, b *Body) error {
	if b.Folded.Sequence < s.Sequence {
		return errors.New("it lowers the bundle's sequence")
	}
	active := 0
	for _, r := range b.Folded.Roots {
		if r.Phase == Active {
			active++
		}
	}
	if active != 1 {
		return fmt.Errorf("it has %d active roots", active)
	}
	if len(s.heads) > 0 {
		if err := b.Folded.repeats(s, b.Time); err != nil {
			return err
		}
	}
	s.Roots, s.Issuing, s.Sequence = b.Folded.Roots, b.Folded.Issuing, b.Folded.Sequence
	if b.Folded.Course != "" {
		s.Course = b.Folded.Course
	}
	return nil
}
