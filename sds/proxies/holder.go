package proxies

import (
	"context"
	"hash/maphash"
	"log/slog"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds"
)

// holder is one stream's part in its proxy. The proxy's lock guards what is not
// set once.
type holder struct {
	proxy  *proxy
	caller attest.Caller
	wake   chan struct{} // one token
	done   chan struct{}

	asked    bool   // it is subscribed to something
	svid     bool   // to the SVID, too
	admitted bool   // an answer that came after it joined was yes
	err      error  // why it ended
	trusts   string // version of the bundle that it last accepted; "" before, or refused
}

var _ sds.Holder = (*holder)(nil)

func newHolder(p *proxy, caller attest.Caller) *holder {
	return &holder{proxy: p, caller: caller, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// LogValue implements [slog.LogValuer].
func (h *holder) LogValue() slog.Value {
	return slog.GroupValue(slog.String("pod", h.caller.Pod.String()), slog.String("podUID", h.caller.Pod.UID), slog.String("cluster", h.caller.Cluster), slog.String("identity", h.caller.Identity.String()))
}

// Identity implements [sds.Holder].
func (h *holder) Identity() attest.Identity { return h.caller.Identity }

// Expires implements [sds.Holder].
func (h *holder) Expires() time.Time { return h.caller.Expires }

// Wake implements [sds.Holder].
func (h *holder) Wake() <-chan struct{} { return h.wake }

// Done implements [sds.Holder].
func (h *holder) Done() <-chan struct{} { return h.done }

// Err implements [sds.Holder].
func (h *holder) Err() error {
	h.proxy.mu.Lock()
	defer h.proxy.mu.Unlock()
	return h.err
}

// Want implements [sds.Holder].
func (h *holder) Want(svid bool) {
	p := h.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	h.asked, h.svid = true, svid
	p.look()
}

// SVID implements [sds.Holder].
func (h *holder) SVID() *sds.SVID {
	p := h.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	if !h.admitted || h.ended() || p.held == nil {
		return nil
	}
	return p.held.svid
}

// Bundle implements [sds.Holder].
func (h *holder) Bundle() *sds.Bundle {
	p := h.proxy
	p.mu.Lock()
	admitted := h.admitted && !h.ended()
	p.mu.Unlock()
	b := p.owner.bundle.Load()
	if !admitted || b == nil || b.TrustDomain() != p.identity.TrustDomain() {
		return nil
	}
	return b.Bundle
}

// Refuse implements [sds.Holder].
func (h *holder) Refuse(ctx context.Context, deny *attest.DenyError) error {
	return h.proxy.owner.cfg.RA.Refuse(ctx, Door, h.caller, deny)
}

// Sample implements [sds.Holder].
func (h *holder) Sample(kind string) (leftOut uint64, ok bool) { return h.proxy.sample(kind) }

// Close implements [sds.Holder].
func (h *holder) Close() {
	h.proxy.release(h)
	if census := h.proxy.owner.cfg.Census; census != nil {
		census.Closed(Door, h.caller)
	}
}

// waits tells whether the stream has to be given an answer: it has had none, or
// asks for an SVID and there is no valid one. The proxy's lock is held.
func (h *holder) waits(valid bool) bool {
	return h.asked && !h.ended() && (!h.admitted || h.svid && !valid)
}

// ended tells whether the source has ended the stream. The proxy's lock is held.
func (h *holder) ended() bool { return h.err != nil }

// end ends the stream with err. The proxy's lock is held.
func (h *holder) end(err error) {
	if h.ended() {
		return
	}
	h.err = err
	close(h.done)
}

func (h *holder) wakeUp() {
	select {
	case h.wake <- struct{}{}:
	default: // it is going to look anyway
	}
}

// answer is what a proxy said last of one name.
type answer struct {
	accepted string // version that it is known to have
	refused  string // version that it refused last
	refusing bool   // of the two, the latter came last
}

// Answered implements [sds.Holder]. An acknowledgement of bytes that this proxy
// has refused proves nothing: Envoy takes them on a new stream without a word,
// and goes on using what it had.
func (h *holder) Answered(name, version, refusal string) {
	p := h.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.answers[name]
	switch {
	case refusal != "":
		a.refused, a.refusing = version, true
	case a.refused == version:
		p.owner.metrics.unproven.Inc()
		if leftOut, ok := p.sample("unproven"); ok {
			p.owner.cfg.Log.Info("a proxy accepted what it had refused before, which proves nothing", "proxy", h, "name", name, "version", version, "leftOut", leftOut)
		}
	default:
		if a.accepted != version {
			p.owner.cfg.Log.Debug("a proxy has a secret", "proxy", h, "name", name, "version", version)
		}
		a.accepted, a.refusing = version, false
	}
	if p.answers == nil {
		p.answers = map[string]answer{}
	}
	p.answers[name] = a
	p.countRefusing()
	if name != sds.DefaultName && name != h.caller.Identity.String() {
		if h.trusts = version; a.refused == version {
			h.trusts = refused
		}
		p.confirm()
	}
}

// refused stands for a bundle that a stream has not taken.
const refused = "refused"

// confirm tells the census where every stream of the proxy that was ever given a
// bundle has accepted the one in force. p.mu is held.
func (p *proxy) confirm() {
	b := p.owner.bundle.Load()
	if b == nil || p.owner.cfg.Census == nil {
		return
	}
	some := false
	for h := range p.holders {
		if h.trusts != "" && h.trusts != b.Version() {
			return
		}
		some = some || h.trusts != ""
	}
	if some {
		p.owner.cfg.Census.Confirmed(Door, p.instance, b.sequence)
	}
}

// countRefusing keeps the gauge of proxies that refuse something. p.mu is held.
func (p *proxy) countRefusing() {
	refusing := false
	for _, a := range p.answers {
		refusing = refusing || a.refusing
	}
	if refusing == p.refusing || p.gone {
		return
	}
	p.refusing = refusing
	if refusing {
		p.owner.metrics.refusing.Inc()
		return
	}
	p.owner.metrics.refusing.Dec()
}

// maxUnknown bounds the names that a proxy is remembered to have asked for in
// vain. Further ones are counted and not logged.
const maxUnknown = 100

// unknownSeed makes hashes of names that no client can foresee.
var unknownSeed = maphash.MakeSeed()

// Unknown implements [sds.Holder].
func (h *holder) Unknown(name string) (first bool) {
	hash := maphash.String(unknownSeed, name)
	p := h.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.unknown[hash]; known || len(p.unknown) >= maxUnknown {
		return false
	}
	if p.unknown == nil {
		p.unknown = map[uint64]struct{}{}
	}
	p.unknown[hash] = struct{}{}
	return true
}
