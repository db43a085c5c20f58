package proxies

import (
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds"
)

// trigger is how soon a question is to be put.
type trigger uint8

const (
	nothing    trigger = iota
	background         // nobody waits: in its turn
	urgent             // somebody waits, or a pod was named
)

// proxy is one proxy instance. Its goroutine (rounds) lives while there is
// something to ask.
type proxy struct {
	owner    *Proxies
	instance attest.Instance
	identity attest.Identity

	mu      sync.Mutex    // guards all below; never held while anything is waited for
	caller  attest.Caller // of the newest credential
	holders map[*holder]struct{}
	gone    bool // refused or dropped: it takes no more streams
	asking  bool // rounds runs
	hurry   chan struct{}

	held     *held     // nil while there is no SVID
	stale    bool      // the pod may run other images than held rests on
	change   trigger   // something has changed, and was not asked about since
	recheck  time.Time // when everybody's change reaches this one; zero: none is under way
	retry    time.Time // not before then is anything asked that nobody waits for
	failures int       // unavailable answers in a row
	timer    *time.Timer

	answers  map[string]answer
	refusing bool
	unknown  map[uint64]struct{}
}

// held is an SVID and what bears on its renewal. It is immutable.
type held struct {
	svid        *sds.SVID
	serial      string
	issued      time.Time
	due         time.Time // of the renewal
	provisional bool
	root        string // that its chain leads to
	sequence    uint64 // of the snapshot that it is of
	digests     []string
}

// late is from when on a renewal waits for nobody: the last quarter of the life.
func (h *held) late() time.Time {
	ends := h.svid.Ends()
	return ends.Add(-ends.Sub(h.issued) / 4)
}

func newProxy(owner *Proxies, caller attest.Caller) *proxy {
	return &proxy{owner: owner, instance: caller.Instance(), identity: caller.Identity, caller: caller, holders: map[*holder]struct{}{}}
}

// LogValue names the proxy in logs.
func (p *proxy) LogValue() slog.Value {
	return slog.GroupValue(slog.String("cluster", p.instance.Cluster), slog.String("identity", p.identity.String()), slog.String("podUID", p.instance.PodUID))
}

// sample tells whether a line of kind is to be logged. It outlives p: one that is
// refused and comes back is not new to it.
func (p *proxy) sample(kind string) (leftOut uint64, ok bool) {
	return p.owner.sampler.Take(kind, p.instance, p.owner.cfg.Now())
}

// add makes a holder for one more stream; nil without a refusal says that the
// proxy takes no more.
func (p *proxy) add(caller attest.Caller) (*holder, *attest.DenyError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return nil, nil
	case len(p.holders) >= p.owner.cfg.MaxStreams:
		return nil, attest.Deny(attest.CallerStreamsExceeded, caller.Pod.String(), "%d streams are open", len(p.holders))
	}
	if !caller.Expires.Before(p.caller.Expires) {
		p.caller = caller
	}
	h := newHolder(p, caller)
	p.holders[h] = struct{}{}
	return h, nil
}

// release lets a holder go. A proxy without stream and SVID goes with it.
func (p *proxy) release(h *holder) {
	p.mu.Lock()
	delete(p.holders, h)
	p.confirm() // it may have been the only one behind
	drop := len(p.holders) == 0 && p.held == nil && !p.asking
	if drop {
		p.leave()
	}
	p.mu.Unlock()
	if drop {
		p.owner.forget(p)
	}
}

// leave makes p gone and drops its key. p.mu is held.
func (p *proxy) leave() {
	if p.refusing {
		p.refusing = false
		p.owner.metrics.refusing.Dec()
	}
	p.gone, p.held = true, nil
	if p.timer != nil {
		p.timer.Stop()
	}
}

// dropIfIdle makes p gone if it has no stream.
func (p *proxy) dropIfIdle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.holders) > 0 {
		return false
	}
	p.leave()
	return true
}

// end ends every stream with err. p.mu is held.
func (p *proxy) end(err error) {
	for h := range p.holders {
		h.end(err)
	}
}

// shutDown ends every stream: their clients are to come back elsewhere.
func (p *proxy) shutDown() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end(attest.Deny(attest.ShuttingDown, "", ""))
	p.leave()
}

