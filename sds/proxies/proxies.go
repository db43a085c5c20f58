package proxies

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

// Door is this front end's name in metrics and ledger.
const Door = "sds"

// Registrar is what *ra.RA does for this package; tests inject faults here.
//
// Attest, Issue and Check MUST answer within a bound of their own, by an error
// that sds/ra's Status knows. Refuse MUST return such an error.
type Registrar interface {
	Attest(ctx context.Context, door string, cred attest.Credential) (attest.Caller, error)
	Issue(ctx context.Context, door string, caller attest.Caller, identity attest.Identity, req ca.Request) (*ca.Issued, error)
	Check(ctx context.Context, door string, caller attest.Caller, identity attest.Identity) error
	Refuse(ctx context.Context, door string, caller attest.Caller, deny *attest.DenyError) error
}

// Census is told who holds what; *census.Census is the real one. None of its
// methods may block.
type Census interface {
	// Opened notes a stream, on a connection made at connected. Each is followed
	// by one Closed with the same caller.
	Opened(door string, caller attest.Caller, connected time.Time)
	Closed(door string, caller attest.Caller)
	// Confirmed notes that all streams of the instance that were given the
	// bundle of sequence have accepted it, and none ever refused its bytes.
	Confirmed(door string, instance attest.Instance, sequence uint64)
}

// Config is what [New] needs. Limits that are zero take their defaults.
type Config struct {
	RA        Registrar
	Authority *ca.Authority
	Feed      *attest.Feed
	Census    Census // nil: nobody asks who holds what
	// MaxProxies bounds the proxies that are kept, 25,000 at about 8 KiB each.
	// Those without a stream make room first.
	MaxProxies int
	// MaxStreams bounds the streams of one proxy, 100: dozens are usual.
	MaxStreams int
	// Spread is over how long everybody is checked again after a change that
	// touches everybody, 10 s.
	Spread time.Duration
	// Parallel bounds the questions that nobody waits for (renewals, checks
	// after changes) at once, 64.
	Parallel   int
	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
}

// Proxies is the authority's Source.
type Proxies struct {
	cfg     Config
	metrics *metrics
	sampler *ra.Sampler
	slots   chan struct{} // one for each question that nobody waits for
	work    context.Context
	stop    context.CancelFunc
	rounds  crew
	bundle  atomic.Pointer[trusted] // nil before the first snapshot
	news    news

	mu      sync.Mutex // guards below; taken before a proxy's
	stopped bool
	byPod   map[attest.Instance]*proxy
}

// trusted is a bundle, and its roots by the names that snapshots have for them.
type trusted struct {
	*sds.Bundle
	pem      []byte
	sequence uint64
	roots    map[string]bool
}

// orphans tells whether h's root is one that is trusted no more.
func (t *trusted) orphans(h *held) bool { return h.sequence < t.sequence && !t.roots[h.root] }

var _ sds.Source = (*Proxies)(nil)

// New checks cfg and returns a Source without any bundle, until Run.
func New(cfg Config) (*Proxies, error) {
	if cfg.RA == nil || cfg.Authority == nil || cfg.Feed == nil || cfg.Registerer == nil || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("making proxies: registrar, authority, feed, registerer, log and clock are all required")
	}
	if cfg.MaxProxies < 0 || cfg.MaxStreams < 0 || cfg.Spread < 0 || cfg.Parallel < 0 {
		return nil, errors.New("making proxies: a limit is negative")
	}
	for limit, fallback := range map[*int]int{&cfg.MaxProxies: 25_000, &cfg.MaxStreams: 100, &cfg.Parallel: 64} {
		if *limit == 0 {
			*limit = fallback
		}
	}
	if cfg.Spread == 0 {
		cfg.Spread = 10 * time.Second
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("making proxies: %w", err)
	}
	sampler, err := ra.NewSampler()
	if err != nil {
		return nil, fmt.Errorf("making proxies: %w", err)
	}
	ps := &Proxies{cfg: cfg, metrics: m, sampler: sampler, slots: make(chan struct{}, cfg.Parallel), byPod: map[attest.Instance]*proxy{}}
	ps.work, ps.stop = context.WithCancel(context.Background())
	ps.news.arrived = make(chan struct{}, 1)
	return ps, nil
}

// Open implements [sds.Source]: the token is reviewed here, once for a stream,
// and the pod behind it looked at.
func (ps *Proxies) Open(ctx context.Context, cred attest.Credential) (sds.Holder, error) {
	caller, err := ps.cfg.RA.Attest(ctx, Door, cred)
	if err != nil {
		return nil, err
	}
	h, deny := ps.join(caller)
	switch {
	case deny == nil:
		if ps.cfg.Census != nil {
			ps.cfg.Census.Opened(Door, caller, ra.Connected(ctx))
		}
		return h, nil
	case deny.Reason == attest.ShuttingDown: // which refuses nobody anything
		return nil, deny
	default:
		return nil, ps.cfg.RA.Refuse(ctx, Door, caller, deny)
	}
}

