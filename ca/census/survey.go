package census

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
)

// Consumer is one consumer as it is shown.
type Consumer struct {
	Door      string
	Identity  attest.Identity
	Instance  attest.Instance
	Pod       attest.PodRef
	Node      string
	Confirmed uint64    // sequence of the bundle that it is known to hold; 0: none
	Until     time.Time // end of its last leaf; zero: it has none
	Seen      time.Time // heard of last
	Streams   int
}

// Question is what a gate asks.
type Question struct {
	// Sequence is that of the bundle to hold, or a later one. Nobody holds one of
	// sequence 0.
	Sequence uint64
	// Since is when that bundle was published.
	Since time.Time
	// AsideAfter is how long one that has not confirmed holds the gate, from
	// when it could have: since the publication, since it is known, since this
	// process knows it, since the clock was set. Zero sets nobody aside.
	AsideAfter time.Duration
	// SeenSince is when a rehearsal began: from when on connections show the new
	// serving certificate. Zero asks for none.
	SeenSince time.Time
	// Names is how many of each are given by name.
	Names int
}

// Summary is the answer. Consumers is the sum of those who have confirmed, are
// behind, or are set aside.
type Summary struct {
	Consumers, Confirmed int
	// Behind hold gate A; Aside would, but are set aside. The first by name are
	// named, all are counted: in the count are those that cannot be named, too.
	Behind, Aside           []Consumer
	BehindCount, AsideCount int
	// Unseen had a stream when the rehearsal began and were not seen on a
	// connection made since, or are known from before this process alone.
	Unseen      []Consumer
	UnseenCount int
	// Gate A cannot open before Earliest: those behind need that long to confirm,
	// or to end. By Latest they will have, or be set aside, even if none of them
	// is heard of again; it is zero where there is no such time. Both are zero
	// where nobody is behind.
	Earliest, Latest time.Time
	// Leaves are those that have not ended, by the id of their root; one that is
	// not in it has none. They tell nothing while Restoring.
	Leaves map[string]Leaves
	// Unkept bounds those for whom there was no room, and who may be live. They
	// are in BehindCount, and in UnseenCount if that is asked.
	Unkept int
	// Restoring: the ledger is not read to its end. It counts as one behind, and
	// as one unseen.
	Restoring bool
}

// Leaves counts the leaves under one root that have not ended. Count may tell of
// one for a minute too long; Until is when the last has.
type Leaves struct {
	Count int
	Until time.Time
}

// standing is how a consumer stands to a question.
type standing uint8

const (
	away standing = iota // it does not count
	confirmed
	behind
	aside
)

// survey answers a question from the consumers that are shown to it. It is a
// function of them and of one moment: it holds no lock and asks nobody.
type survey struct {
	q                Question
	at               instant
	since, seenSince int64 // on the process's clock; seenSince never: not asked
	sum              Summary
	behind, aside    names
	unseen           names
	earliest, latest int64 // how far away, of those behind
	leaves           map[string]*remaining
	ask              []suspect // room for those of one shard
}

// remaining is what remains under one root.
type remaining struct {
	count int
	end   end
}

// newSurvey takes the moment when the wall clock was last set: a time that only
// the clock says has passed sets nobody aside.
func newSurvey(q Question, at instant, jumped int64) *survey {
	q.Names = max(q.Names, 0)
	v := &survey{q: q, at: at, since: max(at.steadyOf(q.Since), jumped), seenSince: never, leaves: map[string]*remaining{}}
	if !q.SeenSince.IsZero() {
		v.seenSince = at.steadyOf(q.SeenSince)
	}
	v.behind.most, v.aside.most, v.unseen.most = q.Names, q.Names, q.Names
	return v
}

// standing tells how c stands, and how long until it is set aside.
func (v *survey) standing(c *consumer) (standing, int64) {
	patience := int64(math.MaxInt64)
	if v.q.AsideAfter > 0 {
		patience = max(v.since, c.first) + int64(bounded(v.q.AsideAfter)) - v.at.steady
	}
	switch {
	case !c.live(v.at):
		return away, patience
	case c.holds(v.q.Sequence, v.at):
		return confirmed, patience
	case patience <= 0:
		return aside, patience
	default:
		return behind, patience
	}
}

// isUnseen tells whether the rehearsal waits for c.
func (v *survey) isUnseen(c *consumer) bool {
	switch {
	case v.seenSince == never || c.connected >= v.seenSince:
		return false
	case c.streams > 0 || c.closed >= v.seenSince-returning:
		return true
	}
	// Whether it had a stream is not known: this process never saw one.
	return c.restored && c.closed == never && c.kind == Acked
}

// holdsUp tells whether a consumer of p holds up a gate, or is set aside.
func (v *survey) holdsUp(p *pod) bool {
	for i := range p.consumers {
		c := &p.consumers[i]
		if s, _ := v.standing(c); s == behind || s == aside || v.isUnseen(c) {
			return true
		}
	}
	return false
}

