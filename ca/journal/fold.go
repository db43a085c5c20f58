package journal

import "time"

// Fold returns the record body that replaces the journal's history, and whether
// it is time for one: when many issuing CAs have expired. A CA is kept for a
// while after its end, for those who ask what signed a certificate.
func Fold(s State, now time.Time) (Body, bool) {
	kept := make([]IssuingCA, 0, len(s.Issuing))
	for _, ca := range s.Issuing {
		if ca.NotAfter.After(now.Add(-24 * time.Hour)) {
			kept = append(kept, ca)
		}
	}
	if len(s.Issuing)-len(kept) < foldAt {
		return Body{}, false
	}
	return Body{
		Time: now.UTC(), TrustDomain: s.TrustDomain, By: "fold",
		Folded: &Folded{Roots: s.Roots, Issuing: kept, Sequence: s.Sequence, Course: s.Course},
	}, true
}
