package signing

import (
	"context"
	"hash/fnv"
	"slices"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/sigstore"
)

const (
	// touchEvery is how often the store is told that a pod runs what was decided.
	touchEvery = 10 * time.Minute
	// followEvery is how often it is looked whether the policies are still the
	// same, and refreshEvery whether evidence is due.
	followEvery  = time.Second
	refreshEvery = time.Minute
	// faultyFor is how long a refresh that failed is not tried again.
	faultyFor = time.Hour
	// maxChanges is how many digests are announced one by one.
	maxChanges = 1000
)

// atHand returns the decision for key, if there is one that counts. One that
// does not let the image pass counts for RetryAfter only; one that is no verdict
// for a moment, because to make it costs as much.
func (g *Gate) atHand(key decisionKey, now time.Time) *decided {
	d, ok := g.decisions.Get(key)
	if !ok {
		return nil
	}
	limit := g.cfg.RetryAfter
	if d.decision.Reason.Kind() == attest.KindUnavailable {
		limit = min(limit, awayFor)
	}
	if d.decision.Outcome != Allow && now.Sub(d.at) >= limit {
		return nil
	}
	if last := d.touched.Load(); now.Unix()-last >= int64(touchEvery/time.Second) && d.touched.CompareAndSwap(last, now.Unix()) {
		for _, s := range d.rests {
			g.cfg.Store.Touch(s)
		}
	}
	return d
}

// keep remembers a decision, and says so where it is a new one against the
// image.
func (g *Gate) keep(key decisionKey, d *decided) {
	for _, s := range d.rests {
		g.cfg.Store.Touch(s)
	}
	old, known := g.decisions.Peek(key)
	if g.decisions.Add(key, d) {
		g.evicted.Store(true)
	}
	if d.decision.Outcome == Allow || d.decision.Reason.Kind() == attest.KindUnavailable || known && old.decision.Outcome == d.decision.Outcome && old.decision.Reason == d.decision.Reason {
		return
	}
	g.cfg.Log.Warn("image does not pass", "image", attest.Escape(key.image), "imageID", attest.Escape(key.imageID), "outcome", d.decision.Outcome.String(),
		"reason", d.decision.Reason.String(), "policies", d.decision.Policies, "detail", d.decision.Detail)
}

// forget drops the decisions that rest on evidence that is another one now.
func (g *Gate) forget(s evidence.Subject) {
	for _, key := range g.decisions.Keys() {
		if d, ok := g.decisions.Peek(key); ok && slices.Contains(d.rests, s) {
			g.decisions.Remove(key)
		}
	}
}

// useful tells whether a signature satisfies any authority in force.
func (g *Gate) useful(sig evidence.Signature, s evidence.Subject) bool {
	for _, p := range g.cfg.Policies().Policies() {
		for _, a := range p.Authorities() {
			if key := a.Key(); key != nil && a.Accepts(sig.Format) && sigstore.Verify(sig, s.Digest, key) == nil {
				return true
			}
		}
	}
	return false
}

// Reconsider tells the gate that the policies may have changed, which it would
// else find out within a second. It returns at once; [Gate.Run] makes the
// decisions anew from evidence and announces the digests whose decision has
// turned.
func (g *Gate) Reconsider() {
	select {
	case g.nudge <- struct{}{}:
	default:
	}
}

func (g *Gate) follow(ctx context.Context) error {
	tick, due := time.NewTicker(followEvery), time.NewTicker(refreshEvery)
	defer tick.Stop()
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.nudge:
		case <-tick.C:
		case <-due.C:
			g.refresh()
		}
		if err := g.reconsider(ctx); err != nil {
			return err
		}
	}
}

// refresh has evidence looked at for newer signatures once it is RefreshAfter
// old, at a time of its own for each subject.
func (g *Gate) refresh() {
	now := g.cfg.Now()
	seen := map[evidence.Subject]bool{}
	for _, d := range g.decisions.Values() {
		for _, s := range d.rests {
			if seen[s] || now.Sub(time.Unix(d.touched.Load(), 0)) > g.cfg.RefreshAfter {
				continue
			}
			seen[s] = true
			if now.After(g.due(s, d.oldest)) {
				g.fetcher.refresh(s, nobody)
			}
		}
	}
}

