package proxies

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/sds"
)

// floor is this door's shortest lifetime.
const floor = time.Minute

// round is one question to the registration authority.
type round struct {
	what   string // first, renewal or check
	caller attest.Caller
	change trigger // that it answers
}

// rounds asks until there is nothing left to ask. It runs at most once for a
// proxy at a time.
func (p *proxy) rounds() {
	ctx := p.owner.work
	defer func() {
		if v := recover(); v != nil {
			p.panicked(ctx, v)
		}
	}()
	for {
		q := p.next()
		if q.how == nothing {
			break
		}
		r, ok := p.ask(ctx, q)
		if !ok {
			return // shutting down
		}
		if r.err != nil && ctx.Err() != nil {
			return // nobody was refused: shutDown ends the streams
		}
		p.owner.metrics.asked(r.what, r.err)
		p.settle(r.round, r.got, r.err)
	}
	p.mu.Lock()
	gone := p.gone
	p.mu.Unlock()
	if gone {
		p.owner.forget(p)
	}
}

// reply is how a question ended.
type reply struct {
	round
	got *held // nil for a check
	err error
}

// ask puts one question in its turn. It reports false where the work is over.
func (p *proxy) ask(ctx context.Context, q turn) (r reply, ok bool) {
	if q.how == background {
		release, ok := p.owner.slot(ctx, q)
		if !ok {
			return reply{}, false
		}
		defer release()
	}
	if r.round = p.begin(); r.what == "check" {
		r.err = p.owner.cfg.RA.Check(ctx, Door, r.caller, p.identity)
	} else {
		r.got, r.err = p.owner.issue(ctx, r.caller)
	}
	return r, true
}

// maxStack bounds how much of a stack is logged.
const maxStack = 8 << 10

// panicked refuses a proxy whose question ended in a panic: what is known of it
// may be half of something. It comes back as a new one.
func (p *proxy) panicked(ctx context.Context, v any) {
	stack := debug.Stack()
	if leftOut, ok := p.sample("panic"); ok {
		p.owner.cfg.Log.Error("a proxy's question panicked; its streams end", "proxy", p, "stack", string(stack[:min(len(stack), maxStack)]), "leftOut", leftOut)
	}
	p.mu.Lock()
	caller := p.caller
	p.mu.Unlock()
	err := p.owner.broken(ctx, caller, fmt.Errorf("panic: %v", v))
	p.mu.Lock()
	p.end(err)
	p.leave()
	p.asking = false
	p.mu.Unlock()
	p.owner.forget(p)
}

// turn is how a question waits to be put.
type turn struct {
	how   trigger
	hurry <-chan struct{} // closed when somebody waits for the answer
	last  time.Duration   // until the certificate is close to its end; 0: it is not at stake
}

// next tells whether there is something to ask. If not, rounds ends, and the
// proxy with it if it has neither a stream nor an SVID.
func (p *proxy) next() turn {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.owner.cfg.Now()
	q := turn{how: p.pending(now)}
	if len(p.holders) == 0 && p.held == nil && !p.gone {
		p.leave()
	}
	if p.gone || q.how == nothing {
		p.asking = false
		p.arm(now)
		return turn{}
	}
	p.hurry = make(chan struct{})
	q.hurry = p.hurry
	if p.held != nil {
		q.last = max(p.held.late().Sub(now), time.Millisecond)
	}
	return q
}

// begin decides what is asked: for a certificate where one is needed, else only
// whether one would be given. A provisional one is replaced at the first news of
// its pod, which may be what really runs.
func (p *proxy) begin() round {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.owner.cfg.Now()
	r := round{what: "check", caller: p.caller, change: p.change}
	p.change, p.hurry = nothing, nil
	switch {
	case !p.wanted():
	case !p.valid(now):
		r.what = "first"
	case !now.Before(p.held.due) || p.held.provisional && r.change != nothing:
		r.what = "renewal"
	}
	return r
}

