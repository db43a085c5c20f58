package signing

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/policy"
	"github.com/hallmark-ca/hallmark/signing/sigstore"
)

const (
	maxDetail   = 2048 // bytes of Decision.Detail
	maxFailures = 8    // signatures of which it says what failed
)

// Outcome is what was decided. The order is that of confidence; the zero value
// refuses.
type Outcome uint8

// The outcomes. WouldDeny: all that fails are policies that only warn.
const (
	Deny Outcome = iota
	WouldDeny
	Allow
)

// String returns the name used in records.
func (o Outcome) String() string { return [...]string{"deny", "would-deny", "allow"}[o] }

// Proof is evidence, or why there is none. The zero value is a proof that
// nobody has asked for yet.
type Proof struct {
	Evidence *evidence.Evidence
	Absent   attest.Reason // why there is none
	Detail   string
}

func (p Proof) asked() bool { return p.Evidence != nil || p.Absent != 0 }

// Question is everything that a decision rests on.
type Question struct {
	Image   policy.Image // as the spec names it
	Running Running
	// Named is what proves the digest that the spec pins, or that its tag
	// resolved to; Own what proves the running digest by itself, where it is
	// another one. Evidence of another image counts as none.
	Named, Own Proof
	Policies   []*policy.Policy // those that match
}

// Decision is what was decided of one image, and why.
type Decision struct {
	Outcome   Outcome
	Reason    attest.Reason // why not, or why it would not; zero of Allow
	Digest    string        // what was judged: what runs, where that is known
	Object    string        // the image
	Detail    string        // for operators
	Policies  []string      // all that match
	Authority string        // POLICY/AUTHORITY of each policy that passed
	Signer    string        // who signed, as these authorities name them
	Hash      policy.Hash   // of the policies

	want side // the proof that is missing to decide
}

// side is one of a question's proofs.
type side uint8

const (
	sideNone side = iota
	sideNamed
	sideOwn
)

// Decide makes the decision. It is pure: it asks nobody, and the same question
// has the same answer everywhere.
//
// All matching policies must pass, each by any one of its authorities. Where the
// answer rests on a proof that was not asked for, the reason is EvidencePending.
func Decide(q Question) Decision {
	// Where no signature can change the answer, none is looked for.
	open := q.rule(Proof{})
	if open.Reason != attest.EvidencePending {
		return q.about(open)
	}
	running, pinned := q.Running, q.Image.Digest()
	switch {
	case running.Unreadable:
		return q.about(q.rule(Proof{Absent: attest.ImageIDUnknown, Detail: "the status names no digest that can be read"}))
	case running.Digest == "", running.Digest == pinned:
		return q.about(q.alone(open))
	case running.Config:
		return q.about(q.weigh(open, sideNamed))
	case pinned != "":
		return q.about(q.weigh(open, sideNamed, sideOwn))
	}
	// A tag says nothing about what runs but where to look for it; what it
	// resolves to now is asked only where the running digest does not pass by
	// itself, and may be a child of it.
	return q.about(q.weigh(open, sideOwn, sideNamed))
}

// about fills in what every decision says.
func (q *Question) about(d Decision) Decision {
	d.Object = "image " + attest.Escape(q.Image.String())
	d.Hash = policy.HashOf(q.Policies)
	for _, p := range q.Policies {
		d.Policies = append(d.Policies, p.Name())
	}
	if d.Digest == "" {
		d.Digest = q.Running.Digest
	}
	if d.Digest == "" {
		d.Digest = q.Image.Digest()
	}
	if len(d.Detail) > maxDetail {
		d.Detail = d.Detail[:maxDetail] + "…"
	}
	return d
}

// proof returns a side's proof, if it is about this image.
func (q *Question) proof(s side) Proof {
	p, digest := q.Named, q.Image.Digest()
	if s == sideOwn {
		p, digest = q.Own, q.Running.Digest
	}
	if p.Evidence == nil {
		return p
	}
	subject := p.Evidence.Subject
	if subject.Repository != q.Image.Repository() || digest != "" && subject.Digest != digest {
		return Proof{Absent: attest.InternalError, Detail: "the evidence is of " + subject.String()}
	}
	return p
}

// alone decides by the named digest only: nothing else runs, or nothing yet.
func (q *Question) alone(open Decision) Decision {
	p := q.proof(sideNamed)
	if !p.asked() {
		open.want = sideNamed
		return open
	}
	d := q.rule(p)
	if p.Evidence != nil {
		d.Digest = p.Evidence.Subject.Digest
	}
	return d
}

// weigh decides by the proofs of several sides, in their order, of a digest
// that is not the one that the spec pins. Any one that passes is enough.
func (q *Question) weigh(open Decision, sides ...side) Decision {
	var (
		best    *Decision // of those that speak about what runs
		away    *Decision // of a proof that could not be had
		missing int       // that the registry does not have
		remarks []string
	)
	for _, s := range sides {
		p := q.proof(s)
		if !p.asked() {
			open.want = s
			return open
		}
		d := q.rule(p)
		switch {
		case p.Evidence == nil && p.Absent.Kind() == attest.KindUnavailable:
			away = &d
			continue
		case p.Evidence == nil:
			missing++
			remarks = append(remarks, p.Absent.String()+" "+p.Detail)
			continue
		case s == sideNamed && !covers(p.Evidence, q.Running.Digest):
			remarks = append(remarks, p.Evidence.Subject.String()+" does not list it")
			continue
		}
		if d.Outcome != Allow && d.Reason.Kind() == attest.KindUnavailable {
			away = &d
			continue
		}
		if s == sideNamed && q.Running.Config {
			d.Digest = p.Evidence.Subject.Digest
		}
		if d.Outcome == Allow {
			return d
		}
		remarks = append(remarks, p.Evidence.Subject.String()+": "+d.Reason.String()+" "+d.Detail)
		// What the spec pins does not speak for what runs beside it: of that,
		// only a proof that passes counts.
		if s == sideOwn && q.Image.Digest() != "" && d.Outcome == Deny {
			continue
		}
		if best == nil || d.Outcome > best.Outcome {
			best = &d
		}
	}
	switch {
	case best != nil && (away == nil || best.Outcome > away.Outcome):
		return *best
	case away != nil:
		return *away
	case missing == len(sides):
		return q.rule(Proof{Absent: attest.ImageNotFound, Detail: strings.Join(remarks, "; ")})
	}
	return q.rule(Proof{Absent: attest.ImageIDUnknown, Detail: "runs " + q.Running.Digest + "; " + strings.Join(remarks, "; ")})
}

