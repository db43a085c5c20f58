package signing

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/policy"
)

// decisionKey is all that a decision rests on, but evidence: that only grows,
// and when it does the decisions on it are forgotten.
type decisionKey struct {
	image    string // the spec's name: repository, and digest or tag
	imageID  string // the status's
	resolved string // what the tag points to, where nothing is known to run yet
	policies policy.Hash
}

// decided is a decision at hand. But for touched it is immutable.
type decided struct {
	decision Decision
	at       time.Time
	rests    []evidence.Subject // evidence that was looked at
	oldest   time.Time          // when the oldest of it was collected
	touched  atomic.Int64       // Unix seconds: when the store was last told

	// What it is made again from when the policies change.
	question Question // without policies and proofs
	named    evidence.Subject
	facts    policy.Facts
	naming   *policy.Naming
}

// ruling is what is known of one container's image now.
type ruling struct {
	decision    Decision
	provisional bool
	// flight will change the decision, or at least may: it is pending, or it was
	// made from evidence that is looked for anew.
	flight *flight
}

func (r *ruling) pending() bool { return r.decision.Reason == attest.EvidencePending }

// evidence is the ruling as it goes into the record.
func (r *ruling) evidence(c *attest.Container) attest.ImageEvidence {
	d := &r.decision
	e := attest.ImageEvidence{
		Container: c.Name, Kind: c.Kind, Image: c.Image, Digest: d.Digest, Verdict: attest.VerdictWouldDeny,
		Reason: d.Reason, Policies: d.Policies, Authority: d.Authority, Signer: d.Signer, Provisional: r.provisional,
	}
	if d.Outcome == Allow {
		e.Verdict = attest.VerdictPass
	}
	return e
}

// rule decides on one container by what is at hand, and starts the fetch of
// what is missing. It waits for nothing but its turn, until ctx ends.
func (g *Gate) rule(ctx context.Context, v *view, now time.Time, pod *attest.Pod, c *attest.Container) ruling {
	n := v.name(c.Image)
	if n.err != nil {
		return refused(c, attest.ImageReferenceInvalid, n.err.Error())
	}
	tag := n.image.Digest() == ""
	switch {
	case tag && c.Kind == attest.ContainerVolume:
		return refused(c, attest.ImageTagRefused, "an image volume needs a digest")
	case tag && c.ImageID == "" && !g.cfg.ResolveTags:
		return refused(c, attest.ImageTagRefused, "images.tags is deny")
	}
	who := pod.Cluster + "/" + pod.Ref.Namespace
	facts := policy.Facts{Labels: pod.Labels}
	policies, hash := n.naming.For(facts)
	key := decisionKey{image: c.Image, imageID: c.ImageID, policies: hash}
	if d := g.atHand(key, now); d != nil {
		return g.held(ruling{decision: d.decision}, d, who)
	}
	q := Question{Image: n.image, Running: ParseImageID(c.ImageID), Policies: policies}
	provisional := false
	if tag && c.ImageID == "" {
		if open := Decide(q); open.Reason == attest.EvidencePending {
			digest, absent, fl := g.fetcher.resolve(c.Image, who)
			if fl != nil {
				return ruling{decision: open, flight: fl}
			}
			if key.resolved, q.Named = digest, absent; digest != "" {
				provisional = true
				if d := g.atHand(key, now); d != nil {
					return g.held(ruling{decision: d.decision, provisional: true}, d, who)
				}
			}
		}
	}
	d, fl := g.decideOnce(ctx, key, q, n.naming, facts, who, now)
	r := ruling{decision: d.decision, provisional: provisional, flight: fl}
	if fl != nil || d.decision.Outcome == Allow {
		return r
	}
	return g.lookAgain(r, d, who)
}

// lookAgain has the evidence of a decision against an image looked for anew:
// somebody may have signed it meanwhile, or the registry may give now what it
// could not give then.
func (g *Gate) lookAgain(r ruling, d *decided, who string) ruling {
	for _, s := range d.rests {
		if again := g.fetcher.refresh(s, who); again != nil {
			r.flight = again
		}
	}
	return r
}

