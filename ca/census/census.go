package census

import (
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// Kind is how the consumers of a door confirm a bundle.
type Kind uint8

// The kinds. Consumers of a door that configuration does not name cannot
// confirm: they are behind until their leaves have ended.
const (
	Acked   Kind = 1 + iota // on a stream, by an answer of their own
	Carried                 // each leaf came with the bundle, and was not asked for again
)

// defaultMaxConsumers is twice a large mesh, for what comes and goes.
const defaultMaxConsumers = 400_000

// Config is what [New] needs. Registerer, Log, Now and Doors are required.
type Config struct {
	// Doors are the front ends whose consumers can confirm, and how.
	Doors map[string]Kind
	// Gone tells whether a pod, which existed at known, is gone for certain. It is
	// asked of those who hold up a gate, and of everybody while there is little
	// room, at most once a [Census.Summary] each. It MUST return at once. nil:
	// nobody is known to be gone.
	Gone func(cluster string, pod attest.PodRef, known time.Time) bool
	// MaxConsumers bounds the consumers that are kept, 400,000. Beyond, no gate
	// opens until what was given to the others has ended.
	MaxConsumers int
	Registerer   prometheus.Registerer
	Log          *slog.Logger
	Now          func() time.Time
}

// Census is the consumers of this replica.
type Census struct {
	cfg      Config
	metrics  *metrics
	start    time.Time
	elapsed  func(time.Time) time.Duration // since start, by a clock that nobody sets
	seed     maphash.Seed
	shards   [shards]shard
	count    atomic.Int64 // consumers kept
	restored atomic.Bool  // the ledger was read to its end
	told     atomic.Bool  // the log was told that there is no room

	mu     sync.Mutex // guards below
	drift  int64      // of the wall clock against the other, when last looked at
	jumped int64      // when the wall clock was last found set, on the other
}

// New returns a census of nobody. Its gates stay shut until [Census.Restored].
func New(cfg Config) (*Census, error) {
	if cfg.Registerer == nil || cfg.Log == nil || cfg.Now == nil || len(cfg.Doors) == 0 {
		return nil, errors.New("making census: doors, registerer, log and clock are all required")
	}
	for door, kind := range cfg.Doors {
		if door == "" || door == ca.DoorSelf || kind != Acked && kind != Carried {
			return nil, fmt.Errorf("making census: door %q of kind %d", door, kind)
		}
	}
	if cfg.MaxConsumers < 0 {
		return nil, errors.New("making census: a limit is negative")
	}
	if cfg.MaxConsumers == 0 {
		cfg.MaxConsumers = defaultMaxConsumers
	}
	cfg.Doors = maps.Clone(cfg.Doors)
	c := &Census{cfg: cfg, start: cfg.Now(), seed: maphash.MakeSeed(), jumped: never}
	c.elapsed = func(t time.Time) time.Duration { return t.Sub(c.start) }
	for i := range c.shards {
		c.shards[i].pods, c.shards[i].leaves = map[attest.Instance]*pod{}, map[string]*tally{}
	}
	var err error
	if c.metrics, err = newMetrics(cfg.Registerer, func() float64 { return float64(c.count.Load()) }); err != nil {
		return nil, fmt.Errorf("making census: %w", err)
	}
	return c, nil
}

func (c *Census) now() instant {
	t := c.cfg.Now()
	return instant{t, t.UnixNano(), int64(c.elapsed(t))}
}

func (c *Census) shard(i attest.Instance) *shard {
	return &c.shards[maphash.String(c.seed, i.PodUID)%shards]
}

// Issued notes a leaf that goes to a caller. At a door whose answers carry the
// bundle, it was that of i's snapshot.
func (c *Census) Issued(door string, i *ca.Issued) {
	at := c.now()
	w := whoIs(door, i.Facts.Caller, i.Facts.Identity)
	l := leaf{i.Snapshot.RootID(), i.Snapshot.Sequence(), at.endOf(i.NotAfter)}
	s := c.shard(w.instance)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(l)
	m := c.take(s, w, at)
	if m == nil {
		c.turnAwayLeaf(s, w, l)
		return
	}
	m.seen = at.steady
	m.give(l, at)
	if m.kind == Carried {
		m.answered(l.sequence, at)
	}
}

// Refused notes that caller asked for identity at a door whose answers carry
// the bundle, and got nothing: it may not have what it was given just before.
func (c *Census) Refused(door string, caller attest.Caller, identity attest.Identity) {
	at := c.now()
	w := whoIs(door, caller, identity)
	s := c.shard(w.instance)
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.get(w, at); m != nil {
		m.refused(at)
	}
}

// Opened notes a stream of caller, on a connection that was made at connected:
// what serving certificate it accepted hangs on that. The zero time says that
// this is not known, and it proves nothing then. Each is followed by one
// [Census.Closed] with the same caller.
func (c *Census) Opened(door string, caller attest.Caller, connected time.Time) {
	at := c.now()
	w := whoIs(door, caller, caller.Identity)
	s := c.shard(w.instance)
	s.mu.Lock()
	defer s.mu.Unlock()
	m := c.take(s, w, at)
	if m == nil {
		s.lost.streams++
		c.turnedAway(w)
		return
	}
	m.seen = at.steady
	m.streams++
	m.connected = max(m.connected, at.steadyOf(connected))
}

// Closed notes the end of a stream.
func (c *Census) Closed(door string, caller attest.Caller) {
	at := c.now()
	w := whoIs(door, caller, caller.Identity)
	s := c.shard(w.instance)
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.get(w, at)
	switch {
	case m != nil && m.streams > 0:
		m.streams--
		m.closed = at.steady
	case s.lost.streams > 0:
		s.lost.streams--
	}
}

// Confirmed notes that the proxy instance holds the bundle that was first given
// out at sequence: all of its streams that were given it have accepted it, and
// none has ever refused these bytes.
func (c *Census) Confirmed(door string, i attest.Instance, sequence uint64) {
	if c.cfg.Doors[door] != Acked {
		return
	}
	at := c.now()
	s := c.shard(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pods[i]
	if p == nil {
		return
	}
	for n := range p.consumers {
		if m := &p.consumers[n]; m.door.Value() == door && !m.lapsed(at) {
			m.seen, m.confirmed = at.steady, max(m.confirmed, sequence)
		}
	}
}

// Restore notes what the ledger says of the time before this process: leaves
// that live, of consumers of whom it is not known what they hold. What may have
// been issued counts as issued. Entries of this process must not be among them:
// they would be counted twice.
func (c *Census) Restore(e ledger.Entry) {
	intent := e.Intent
	if intent == nil || intent.Door == ca.DoorSelf || e.Status == ledger.Abandoned || e.Status == ledger.Failed {
		return
	}
	at := c.now()
	l := leaf{intent.Root, 0, at.endOf(intent.NotAfter)}
	if l.end.passed(at) {
		return
	}
	w := who{
		door: intent.Door, instance: attest.Instance{Cluster: intent.Cluster, PodUID: intent.PodUID}, node: intent.Node,
		pod: attest.PodRef{Namespace: intent.Namespace, Name: intent.Pod, UID: intent.PodUID},
	}
	// One that cannot be read stays zero, and nobody is kept under it.
	w.identity, _ = attest.ParseIdentity(intent.Identity)
	s := c.shard(w.instance)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(l)
	known := s.get(w, at) != nil
	m := c.take(s, w, at)
	if m == nil {
		c.turnAwayLeaf(s, w, l)
		return
	}
	m.restored = m.restored || !known
	m.seen = max(m.seen, min(at.steadyOf(intent.Time), at.steady))
	m.give(l, at)
}

// Restored notes that the ledger was read to its end. Until then no gate opens.
func (c *Census) Restored() { c.restored.Store(true) }

// turnAwayLeaf notes a leaf of somebody who is not kept. The lock of s is held.
func (c *Census) turnAwayLeaf(s *shard, w who, l leaf) {
	s.lost.leaves++
	s.lost.end = s.lost.end.later(l.end)
	c.turnedAway(w)
}

func (c *Census) turnedAway(w who) {
	c.metrics.turnedAway.Inc()
	c.metrics.incomplete.Set(1)
	if c.told.CompareAndSwap(false, true) {
		c.cfg.Log.Error("a consumer cannot be kept: no gate opens until what such were given has ended",
			"door", w.door, "pod", w.pod.String(), "podUID", w.instance.PodUID, "identity", w.identity.String(), "consumers", c.count.Load(), "max", c.cfg.MaxConsumers)
	}
}