// add shows the consumers of p.
func (v *survey) add(p *pod) {
	if p.gone {
		return
	}
	for i := range p.consumers {
		c := &p.consumers[i]
		if v.isUnseen(c) {
			v.sum.UnseenCount++
			v.unseen.add(v, p, c)
		}
		s, patience := v.standing(c)
		switch s {
		case away:
			continue
		case confirmed:
			v.sum.Confirmed++
		case behind:
			v.sum.BehindCount++
			v.behind.add(v, p, c)
			v.wait(c, patience)
		case aside:
			v.sum.AsideCount++
			v.aside.add(v, p, c)
		}
		v.sum.Consumers++
	}
}

// wait reckons with one that is behind: when it may first have confirmed or
// ended, and when it will have if nothing is heard of it any more.
func (v *survey) wait(c *consumer, patience int64) {
	ends := patience // of its holding the gate, if it keeps silent
	if c.streams == 0 {
		ends = min(ends, v.at.left(c.until()))
	}
	soonest := int64(0) // it may answer this moment
	switch c.kind {
	case Acked:
	case Carried:
		if older := c.older(v.q.Sequence); older != (end{}) {
			ends = min(ends, v.at.left(older))
		}
		soonest = settle // it may ask this moment, and be given the bundle
		if c.offered >= v.q.Sequence && c.offered > 0 {
			soonest = c.asked + settle - v.at.steady
			ends = min(ends, soonest)
		}
	default:
		soonest = max(0, v.at.left(c.until()))
	}
	v.earliest, v.latest = max(v.earliest, min(soonest, ends)), max(v.latest, ends)
}

// addLost shows what was given to those who are not kept.
func (v *survey) addLost(l lost) {
	n := l.leaves + l.streams
	if n == 0 {
		return
	}
	v.sum.Unkept += n
	v.addUnknown(n)
	left := int64(0)
	if l.leaves > 0 {
		left = v.at.left(l.end)
	}
	v.earliest, v.latest = max(v.earliest, left), max(v.latest, left)
	if l.streams > 0 {
		v.latest = math.MaxInt64
	}
}

// addRestoring says that the ledger is not read to its end.
func (v *survey) addRestoring() {
	v.sum.Restoring = true
	v.addUnknown(1)
	v.latest = math.MaxInt64
}

func (v *survey) addUnknown(n int) {
	v.sum.Consumers += n
	v.sum.BehindCount += n
	if v.seenSince != never {
		v.sum.UnseenCount += n
	}
}

// addLeaves shows the leaves under a root, of which some live.
func (v *survey) addLeaves(root string, t *tally) {
	r := v.leaves[root]
	if r == nil {
		r = &remaining{}
		v.leaves[root] = r
	}
	r.count += t.live(v.at)
	r.end = r.end.later(t.end)
}

// summary returns the answer.
func (v *survey) summary() Summary {
	v.sum.Behind, v.sum.Aside, v.sum.Unseen = v.behind.list, v.aside.list, v.unseen.list
	if v.sum.BehindCount > 0 {
		v.sum.Earliest = v.at.after(min(v.earliest, int64(century)))
		if v.latest < int64(century) {
			v.sum.Latest = v.at.after(v.latest)
		}
	}
	v.sum.Leaves = make(map[string]Leaves, len(v.leaves))
	for root, r := range v.leaves {
		v.sum.Leaves[root] = Leaves{r.count, v.at.after(v.at.left(r.end))}
	}
	return v.sum
}

// names keeps the first by name.
type names struct {
	most int
	list []Consumer
}

func (n *names) add(v *survey, p *pod, c *consumer) {
	order := func(shown Consumer) int {
		return cmp.Or(
			strings.Compare(shown.Pod.Namespace, p.namespace.Value()), strings.Compare(shown.Pod.Name, p.name),
			strings.Compare(shown.Instance.Cluster, p.instance.Cluster), strings.Compare(shown.Instance.PodUID, p.instance.PodUID),
			-c.compare(shown.Door, shown.Identity),
		)
	}
	if len(n.list) >= n.most {
		if n.most == 0 || order(n.list[n.most-1]) < 0 {
			return
		}
		n.list = n.list[:n.most-1]
	}
	i, _ := slices.BinarySearchFunc(n.list, struct{}{}, func(shown Consumer, _ struct{}) int { return order(shown) })
	n.list = slices.Insert(n.list, i, v.show(p, c))
}

// show returns c as it is shown.
func (v *survey) show(p *pod, c *consumer) Consumer {
	out := Consumer{
		Door: c.door.Value(), Identity: c.identity.Value(), Instance: p.instance, Node: p.node.Value(),
		Pod:       attest.PodRef{Namespace: p.namespace.Value(), Name: p.name, UID: p.instance.PodUID},
		Confirmed: c.known(v.at), Streams: int(c.streams),
	}
	if until := c.until(); until != (end{}) {
		out.Until = v.at.after(v.at.left(until))
	}
	if c.seen != never {
		out.Seen = v.at.after(c.seen - v.at.steady)
	}
	return out
}
