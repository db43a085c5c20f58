package census

import "time"

// century bounds what is reckoned with, so that no sum overflows.
const century = 100 * 365 * 24 * time.Hour

func bounded(d time.Duration) time.Duration { return max(min(d, century), -century) }

// instant is one moment on two clocks, in nanoseconds: the wall's, which may be
// set, and the process's own, which runs evenly since the census was made.
type instant struct {
	time         time.Time
	wall, steady int64
}

// steadyOf returns t on the process's clock.
func (i instant) steadyOf(t time.Time) int64 { return i.steady - int64(bounded(i.time.Sub(t))) }

// endOf returns the end of what is told now to end at notAfter.
func (i instant) endOf(notAfter time.Time) end {
	left := int64(bounded(notAfter.Sub(i.time)))
	return end{i.wall + left, i.steady + left}
}

// left returns how long e is away, at most zero if it has passed.
func (i instant) left(e end) int64 { return max(e.wall-i.wall, e.steady-i.steady) }

// after returns the moment in d nanoseconds.
func (i instant) after(d int64) time.Time { return i.time.Add(time.Duration(d)).Round(0).UTC() }

// end is when something ends, on both clocks.
type end struct{ wall, steady int64 }

// passed tells whether both clocks are past e. At the very moment it is not:
// notAfter is the last second of a certificate's life (RFC 5280 section 4.1.2.5).
func (e end) passed(at instant) bool { return at.wall > e.wall && at.steady > e.steady }

// later returns an end by which both have ended.
func (e end) later(other end) end {
	return end{max(e.wall, other.wall), max(e.steady, other.steady)}
}
