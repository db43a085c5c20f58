package census

import (
	"slices"
	"strings"
	"sync"
	"time"
	"unique"

	"github.com/hallmark-ca/hallmark/attest"
)

// shards is how many locks the consumers are spread over.
const shards = 64

// sweepEvery is how often a shard is searched for consumers that have lapsed
// while there is no room.
const sweepEvery = int64(10 * time.Second)

// shard is the part of the census that one lock guards.
type shard struct {
	mu     sync.Mutex // guards all below
	pods   map[attest.Instance]*pod
	leaves map[string]*tally // by root id
	lost   lost
	swept  int64 // when, on the process's clock
}

// lost is what was given to consumers who are not kept. While some of it may
// live, the census is not complete.
type lost struct {
	leaves  int // at most
	end     end // of the last
	streams int
}

// tally counts the live leaves under one root, by the minute in which they end.
type tally struct {
	end     end // of the last
	minutes map[int64]int
}

func minuteOf(steady int64) int64 { return steady / int64(time.Minute) }

// count notes a leaf under its root.
func (s *shard) count(l leaf) {
	t := s.leaves[l.root]
	if t == nil {
		t = &tally{minutes: map[int64]int{}}
		s.leaves[l.root] = t
	}
	t.end = t.end.later(l.end)
	t.minutes[minuteOf(l.end.steady)]++
}

// live forgets the minutes that are over and returns how many leaves remain.
func (t *tally) live(at instant) int {
	n := 0
	for minute, leaves := range t.minutes {
		if minute < minuteOf(at.steady) {
			delete(t.minutes, minute)
			continue
		}
		n += leaves
	}
	return max(n, 1) // the last has not ended, whatever the minute says
}

// who names a consumer, and what it is shown as.
type who struct {
	door     string
	identity attest.Identity
	instance attest.Instance
	pod      attest.PodRef
	node     string
}

func whoIs(door string, caller attest.Caller, identity attest.Identity) who {
	return who{door, identity, caller.Instance(), caller.Pod, caller.Node}
}

// find returns the pod and the place of a consumer in it. The lock is held.
func (s *shard) find(w who) (p *pod, i int, found bool) {
	if p = s.pods[w.instance]; p == nil {
		return nil, 0, false
	}
	i, found = slices.BinarySearchFunc(p.consumers, w, func(c consumer, w who) int { return c.compare(w.door, w.identity) })
	return p, i, found
}

// get returns a consumer that is known and has not lapsed, or nil. It is valid
// while the lock is held.
func (s *shard) get(w who, at instant) *consumer {
	p, i, found := s.find(w)
	if !found || p.consumers[i].lapsed(at) {
		return nil
	}
	return &p.consumers[i]
}

// take returns the consumer that w names, a new one where it is not known, and
// nil where there is no room, or no name. The lock of s is held.
func (c *Census) take(s *shard, w who, at instant) *consumer {
	p, i, found := s.find(w)
	if p != nil && p.node.Value() == "" {
		p.node = unique.Make(w.node) // a token of before it was scheduled named none
	}
	if found {
		m := &p.consumers[i]
		if m.lapsed(at) {
			*m = newConsumer(m.door, m.identity, m.kind, at)
		}
		return m
	}
	if w.instance.PodUID == "" || w.identity.IsZero() || !c.room(s, at) {
		return nil
	}
	if p, i, _ = s.find(w); p == nil { // what was swept may have been its pod
		p, i = newPod(w), 0
		s.pods[p.instance] = p
	}
	p.consumers = slices.Insert(p.consumers, i, newConsumer(unique.Make(w.door), unique.Make(w.identity), c.cfg.Doors[w.door], at))
	return &p.consumers[i]
}

// newPod copies what it keeps: the texts may be parts of large ones.
func newPod(w who) *pod {
	cluster := unique.Make(w.instance.Cluster)
	return &pod{
		instance:  attest.Instance{Cluster: cluster.Value(), PodUID: strings.Clone(w.instance.PodUID)},
		cluster:   cluster,
		namespace: unique.Make(w.pod.Namespace), node: unique.Make(w.node), name: strings.Clone(w.pod.Name),
	}
}

// room reserves a place for one more consumer. The lock of s is held.
func (c *Census) room(s *shard, at instant) bool {
	limit := int64(c.cfg.MaxConsumers)
	if c.count.Add(1) <= limit {
		return true
	}
	if at.steady-s.swept >= sweepEvery {
		c.sweep(s, at)
		if c.count.Load() <= limit {
			return true
		}
	}
	c.count.Add(-1)
	return false
}

// sweep forgets who is over. The lock of s is held.
func (c *Census) sweep(s *shard, at instant) {
	s.swept = at.steady
	for _, p := range s.pods {
		c.prune(s, p, at)
	}
}

// expire forgets the leaves that have ended. The lock is held.
func (s *shard) expire(at instant) {
	for root, t := range s.leaves {
		if t.end.passed(at) {
			delete(s.leaves, root)
		}
	}
	if s.lost.end.passed(at) {
		s.lost.leaves = 0
	}
}

// prune forgets the consumers of p that have lapsed, and where it is gone, those
// without a stream; p goes with the last. The lock of s is held.
func (c *Census) prune(s *shard, p *pod, at instant) {
	kept := p.consumers[:0]
	for i := range p.consumers {
		if m := &p.consumers[i]; !m.lapsed(at) && (!p.gone || m.streams > 0) {
			if len(kept) != i {
				p.consumers[len(kept)] = *m
			}
			kept = p.consumers[:len(kept)+1]
		}
	}
	if len(kept) == len(p.consumers) {
		return
	}
	c.count.Add(int64(len(kept) - len(p.consumers)))
	clear(p.consumers[len(kept):])
	if p.consumers = kept; len(kept) == 0 {
		delete(s.pods, p.instance)
	}
}