// issue makes a key and has it certified.
func (ps *Proxies) issue(ctx context.Context, caller attest.Caller) (*held, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, ps.broken(ctx, caller, err)
	}
	issued, err := ps.cfg.RA.Issue(ctx, Door, caller, caller.Identity, ca.Request{Key: key.Public(), Floor: floor})
	if err != nil {
		return nil, err
	}
	bundle, err := ps.trustedBy(issued.Snapshot)
	if err != nil {
		return nil, ps.broken(ctx, caller, err)
	}
	now := ps.cfg.Now()
	svid, err := sds.NewSVID(caller.Identity, issued.FullChainPEM(), key, bundle.Bundle, now)
	if err != nil {
		return nil, ps.broken(ctx, caller, err)
	}
	return &held{
		svid: svid, serial: issued.Serial, issued: issued.IssuedAt, due: dueAt(issued.IssuedAt, issued.NotAfter, now),
		provisional: issued.Facts.Provisional, root: issued.Snapshot.RootID(), sequence: issued.Snapshot.Sequence(), digests: digestsIn(&issued.Facts),
	}, nil
}

// broken records trouble of our own.
func (ps *Proxies) broken(ctx context.Context, caller attest.Caller, err error) error {
	return ps.cfg.RA.Refuse(ctx, Door, caller, attest.Deny(attest.InternalError, "", "%v", err))
}

// dueAt is when a certificate is renewed: at half of its life, 10 % of it
// earlier or later, so that a burst of issues does not become one of renewals.
func dueAt(issued, ends, now time.Time) time.Time {
	half := ends.Sub(issued) / 2
	due := issued.Add(half)
	if tenth := half / 10; tenth > 0 {
		due = due.Add(mathrand.N(2*tenth) - tenth)
	}
	if !due.After(now) { // lives of a second or two, as whole seconds have them
		due = now.Add(ends.Sub(now) / 2)
	}
	return due
}

// settle acts on an answer.
func (p *proxy) settle(r round, got *held, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone: // dropped to make room, while nobody waited
	case err == nil:
		p.granted(r, got)
	case attest.DenialOf(err).Reason.Kind() == attest.KindUnavailable:
		p.unavailable(r, err)
	default:
		reason := attest.DenialOf(err).Reason.String()
		if leftOut, ok := p.sample(reason); ok {
			p.owner.cfg.Log.Info("a proxy is refused; its streams end", "proxy", p, "pod", r.caller.Pod.String(), "reason", reason, "streams", len(p.holders), "leftOut", leftOut)
		}
		p.end(err)
		p.leave()
	}
}

// granted gives every stream that has joined until now what there is. p.mu is
// held.
func (p *proxy) granted(r round, got *held) {
	p.failures, p.retry = 0, time.Time{}
	if got != nil {
		p.held, p.stale = got, false
		// The bundle may have changed while we asked.
		if b := p.owner.bundle.Load(); b != nil && b.orphans(got) {
			got.due = p.owner.cfg.Now()
		}
		p.owner.cfg.Log.Debug("a proxy has a new SVID", "proxy", p, "serial", got.serial, "version", got.svid.Version(), "ends", got.svid.Ends(), "due", got.due)
	} else if r.change != nothing {
		p.stale = true // a check does not say which images it saw
	}
	for h := range p.holders {
		h.admitted = true
		h.wakeUp()
	}
}

// Bounds of the pause after an unavailable answer.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// unavailable ends the streams that wait, and has the question put again for the
// others. What they have stays good until it ends. p.mu is held.
func (p *proxy) unavailable(r round, err error) {
	now := p.owner.cfg.Now()
	valid := p.valid(now)
	for h := range p.holders {
		if h.waits(valid) {
			h.end(err)
		}
	}
	if !valid {
		p.held = nil
	}
	p.change = max(p.change, r.change)
	pause := min(firstRetry<<min(p.failures, 10), lastRetry)
	p.failures++
	if valid { // short lives, short pauses
		pause = min(pause, p.held.svid.Ends().Sub(p.held.issued)/20, p.held.svid.Ends().Sub(now))
	}
	p.retry = now.Add(pause + mathrand.N(pause/5+1))
	if valid && p.retry.After(p.held.svid.Ends()) {
		p.retry = p.held.svid.Ends()
	}
	if valid && p.failures == 1 { // the first of a row: the registration authority logs each
		if leftOut, ok := p.sample("not answered"); ok {
			p.owner.cfg.Log.Warn("a proxy's question was not answered; what it has stays in use", "proxy", p, "what", r.what, "reason", attest.DenialOf(err).Reason.String(), "ends", p.held.svid.Ends(), "leftOut", leftOut)
		}
	}
}
