package publish

import "time"

// Hints is for how many refresh hints a reader that comes by itself may keep an
// older bundle (SPIFFE Trust Domain and Bundle section 6.2 asks for three to
// five).
const Hints = 5

// Reader is one place at which others read the bundle, and all who read there.
type Reader struct {
	Name     string    // such as "file /var/lib/hallmark/bundle.pem"
	Sequence uint64    // of the bundle that is there; 0: none of ours
	At       time.Time // from when on they all hold it; zero where Sequence is
	Problem  string    // what keeps the newest bundle from being there; "": nothing
}

// Holds tells whether all who read there hold the bundle of sequence, or a later
// one, at now.
func (r Reader) Holds(sequence uint64, now time.Time) bool {
	return r.Sequence != 0 && r.Sequence >= sequence && !r.At.IsZero() && !now.Before(r.At)
}