// held is the ruling by a decision at hand. One that is no verdict is looked at
// again like a new one.
func (g *Gate) held(r ruling, d *decided, who string) ruling {
	if r.decision.Reason.Kind() != attest.KindUnavailable {
		return r
	}
	return g.lookAgain(r, d, who)
}

// refused is the ruling on what no policy is asked about.
func refused(c *attest.Container, reason attest.Reason, detail string) ruling {
	return ruling{decision: Decision{
		Outcome: Deny, Reason: reason, Object: "image " + attest.Escape(c.Image),
		Digest: ParseImageID(c.ImageID).Digest, Detail: attest.Escape(detail),
	}}
}

// decideOnce decides for all of who's pods that ask at the same time: signatures
// cost time to verify, and whoever can push an image chooses how many there are.
// What is missing is asked for in who's name, so that others do not share its
// refusal.
func (g *Gate) decideOnce(ctx context.Context, key decisionKey, q Question, naming *policy.Naming, facts policy.Facts, who string, now time.Time) (*decided, *flight) {
	type result struct {
		decided *decided
		flight  *flight
	}
	name := fmt.Sprintf("%q %q %q %x %q", key.image, key.imageID, key.resolved, key.policies, who)
	v, _, _ := g.deciding.Do(name, func() (any, error) { // it never fails
		d, fl := g.decide(ctx, &q, key.resolved, who, now)
		d.facts, d.naming = facts, naming
		if fl == nil && (d.decision.Reason.Kind() != attest.KindUnavailable || len(d.rests) > 0) {
			g.keep(key, d)
		}
		return result{d, fl}, nil
	})
	r := v.(result)
	return r.decided, r.flight
}

// decide answers q from the evidence at hand; the flight will have what is
// missing. resolved is what the image's tag points to, where that was asked.
func (g *Gate) decide(ctx context.Context, q *Question, resolved, who string, now time.Time) (*decided, *flight) {
	start := time.Now()
	d := &decided{at: now, question: Question{Image: q.Image, Running: q.Running}}
	d.touched.Store(now.Unix())
	defer func() { g.metrics.decided.Observe(time.Since(start).Seconds()) }()
	release := func() {}
	defer func() { release() }()
	for turn := false; ; {
		if d.decision = Decide(*q); d.decision.want == sideNone {
			return d, nil
		}
		if !turn { // evidence is going to be read and verified
			if release, turn = g.turn(ctx, who); !turn {
				d.decision.Detail += ": not decided in time"
				return d, nil
			}
		}
		s := evidence.Subject{Repository: q.Image.Repository(), Digest: q.Running.Digest}
		proof := &q.Own
		if d.decision.want == sideNamed {
			proof, s.Digest = &q.Named, q.Image.Digest()
			if s.Digest == "" {
				s.Digest = resolved
			}
		}
		var fl *flight
		if s.Digest == "" {
			// A tag that runs already: where it points now.
			if resolved, *proof, fl = g.pointsTo(q.Image.String(), who); fl != nil {
				return d, fl
			}
			continue
		}
		if *proof, fl = g.fetcher.proof(s, who); fl != nil {
			return d, fl
		}
		d.note(proof.Evidence, d.decision.want)
	}
}

// turn waits for who's turn to decide from evidence, as long as the request may
// last.
func (g *Gate) turn(ctx context.Context, who string) (release func(), ok bool) {
	if ctx.Err() != nil {
		return func() {}, false
	}
	ctx, cancel := context.WithTimeout(ctx, g.patience(ctx))
	defer cancel()
	return g.work.take(ctx, who)
}

// pointsTo asks where a tag points, if tags may be asked for at all.
func (g *Gate) pointsTo(image, who string) (string, Proof, *flight) {
	if !g.cfg.ResolveTags {
		return "", Proof{Absent: attest.ImageTagRefused, Detail: "images.tags is deny"}, nil
	}
	return g.fetcher.resolve(image, who)
}

func (d *decided) note(e *evidence.Evidence, s side) {
	if e == nil {
		return
	}
	if s == sideNamed {
		d.named = e.Subject
	}
	if len(d.rests) == 0 || e.Collected.Before(d.oldest) {
		d.oldest = e.Collected
	}
	d.rests = append(d.rests, e.Subject)
}