// Refuse implements [sds.Source].
func (ps *Proxies) Refuse(ctx context.Context, deny *attest.DenyError) error {
	return ps.cfg.RA.Refuse(ctx, Door, attest.Caller{}, deny)
}

// join makes a stream's holder, and its proxy where it is the first.
func (ps *Proxies) join(caller attest.Caller) (*holder, *attest.DenyError) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.stopped {
		return nil, attest.Deny(attest.ShuttingDown, "", "")
	}
	p := ps.byPod[caller.Instance()]
	if p != nil {
		h, deny := p.add(caller)
		if h != nil || deny != nil {
			return h, deny
		}
		// It was refused this moment: this caller gets a new one.
		ps.remove(p)
	}
	if len(ps.byPod) >= ps.cfg.MaxProxies && !ps.evict() {
		return nil, attest.Deny(attest.Overloaded, "", "%d proxies have streams", len(ps.byPod))
	}
	p = newProxy(ps, caller)
	ps.byPod[p.instance] = p
	ps.metrics.proxies.Inc()
	h, deny := p.add(caller)
	return h, deny
}

// evict drops one proxy without a stream. ps.mu is held.
func (ps *Proxies) evict() bool {
	for _, p := range ps.byPod {
		if p.dropIfIdle() {
			ps.remove(p)
			return true
		}
	}
	return false
}

// forget takes a proxy that is gone out of the set.
func (ps *Proxies) forget(p *proxy) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.remove(p)
}

// remove is forget with ps.mu held. Another may have taken p's place.
func (ps *Proxies) remove(p *proxy) {
	if ps.byPod[p.instance] == p {
		delete(ps.byPod, p.instance)
		ps.metrics.proxies.Dec()
	}
}

// all returns every proxy, to be looked at without ps.mu.
func (ps *Proxies) all() []*proxy {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	list := make([]*proxy, 0, len(ps.byPod))
	for _, p := range ps.byPod {
		list = append(list, p)
	}
	return list
}

// known tells whether instance has a proxy.
func (ps *Proxies) known(instance attest.Instance) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byPod[instance] != nil
}

// Run hands on new bundles and changes until ctx ends, then ends every stream.
// It runs once.
func (ps *Proxies) Run(ctx context.Context) error {
	ps.cfg.Authority.Subscribe(ps.news.snapshot)
	unsubscribe := ps.cfg.Feed.Subscribe(func(c attest.Change) { ps.news.change(c, ps.known) })
	defer unsubscribe()
	ps.news.change(attest.Change{}, nil) // what was announced before we listened
	for {
		select {
		case <-ctx.Done():
			ps.shutDown()
			return nil
		case <-ps.news.arrived:
		}
		latest := ps.news.take()
		if latest.snapshot != nil {
			ps.trust(latest.snapshot)
		}
		ps.announce(latest)
	}
}

func (ps *Proxies) shutDown() {
	ps.mu.Lock()
	ps.stopped = true
	ps.mu.Unlock()
	ps.stop()
	ps.rounds.wait()
	for _, p := range ps.all() {
		p.shutDown()
		ps.forget(p)
	}
}

// trust makes snap's bundle the one that everybody has, where it is another than
// before. One that cannot be used leaves the last in force.
func (ps *Proxies) trust(snap *ca.Snapshot) {
	old := ps.bundle.Load()
	if old != nil && bytes.Equal(old.pem, snap.BundlePEM()) {
		return // a new issuing CA under the same roots
	}
	b, err := ps.trustedBy(snap)
	if err != nil {
		ps.cfg.Log.Error("a new bundle cannot be used; the last one stays", "sequence", snap.Sequence(), "error", err)
		return
	}
	ps.bundle.Store(b)
	ps.cfg.Log.Info("bundle changed", "sequence", snap.Sequence(), "version", b.Version(), "roots", len(b.roots))
	for _, p := range ps.all() {
		p.trustChanged(b)
	}
}

// trustedBy returns snap's bundle, which most often is the one in force.
func (ps *Proxies) trustedBy(snap *ca.Snapshot) (*trusted, error) {
	if b := ps.bundle.Load(); b != nil && bytes.Equal(b.pem, snap.BundlePEM()) {
		return b, nil
	}
	bundle, err := sds.NewBundle(snap.TrustDomain(), snap.BundlePEM(), ps.cfg.Now())
	if err != nil {
		return nil, err
	}
	t := &trusted{Bundle: bundle, pem: snap.BundlePEM(), sequence: snap.Sequence(), roots: map[string]bool{}}
	for _, root := range snap.Roots() {
		t.roots[rootID(root)] = true
	}
	return t, nil
}