// wanted tells whether a stream asks for the SVID. p.mu is held.
func (p *proxy) wanted() bool {
	for h := range p.holders {
		if h.svid && !h.ended() {
			return true
		}
	}
	return false
}

// valid tells whether there is an SVID that may be sent. p.mu is held.
func (p *proxy) valid(now time.Time) bool {
	return p.held != nil && now.Before(p.held.svid.Ends())
}

// pending tells what there is to ask. It is worked out from the state alone, so
// that nothing asked for can be lost, and nothing is asked twice. p.mu is held.
func (p *proxy) pending(now time.Time) trigger {
	for h := range p.holders {
		if h.waits(p.valid(now)) {
			return urgent
		}
	}
	if now.Before(p.retry) {
		return nothing
	}
	t := p.change
	if p.held != nil && !now.Before(p.held.due) && p.wanted() {
		t = max(t, background)
		if !now.Before(p.held.late()) {
			t = urgent
		}
	}
	return t
}

// look starts asking if there is something to ask, and else sets the timer.
// p.mu is held.
func (p *proxy) look() {
	if p.gone {
		return
	}
	now := p.owner.cfg.Now()
	t := p.pending(now)
	switch {
	case p.asking:
		if t == urgent && p.hurry != nil {
			close(p.hurry)
			p.hurry = nil
		}
	case t == nothing:
		p.arm(now)
	default:
		p.asking = p.owner.rounds.start(p.rounds)
	}
}

// arm sets the timer to when there is next something to do. p.mu is held.
func (p *proxy) arm(now time.Time) {
	var next time.Time
	consider := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	consider(p.recheck)
	if p.held != nil {
		due := p.held.due
		if due.Before(p.retry) {
			due = p.retry
		}
		consider(due)
	}
	if p.change != nothing {
		consider(p.retry)
	}
	if next.IsZero() || p.gone {
		return
	}
	wait := max(next.Sub(now), time.Millisecond)
	if p.timer == nil {
		p.timer = time.AfterFunc(wait, p.tick)
		return
	}
	p.timer.Reset(wait)
}

// tick is the timer's.
func (p *proxy) tick() {
	p.mu.Lock()
	now := p.owner.cfg.Now()
	if p.gone {
		p.mu.Unlock()
		return
	}
	if !p.recheck.IsZero() && !now.Before(p.recheck) {
		p.recheck, p.change = time.Time{}, max(p.change, background)
	}
	if p.held != nil && !now.Before(p.held.due) && !p.asking && !p.wanted() {
		p.held = nil // nobody would take the renewed one
		if len(p.holders) == 0 {
			p.leave()
			p.mu.Unlock()
			p.owner.forget(p)
			return
		}
	}
	p.look()
	p.mu.Unlock()
}

// changed has p asked about again, as soon as t says.
func (p *proxy) changed(t trigger) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.touch(t)
}

// touch is changed with p.mu held.
func (p *proxy) touch(t trigger) {
	p.change, p.retry = max(p.change, t), time.Time{}
	p.look()
}

// digestsChanged is changed where p rests on one of digests. One without a
// stream is looked at when it comes back.
func (p *proxy) digestsChanged(digests map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.holders) == 0 {
		return
	}
	// An answer that is under way may rest on images that p.held does not.
	touched := p.held == nil || p.stale || p.asking
	if p.held != nil {
		for _, d := range p.held.digests {
			touched = touched || digests[d]
		}
	}
	if touched {
		p.touch(background)
	}
}

// everybodyChanged has p asked about again some time soon.
func (p *proxy) everybodyChanged() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.holders) > 0 && p.recheck.IsZero() {
		p.recheck = p.owner.cfg.Now().Add(mathrand.N(p.owner.cfg.Spread))
		p.look()
	}
}

// trustChanged hands the new bundle on, and renews at once what no longer leads
// to it.
func (p *proxy) trustChanged(b *trusted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for h := range p.holders {
		h.wakeUp()
	}
	if p.held != nil && b.orphans(p.held) {
		next := *p.held
		next.due = p.owner.cfg.Now()
		p.held, p.retry = &next, time.Time{}
		p.look()
	}
}