func covers(e *evidence.Evidence, digest string) bool {
	return e.Subject.Digest == digest || e.Lists(digest) || e.HasConfig(digest)
}

// rule holds all policies against one proof.
func (q *Question) rule(proof Proof) Decision {
	if len(q.Policies) == 0 {
		return Decision{Reason: attest.ImageNoPolicy, Detail: "no policy matches " + attest.Escape(q.Image.Name())}
	}
	var (
		worst       finding
		worstWarns  bool
		authorities []string
		signers     []string
	)
	for _, p := range q.Policies {
		f := hold(p, proof)
		if f.reason == 0 {
			authorities = append(authorities, p.Name()+"/"+f.authority)
			if f.signer != "" && !slices.Contains(signers, f.signer) {
				signers = append(signers, f.signer)
			}
			continue
		}
		if worst.reason == 0 || graver(f, p.Warns(), worst, worstWarns) {
			worst, worstWarns = f, p.Warns()
		}
	}
	d := Decision{Outcome: Allow, Reason: worst.reason, Detail: worst.detail, Authority: strings.Join(authorities, ", "), Signer: strings.Join(signers, ", ")}
	switch {
	case worst.reason == 0:
	case worstWarns:
		d.Outcome = WouldDeny
	default:
		d.Outcome = Deny
	}
	return d
}

// graver tells whether failure f says more than g: policies that refuse before
// those that warn, then verdicts before proofs that could not be had.
func graver(f finding, fWarns bool, g finding, gWarns bool) bool {
	if fWarns != gWarns {
		return gWarns
	}
	return f.reason.Kind() == attest.KindForbidden && g.reason.Kind() != attest.KindForbidden
}

// finding is what one policy says to one proof.
type finding struct {
	reason    attest.Reason // why it fails; zero if it passes
	detail    string
	authority string // that passed
	signer    string
}

// hold holds one policy against a proof. A static authority that passes is
// asked first: it says that signatures do not matter.
func hold(p *policy.Policy, proof Proof) finding {
	if why := p.Unusable(); why != "" {
		return finding{reason: attest.ImagePolicyUnusable, detail: "policy " + p.Name() + " in " + p.File() + ": " + why}
	}
	for _, a := range p.Authorities() {
		if a.Static() == policy.StaticPass {
			return finding{authority: a.Name()}
		}
	}
	fail := finding{reason: attest.ImagePolicyFailed, detail: "policy " + p.Name()}
	signatures := 0
	keys := false
	for _, a := range p.Authorities() {
		key := a.Key()
		switch {
		case key == nil:
			fail.detail += "; " + a.Name() + ": " + a.Message()
			continue
		case proof.Evidence == nil:
			return absent(p, proof)
		}
		keys = true
		n, failures, ok := signed(a, key, proof.Evidence)
		if ok {
			return finding{authority: a.Name(), signer: key.Signer()}
		}
		signatures += n
		fail.detail += "; " + a.Name() + ": " + failures
	}
	switch {
	case keys && proof.Evidence.Incomplete:
		// More may be there than could be read: that is no verdict.
		fail.reason = attest.RegistryAway
	case keys && signatures > 0:
		fail.reason = attest.ImageSignatureInvalid
	case keys:
		fail.reason = attest.ImageUnsigned
	}
	if keys && len(proof.Evidence.Skipped) > 0 {
		fail.detail += "; unusable: " + attest.Escape(strings.Join(proof.Evidence.Skipped, "; "))
	}
	return fail
}

func absent(p *policy.Policy, proof Proof) finding {
	f := finding{reason: proof.Absent, detail: "policy " + p.Name()}
	if f.reason == 0 {
		f.reason = attest.EvidencePending
	}
	if proof.Detail != "" {
		f.detail += ": " + proof.Detail
	}
	return f
}

// signed looks for a signature by key. It returns how many there were in the
// formats that the authority takes, and what failed in the first of them.
func signed(a *policy.Authority, key *sigstore.Key, e *evidence.Evidence) (n int, failures string, ok bool) {
	var failed []string
	for _, s := range e.Signatures {
		if !a.Accepts(s.Format) {
			continue
		}
		n++
		err := sigstore.Verify(s, e.Subject.Digest, key)
		if err == nil {
			return n, "", true
		}
		if len(failed) < maxFailures {
			failed = append(failed, attest.Escape(err.Error()))
		}
	}
	if n == 0 {
		return 0, "no signature", false
	}
	return n, fmt.Sprintf("none of %d signatures: %s", n, strings.Join(failed, "; ")), false
}