// due returns when evidence of s, collected at, is to be looked at again: after
// nine to eleven tenths of RefreshAfter.
func (g *Gate) due(s evidence.Subject, collected time.Time) time.Time {
	h := fnv.New64a()
	h.Write([]byte(s.String()))
	after := g.cfg.RefreshAfter*9/10 + time.Duration(h.Sum64()%uint64(g.cfg.RefreshAfter/5+1))
	last, ok := g.fetcher.last(target{subject: s})
	switch {
	case !ok || last.at.Before(collected):
		return collected.Add(after)
	case last.deny != nil:
		return last.at.Add(min(after, faultyFor))
	}
	return last.at.Add(after)
}

// reconsider holds the decisions at hand against the policies in force, without
// a network, and announces what has turned. Whoever holds a certificate for it
// asks again, and is answered by the same decision.
func (g *Gate) reconsider(ctx context.Context) error {
	v, err := g.current()
	if err != nil {
		return err
	}
	if v.set == g.reconsidered {
		return nil
	}
	g.reconsidered = v.set
	everybody := g.evicted.Swap(false)
	turned := map[string]bool{}
	for _, key := range g.decisions.Keys() {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was asked to end
		}
		d, ok := g.decisions.Peek(key)
		if !ok {
			continue
		}
		if g.again(v, key, d) {
			everybody = everybody || d.decision.Digest == ""
			turned[d.decision.Digest] = true
		}
	}
	g.metrics.changes.Add(float64(len(turned)))
	g.cfg.Log.Info("image policies reconsidered", "hash", v.set.Hash().String(), "digestsTurned", len(turned))
	if everybody || len(turned) > maxChanges {
		g.cfg.Feed.Announce(attest.Change{})
		return nil
	}
	for digest := range turned {
		g.cfg.Feed.Announce(attest.Change{Digest: digest})
	}
	return nil
}

// again makes one decision anew under v, and tells whether it has turned, or
// may have.
func (g *Gate) again(v *view, key decisionKey, d *decided) bool {
	n := v.name(key.image)
	if n.err != nil {
		return true
	}
	policies, hash := n.naming.For(d.facts)
	// Other pods than the one of which the facts are known may have shared the
	// decision.
	selective := n.naming.Hash() != d.naming.Hash() && (n.naming.Selective() || d.naming.Selective())
	renewed := &decided{at: g.cfg.Now(), question: d.question, facts: d.facts, naming: n.naming}
	renewed.touched.Store(d.touched.Load())
	if hash == key.policies { // the same decision, without a hold on the old policies
		renewed.decision, renewed.at, renewed.rests, renewed.oldest, renewed.named = d.decision, d.at, d.rests, d.oldest, d.named
		g.decisions.Add(key, renewed)
		return selective
	}
	q := d.question
	q.Policies = policies
	for {
		renewed.decision = Decide(q)
		s := d.named
		proof := &q.Named
		switch renewed.decision.want {
		case sideNone:
			g.decisions.Remove(key)
			key.policies = hash
			if renewed.decision.Reason.Kind() != attest.KindUnavailable {
				g.decisions.Add(key, renewed)
			}
			return selective || renewed.decision.Outcome != d.decision.Outcome
		case sideOwn:
			proof, s = &q.Own, evidence.Subject{Repository: q.Image.Repository(), Digest: q.Running.Digest}
		case sideNamed:
			if digest := q.Image.Digest(); digest != "" {
				s = evidence.Subject{Repository: q.Image.Repository(), Digest: digest}
			}
		}
		*proof = Proof{Absent: attest.EvidencePending, Detail: "not at hand"}
		if e := g.fetcher.held(s); e != nil {
			*proof = Proof{Evidence: e}
			renewed.note(e, renewed.decision.want)
		}
	}
}
