package journal

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// foldAt is how many expired issuing CAs are kept before they are folded.
	foldAt = 32
	// maxHeads bounds the hashes that a fold carries on: what a replica saw that
	// was away for longer than so many records, nobody can tell any more.
	maxHeads = 512
)

// kept tells whether an issuing CA survives a fold at now. It is kept for a
// while after its end, for those who ask what signed a certificate.
func (ca *IssuingCA) kept(now time.Time) bool { return ca.NotAfter.After(now.Add(-24 * time.Hour)) }

// Fold returns the record body that replaces the journal's history, and whether
// it is time for one: when many issuing CAs have expired.
func Fold(s State, now time.Time) (Body, bool) {
	kept := make([]IssuingCA, 0, len(s.Issuing))
	for _, ca := range s.Issuing {
		if ca.kept(now) {
			kept = append(kept, ca)
		}
	}
	if len(s.Issuing)-len(kept) < foldAt {
		return Body{}, false
	}
	folded := &Folded{Roots: s.Roots, Issuing: kept, Sequence: s.Sequence, Course: s.Course}
	for n := s.Number - 1; n > 0 && len(folded.Heads) < maxHeads; n-- {
		head, ok := s.heads[n]
		if !ok {
			break
		}
		folded.Heads = append(folded.Heads, head)
	}
	return Body{Time: now.UTC(), TrustDomain: s.TrustDomain, By: "fold", Folded: folded}, true
}

// repeats tells whether a fold says what s says, but for what has expired.
func (f *Folded) repeats(s *State, now time.Time) error {
	if f.Sequence != s.Sequence || f.Course != s.Course || !slices.EqualFunc(f.Roots, s.Roots, sameRoot) {
		return errors.New("it folds roots, sequence or course into others")
	}
	rest := f.Issuing
	for _, ca := range s.Issuing {
		switch {
		case len(rest) > 0 && sameIssuing(rest[0], ca):
			rest = rest[1:]
		case ca.kept(now):
			return fmt.Errorf("it folds issuing CA %s away, which has not expired", ca.ID)
		}
	}
	if len(rest) > 0 {
		return fmt.Errorf("it folds issuing CA %s into the history", rest[0].ID)
	}
	return nil
}

func sameRoot(a, b Root) bool {
	sameEnd := a.Destroyed == nil && b.Destroyed == nil || a.Destroyed != nil && b.Destroyed != nil && a.Destroyed.Equal(*b.Destroyed)
	return sameEnd && a.ID == b.ID && bytes.Equal(a.Certificate, b.Certificate) && a.KeyURI == b.KeyURI &&
		a.Phase == b.Phase && a.Since.Equal(b.Since) && a.Sequence == b.Sequence
}

func sameIssuing(a, b IssuingCA) bool {
	return a.ID == b.ID && bytes.Equal(a.Certificate, b.Certificate) && a.Replica == b.Replica && a.Root == b.Root &&
		a.NotAfter.Equal(b.NotAfter) && a.Serving == b.Serving && a.Tainted == b.Tainted
}

// remember puts the hashes that a fold carries on into heads: previous is that
// of the record before it, number is the fold's own.
func (f *Folded) remember(number uint64, previous string, heads map[uint64]string) {
	for i, head := range append([]string{previous}, f.Heads...) {
		if n := uint64(i) + 1; n < number && head != "" {
			heads[number-n] = head
		}
	}
}
