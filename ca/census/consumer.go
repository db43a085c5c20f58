package census

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/hallmark-ca/hallmark/attest"
)

const (
	// settle is how long an answer must not have been asked for again, before
	// its bundle counts as taken.
	settle = int64(300 * time.Second)
	// linger is how long a consumer without leaf and stream is remembered: a
	// rehearsal asks who came back.
	linger = int64(15 * time.Minute)
	// returning is how long before a rehearsal a consumer may have been cut off
	// and be expected back all the same: Envoy waits half a minute at most.
	returning = int64(2 * time.Minute)
	// never is before every moment.
	never = math.MinInt64
	// maxSpans is how many bundles the live leaves of one consumer are told
	// apart by. Two are common while a root goes round.
	maxSpans = 3
)

// pod is the consumers of one proxy instance.
type pod struct {
	instance        attest.Instance
	cluster         unique.Handle[string] // keeps the text that instance shares
	namespace, node unique.Handle[string]
	name            string
	gone            bool       // its UID is; what is left of it are streams that end
	consumers       []consumer // sorted by compare
}

// ref names the pod.
func (p *pod) ref() attest.PodRef {
	return attest.PodRef{Namespace: p.namespace.Value(), Name: p.name, UID: p.instance.PodUID}
}

// heard is when the pod is last known to have existed. Of one that only the
// ledger tells of, it is when that was read: later is the safe side, because who
// is asked must have looked since.
func (p *pod) heard() int64 {
	last := int64(never)
	for i := range p.consumers {
		last = max(last, p.consumers[i].first, p.consumers[i].seen)
	}
	return last
}

// consumer is what is known of one consumer. Moments are on the process's clock.
type consumer struct {
	door     unique.Handle[string]
	identity unique.Handle[attest.Identity]
	kind     Kind
	restored bool // known from the ledger alone
	streams  int32

	confirmed uint64 // sequence of the bundle that it is known to hold; 0: none
	offered   uint64 // Carried: sequence of an answer that may be asked for again; 0: none
	asked     int64  // Carried: when that was
	spans     [maxSpans]span

	first     int64 // known since
	seen      int64 // heard of last
	connected int64 // when the newest connection was made of those that carried its streams
	closed    int64 // when a stream of its closed last
}

// span is the leaves that were given out with one bundle. The zero span is none.
type span struct {
	sequence uint64
	end      end // of the last
}

func (s span) live(at instant) bool { return s != span{} && !s.end.passed(at) }

func newConsumer(door unique.Handle[string], identity unique.Handle[attest.Identity], kind Kind, at instant) consumer {
	return consumer{door: door, identity: identity, kind: kind, first: at.steady, seen: never, connected: never, closed: never}
}

// compare orders the consumers of one pod.
func (c *consumer) compare(door string, identity attest.Identity) int {
	return cmp.Or(strings.Compare(c.door.Value(), door), strings.Compare(c.identity.Value().String(), identity.String()))
}

// live tells whether c counts.
func (c *consumer) live(at instant) bool {
	return c.streams > 0 || slices.ContainsFunc(c.spans[:], func(s span) bool { return s.live(at) })
}

// lapsed tells whether c may be forgotten.
func (c *consumer) lapsed(at instant) bool { return !c.live(at) && c.closed < at.steady-linger }

// until returns when its last leaf ends, the zero end where it has none.
func (c *consumer) until() end { return lastOf(c.spans[:], math.MaxUint64) }

// older returns when the last of the leaves ends that were given out with a
// bundle before sequence.
func (c *consumer) older(sequence uint64) end { return lastOf(c.spans[:], sequence) }

func lastOf(spans []span, before uint64) end {
	var last end
	for _, s := range spans {
		if s != (span{}) && s.sequence < before {
			last = last.later(s.end)
		}
	}
	return last
}

// leaf is one certificate that was given out.
type leaf struct {
	root     string
	sequence uint64 // of the bundle that went with it; 0: not known
	end      end
}

// give notes a leaf. Where there are too many bundles to tell apart, the two
// oldest become one, as old as the older and ending with the later.
func (c *consumer) give(l leaf, at instant) {
	var all [maxSpans + 1]span
	live := all[:0]
	for _, s := range c.spans {
		if s.live(at) {
			live = append(live, s)
		}
	}
	if i := slices.IndexFunc(live, func(s span) bool { return s.sequence == l.sequence }); i >= 0 {
		live[i].end = live[i].end.later(l.end)
	} else {
		live = append(live, span{l.sequence, l.end})
	}
	slices.SortFunc(live, func(a, b span) int { return cmp.Compare(a.sequence, b.sequence) })
	if len(live) > maxSpans {
		live[1] = span{live[0].sequence, live[0].end.later(live[1].end)}
		live = live[1:]
	}
	c.spans = [maxSpans]span{}
	copy(c.spans[:], live)
}

// settled confirms an answer that was not asked for again in time.
func (c *consumer) settled(at instant) {
	if known := c.known(at); known != c.confirmed {
		c.confirmed, c.offered = known, 0
	}
}

// answered notes an answer that carried the bundle of sequence. What was not
// settled before never will be: it was asked for again. An answer with an older
// bundle may have replaced a newer one.
func (c *consumer) answered(sequence uint64, at instant) {
	c.settled(at)
	c.confirmed = min(c.confirmed, sequence)
	c.offered, c.asked = sequence, at.steady
}

// refused notes that it asked and got nothing: what it was given before, it may
// not have.
func (c *consumer) refused(at instant) {
	c.settled(at)
	c.offered = 0
}

// known returns the sequence of the bundle that c is known to hold, 0 for none.
func (c *consumer) known(at instant) uint64 {
	if c.offered > 0 && at.steady > c.asked+settle {
		return c.offered
	}
	return c.confirmed
}

// holds tells whether c is known to hold the bundle of sequence, or a later one.
func (c *consumer) holds(sequence uint64, at instant) bool {
	switch {
	case sequence == 0:
		return false // no bundle is number 0
	case c.known(at) >= sequence:
		return true
	case c.kind != Carried || c.until() == end{} || c.until().passed(at):
		return false
	}
	// Each leaf that it can still use came with that bundle, or a later one.
	older := c.older(sequence)
	return older == end{} || older.passed(at)
}
