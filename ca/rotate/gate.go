package rotate

import (
	"fmt"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

// maxAside is the share of consumers that may be set aside before gate A shuts
// until a person decides: one in so many.
const maxAside = 20

// Gate is one gate as it stands.
type Gate struct {
	Name string `json:"name"` // A, B, or trust for a root that is only trusted
	Root string `json:"root"`
	Open bool   `json:"open"`
	// Consumers and the places of the bundle, and how many of them are through.
	// Of gate B they count for the rehearsal.
	Consumers   int        `json:"consumers"`
	Confirmed   int        `json:"confirmed"`
	BehindCount int        `json:"behindCount"`
	AsideCount  int        `json:"asideCount"`
	Behind      []Consumer `json:"behind,omitempty"` // the first, by name
	Aside       []Consumer `json:"aside,omitempty"`
	// Leaves under the old root that are unexpired, and the end of the last.
	Leaves      int       `json:"leaves,omitempty"`
	LeavesUntil time.Time `json:"leavesUntil,omitzero"`
	Why         string    `json:"why,omitempty"` // it is shut
	Mend        string    `json:"mend,omitempty"`
	// Earliest is when it can open at the earliest, Latest when it does if none of
	// those behind is heard of again; zero where nobody knows.
	Earliest time.Time `json:"earliest,omitzero"`
	Latest   time.Time `json:"latest,omitzero"`

	waits    string
	rehearse bool // all that is missing is a rehearsal that is not on
}

// Consumer is one that is behind, as a person sees it.
type Consumer struct {
	Door      string    `json:"door"`
	Identity  string    `json:"identity,omitempty"`
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	UID       string    `json:"uid,omitempty"`
	Node      string    `json:"node,omitempty"`
	Confirmed uint64    `json:"confirmed,omitempty"` // bundle sequence
	Seen      time.Time `json:"seen,omitzero"`
	Until     time.Time `json:"until,omitzero"` // end of its last leaf
	Why       string    `json:"why,omitempty"`
}

// String returns the name of c for the journal.
func (c Consumer) String() string {
	if c.Pod == "" {
		return attest.Escape(c.Door)
	}
	return attest.Escape(fmt.Sprintf("%s/%s (%s) at %s, node %s", c.Namespace, c.Pod, c.UID, c.Door, c.Node))
}

func named(list []census.Consumer) []Consumer {
	var out []Consumer
	for _, c := range list {
		out = append(out, Consumer{
			Door: c.Door, Identity: c.Identity.String(), Namespace: c.Pod.Namespace, Pod: c.Pod.Name, UID: c.Pod.UID,
			Node: c.Node, Confirmed: c.Confirmed, Seen: c.Seen, Until: c.Until,
		})
	}
	return out
}

// consumers counts them in words.
func consumers(n int) string {
	if n == 1 {
		return "1 consumer"
	}
	return fmt.Sprintf("%d consumers", n)
}

// questionFor returns what the census is asked for Next: about the root that is
// on its way, or else the active one.
func questionFor(state journal.State, r Rehearsed, policy Policy) census.Question {
	q := census.Question{AsideAfter: 2 * policy.LeafLifetime, SeenSince: r.Begun, Names: journal.MaxBehind}
	root, _ := state.ActiveRoot()
	if published := state.In(journal.Published); len(published) > 0 {
		root = published[0]
	}
	q.Sequence, q.Since = root.Sequence, root.Since
	return q
}

// gateA opens when every live consumer and every place of the bundle is known
// to hold root.
func gateA(root journal.Root, v view) Gate {
	s := &v.seen.Summary
	g := confirmed("A", root, s)
	endless := s.BehindCount > 0 && s.Latest.IsZero()
	for _, p := range v.seen.Places {
		g.Consumers++
		if !p.Held.IsZero() && !v.now.Before(p.Held) {
			g.Confirmed++
			continue
		}
		g.BehindCount++
		if len(g.Behind) < journal.MaxBehind {
			g.Behind = append(g.Behind, Consumer{Door: p.Name, Until: p.Held, Why: p.Why})
		}
		endless = endless || p.Held.IsZero()
		g.Earliest, g.Latest = later(g.Earliest, p.Held), later(g.Latest, p.Held)
	}
	if endless {
		g.Latest = time.Time{}
	}
	switch {
	case g.BehindCount > 0:
		g.Why = fmt.Sprintf("gate A is shut: %d of %d consumers have not confirmed root %s", g.BehindCount, g.Consumers, short(root.ID))
		g.Mend = "wait, or --force --reason"
		if s.Restoring {
			g.Why += "; the ledger is not read to its end yet, and counts as one"
		}
		if s.Unkept > 0 {
			g.Why += fmt.Sprintf("; up to %d are not known by name because there was no room for them", s.Unkept)
		}
	case g.AsideCount*maxAside > s.Consumers:
		g.Earliest, g.Latest = time.Time{}, time.Time{} // a person decides
		g.Why = fmt.Sprintf("gate A is shut: %d of %d consumers were set aside because they have not confirmed root %s within two leaf lifetimes, more than 5 %%", g.AsideCount, g.Consumers, short(root.ID))
		g.Mend = "look at hallmark rotate status, mend them, or --force --reason"
	default:
		g.Open, g.Earliest, g.Latest = true, time.Time{}, time.Time{}
	}
	return g
}

// confirmed counts what the census says of the bundle with root.
func confirmed(name string, root journal.Root, s *census.Summary) Gate {
	return Gate{
		Name: name, Root: root.ID, waits: ForGateA, Earliest: s.Earliest, Latest: s.Latest,
		Consumers: s.Consumers, Confirmed: s.Confirmed, BehindCount: s.BehindCount, AsideCount: s.AsideCount,
		Behind: named(s.Behind), Aside: named(s.Aside),
	}
}

// gateB opens when no unexpired leaf under root is outstanding and every
// consumer has come back after it met the active root in the handshake.
func gateB(root, active journal.Root, v view) Gate {
	s, r := &v.seen.Summary, &v.seen.Rehearsed
	leaves := s.Leaves[root.ID]
	g := Gate{Name: "B", Root: root.ID, Consumers: s.Consumers, Leaves: leaves.Count, waits: ForRehearsal}
	ours := r.Root == root.ID && r.Active == active.ID
	oldest := v.state.In(journal.Draining)[0]
	switch {
	case s.Restoring:
		g.Why = "gate B is shut: the ledger is not read to its end yet, and who holds a leaf not known"
		g.Mend = "wait, or --force --reason"
	case leaves.Count > 0:
		g.waits, g.LeavesUntil, g.Earliest = ForGateB, leaves.Until, leaves.Until
		g.Why = fmt.Sprintf("gate B is shut: %d leaves under root %s are unexpired, the last until %s", leaves.Count, short(root.ID), stamp(leaves.Until))
		g.Mend = "wait, or --force --reason"
	case oldest.ID != root.ID:
		g.Why = fmt.Sprintf("gate B is shut: root %s is older, and our serving certificate is under it", short(oldest.ID))
		g.Mend = "retire the older one first, or --force --reason"
	case ours && !r.Begun.IsZero() && !r.Broken && s.UnseenCount == 0:
		g.Open, g.Confirmed = true, s.Consumers
	case ours && r.Broken:
		g.Why = "gate B is shut: the rehearsal is being taken back"
		if r.Why != "" {
			g.Why += " (" + r.Why + ")"
		}
		g.Mend = "mend what is in its way"
	case ours && !r.Begun.IsZero():
		g.Confirmed, g.BehindCount, g.Behind = max(s.Consumers-s.UnseenCount, 0), s.UnseenCount, named(s.Unseen)
		// It opens before, when all are back.
		g.Earliest = r.Begun.Add(v.policy.RehearsalWindow)
		g.Why = fmt.Sprintf("gate B is shut: the rehearsal is on, and %d of %d consumers have not come back yet", s.UnseenCount, s.Consumers)
		g.Mend = "wait, or --force --reason"
	case ours && !r.Failed.IsZero():
		g.rehearse, g.Earliest = true, r.Failed.Add(v.policy.RehearsalPause)
		g.Confirmed, g.BehindCount, g.Behind = max(s.Consumers-r.Count, 0), r.Count, named(r.Behind)
		g.Why = fmt.Sprintf("gate B is shut: the rehearsal at %s failed (%s)", stamp(r.Failed), r.Why)
		g.Mend = "restart those that are behind so that they read their trust anew, and hallmark rotate retire holds the next rehearsal at once; or --force --reason"
	default:
		g.rehearse = true
		g.Why = "gate B is shut: the rehearsal under the new root has not been held"
		g.Mend = "hallmark rotate retire holds it at once; or --force --reason"
	}
	return g
}

// asidePassed is what the journal is told of those who no longer hold the gate.
func (g *Gate) asidePassed() *journal.Passed {
	if g.AsideCount == 0 {
		return nil
	}
	return passed("", g.AsideCount, g.Aside)
}

// forced is what the journal is told when a person passes the gate.
func (g *Gate) forced(reason string) *journal.Passed {
	if g.Name == "B" {
		return passed(reason, g.BehindCount+g.Leaves, g.Behind)
	}
	return passed(reason, g.BehindCount+g.AsideCount, append(g.Behind[:len(g.Behind):len(g.Behind)], g.Aside...))
}

func passed(reason string, count int, list []Consumer) *journal.Passed {
	p := &journal.Passed{Reason: reason, Count: count}
	for _, c := range list[:min(len(list), count, journal.MaxBehind)] {
		p.Behind = append(p.Behind, c.String())
	}
	return p
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// short is as much of a root's ID as a person needs to tell it from others.
func short(id string) string { return id[:min(len(id), 8)] }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
