package rotate_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

// proxy is a consumer that behaves, or not.
type proxy struct {
	name      string
	silent    bool   // confirms nothing
	pin       string // trusts, to serve it, this root alone; "": whatever it was given
	confirmed uint64
	connected time.Time // zero: no stream
	known     time.Time
	met       time.Time // when it last made a connection, by a clock that nobody sets
	leaves    []leaf
}

type leaf struct {
	root  string
	until time.Time
}

// mesh is the consumers of a world, and what is known of its clock: the wall may
// be wrong for a while.
type mesh struct {
	w       *world
	rng     *rand.Rand
	wrongBy time.Duration // of the wall against the truth
	proxies []*proxy
	left    map[string]bool // roots that a person took out in spite of a gate
}

// populate puts n proxies into w. The world's lock is held by whoever calls the
// methods of the mesh but for this one.
func (w *world) populate(rng *rand.Rand, n int) *mesh {
	m := &mesh{w: w, rng: rng, left: map[string]bool{}}
	for i := range n {
		m.proxies = append(m.proxies, &proxy{name: fmt.Sprintf("proxy-%d", i), known: w.now()})
	}
	w.summary, w.follows, w.stored = m.summary, m.check, m.stored
	w.begun = m.cut
	return m
}

func (m *mesh) truth() time.Time { return m.w.now().Add(-m.wrongBy) }

// ended tells whether a leaf has, by both clocks, as the census has it.
func (m *mesh) ended(l leaf) bool { return m.truth().After(l.until) && m.w.now().After(l.until) }

func (m *mesh) live(p *proxy) bool {
	if !p.connected.IsZero() {
		return true
	}
	for _, l := range p.leaves {
		if !m.ended(l) {
			return true
		}
	}
	return false
}

// tick is a minute in the life of the mesh.
func (m *mesh) tick() {
	w := m.w
	for _, p := range m.proxies {
		keep := p.leaves[:0]
		for _, l := range p.leaves {
			if !m.ended(l) {
				keep = append(keep, l)
			}
		}
		p.leaves = keep
		if w.issuing == "" {
			continue // nothing was ever put in force
		}
		if p.connected.IsZero() && (p.pin == "" || p.pin == w.serving) {
			p.connected, p.met = w.now(), time.Now()
		}
		if p.connected.IsZero() {
			continue
		}
		if !p.silent {
			p.confirmed = w.sequence
		}
		if m.rng.IntN(4) == 0 {
			m.issue(p)
		}
	}
}

func (m *mesh) issue(p *proxy) {
	w := m.w
	root, ok := w.state.Root(w.issuing)
	switch {
	case !ok:
		w.wrong("invariant 1: root %s signs and is not in the journal", short(w.issuing))
	case root.Phase != journal.Active && root.Phase != journal.Draining:
		w.wrong("invariant 6: root %s signs and is %s", short(root.ID), root.Phase)
	case !w.bundle[root.ID]:
		w.wrong("invariant 2: root %s signs and is not given out", short(root.ID))
	}
	p.leaves = append(p.leaves, leaf{w.issuing, w.now().Add(leafLifetime)})
}

// cut ends all streams.
func (m *mesh) cut() {
	for _, p := range m.proxies {
		p.connected = time.Time{}
	}
}

// check holds what is given out against what was.
func (m *mesh) check() {
	for _, p := range m.proxies {
		for _, l := range p.leaves {
			if l.until.After(m.truth()) && !m.w.bundle[l.root] && !m.left[l.root] {
				m.w.wrong("invariant 2: %s holds a leaf until %s under root %s, which is no longer given out", p.name, l.until, short(l.root))
			}
		}
	}
}

// stored holds a step against what it rests on.
func (m *mesh) stored(before journal.State, raw []byte) {
	var b journal.Body
	if err := json.Unmarshal(raw, &b); err != nil {
		m.w.wrong("record: %v", err)
	}
	if b.Step == nil {
		return
	}
	root, _ := before.Root(b.Step.Root)
	asked := b.Step.Passed != nil && b.Step.Passed.Reason != ""
	switch {
	case b.Step.To == journal.Active && b.Step.Passed == nil:
		for _, p := range m.proxies {
			if m.live(p) && p.confirmed < root.Sequence {
				m.w.wrong("gate A: %s has confirmed %d, and the root that was activated came with %d", p.name, p.confirmed, root.Sequence)
			}
		}
	case b.Step.To == journal.Retired && asked:
		m.left[root.ID] = true
	case b.Step.To == journal.Retired:
		for _, p := range m.proxies {
			if p.pin == root.ID && m.live(p) {
				m.w.wrong("gate B: %s trusts root %s alone, which was retired", p.name, short(root.ID))
			}
			for _, l := range p.leaves {
				if l.root == root.ID && l.until.After(m.truth()) {
					m.w.wrong("gate B: %s holds a leaf under root %s, which was retired", p.name, short(root.ID))
				}
			}
		}
	}
}

func (m *mesh) summary(q census.Question) census.Summary {
	w := m.w
	s := census.Summary{Leaves: map[string]census.Leaves{}}
	for _, p := range m.proxies {
		for _, l := range p.leaves {
			if m.ended(l) {
				continue
			}
			leaves := s.Leaves[l.root]
			leaves.Count++
			if l.until.After(leaves.Until) {
				leaves.Until = l.until
			}
			s.Leaves[l.root] = leaves
		}
		if !m.live(p) {
			continue
		}
		shown := census.Consumer{Door: "sds", Pod: attest.PodRef{Namespace: "ns", Name: p.name, UID: p.name}, Node: "n", Confirmed: p.confirmed}
		if !q.SeenSince.IsZero() && p.met.Before(q.SeenSince.Add(-w.offset)) {
			s.UnseenCount++
			s.Unseen = append(s.Unseen, shown)
		}
		s.Consumers++
		switch {
		case p.confirmed >= q.Sequence:
			s.Confirmed++
		case q.AsideAfter > 0 && w.now().After(q.Since.Add(q.AsideAfter)) && m.truth().After(q.Since.Add(q.AsideAfter)):
			s.AsideCount++
			s.Aside = append(s.Aside, shown)
		default:
			s.BehindCount++
			s.Behind = append(s.Behind, shown)
		}
	}
	return s
}
