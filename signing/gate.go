package signing

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/policy"
)

const (
	maxDecisions = 1 << 16 // at about 1 KiB
	maxNames     = 1 << 14 // image names that are kept taken apart
	// maxTurns bounds how often a check begins again because the policies
	// changed under it.
	maxTurns = 3
)

// Gate implements [attest.ImageGate].
type Gate struct {
	cfg       Config
	accounts  map[account]struct{}
	fetcher   *fetcher
	metrics   *metrics
	decisions *lru.Cache[decisionKey, *decided]
	deciding  singleflight.Group
	work      turns       // to decide from evidence
	evicted   atomic.Bool // a decision was forgotten since the policies last changed
	view      atomic.Pointer[view]
	nudge     chan struct{} // holds one: the policies may have changed
	// reconsidered is the set that the decisions at hand were last held
	// against. Only Run touches it.
	reconsidered *policy.Set
}

type account struct{ namespace, name string }

// view is one set of policies, with what was found out about it.
type view struct {
	set   *policy.Set
	names *lru.Cache[string, *named]
}

// named is an image's name, taken apart, with the policies that name it.
type named struct {
	image  policy.Image
	err    error
	naming *policy.Naming
}

// NewGate checks cfg and returns a gate that fetches nothing before
// [Gate.Run].
func NewGate(cfg Config) (*Gate, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	g := &Gate{cfg: cfg, accounts: map[account]struct{}{}, nudge: make(chan struct{}, 1)}
	for _, a := range cfg.Accounts {
		namespace, name, _ := strings.Cut(a, "/")
		g.accounts[account{namespace, name}] = struct{}{}
	}
	var err error
	if g.fetcher, err = newFetcher(&g.cfg); err != nil {
		return nil, fmt.Errorf("making image gate: %w", err)
	}
	if g.decisions, err = lru.New[decisionKey, *decided](maxDecisions); err != nil {
		return nil, fmt.Errorf("making image gate: %w", err)
	}
	if g.metrics, err = newMetrics(cfg.Registerer, g); err != nil {
		return nil, err
	}
	g.work = newTurns(max(1, runtime.GOMAXPROCS(0)/2))
	g.fetcher.metrics, g.fetcher.changed, g.fetcher.useful = g.metrics, g.forget, g.useful
	if _, err := g.current(); err != nil {
		return nil, err
	}
	g.reconsidered = g.view.Load().set
	return g, nil
}

// Run fetches evidence, looks for newer signatures and follows the policies,
// until ctx ends.
func (g *Gate) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.fetcher.run(ctx) })
	group.Go(func() error { return g.follow(ctx) })
	return group.Wait()
}

// current returns the view of the policies in force.
func (g *Gate) current() (*view, error) {
	set := g.cfg.Policies()
	if v := g.view.Load(); v != nil && v.set == set {
		return v, nil
	}
	names, err := lru.New[string, *named](maxNames)
	if err != nil {
		return nil, fmt.Errorf("following image policies: %w", err)
	}
	v := &view{set: set, names: names}
	g.view.Store(v)
	return v, nil
}

func (v *view) name(image string) *named {
	if n, ok := v.names.Get(image); ok {
		return n
	}
	n := &named{}
	if n.image, n.err = policy.ParseImage(image); n.err == nil {
		n.naming = v.set.Naming(n.image)
	}
	v.names.Add(image, n)
	return n
}

// Check implements [attest.ImageGate]. It returns an entry for each container
// that counts, in the order of the pods.
func (g *Gate) Check(ctx context.Context, pods []*attest.Pod) ([]attest.ImageEvidence, error) {
	for turn := 1; ; turn++ {
		v, err := g.current()
		if err != nil {
			return nil, err
		}
		c := check{gate: g, view: v, now: g.cfg.Now()}
		c.look(ctx, pods)
		if c.refusal == nil && len(c.open) > 0 {
			c.wait(ctx)
		}
		// An answer under policies that are not in force any more would be missed
		// when their change is announced.
		if g.cfg.Policies() != v.set && turn < maxTurns {
			continue
		}
		c.count()
		if c.refusal != nil {
			return nil, c.refusal
		}
		return c.found, nil
	}
}

// check is one run of [Gate.Check].
type check struct {
	gate    *Gate
	view    *view
	now     time.Time
	found   []attest.ImageEvidence
	refusal *attest.DenyError
	open    []open
}

// open is a container whose answer waits for a registry.
type open struct {
	at     int // in check.found
	pod    *attest.Pod
	c      *attest.Container
	mode   Mode
	ruling ruling
}

// look goes through all containers without waiting for a registry. ctx bounds
// how long it waits for its turn to decide.
func (c *check) look(ctx context.Context, pods []*attest.Pod) {
	n := 0
	for _, pod := range pods {
		n += len(pod.Containers)
	}
	c.found = make([]attest.ImageEvidence, 0, n)
	for _, pod := range pods {
		mode := c.gate.mode(pod)
		for i := range pod.Containers {
			container := &pod.Containers[i]
			if container.Kind == attest.ContainerEphemeral && !container.Running && !c.gate.cfg.CountEphemeral {
				continue
			}
			if mode == Disabled {
				c.found = append(c.found, unchecked(container))
				continue
			}
			r := c.gate.rule(ctx, c.view, c.now, pod, container)
			c.found = append(c.found, r.evidence(container))
			if r.flight != nil && (r.pending() || mode == Enforce && r.decision.Outcome == Deny) {
				c.open = append(c.open, open{len(c.found) - 1, pod, container, mode, r})
				continue
			}
			c.settle(pod, container, mode, &r.decision)
		}
	}
}

// wait sees the open ones through, as long as the request may last. Those that
// cannot lead to a refusal get a short time only.
func (c *check) wait(ctx context.Context) {
	start := time.Now()
	defer func() { c.gate.metrics.waits.Observe(time.Since(start).Seconds()) }()
	long, short := c.gate.patience(ctx), c.gate.cfg.AuditWait
	for _, o := range c.open {
		limit := long
		if o.mode != Enforce || o.ruling.decision.Outcome != Deny {
			limit = min(long, short)
		}
		r := o.ruling
		for r.flight != nil && wait(ctx, r.flight, limit-time.Since(start)) {
			r = c.gate.rule(ctx, c.view, c.gate.cfg.Now(), o.pod, o.c)
		}
		c.found[o.at] = r.evidence(o.c)
		c.settle(o.pod, o.c, o.mode, &r.decision)
	}
}

// patience is how long a request may wait, so that there is time left to answer.
func (g *Gate) patience(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(g.cfg.Wait, time.Until(deadline)-margin)
	}
	return g.cfg.Wait
}

// wait reports whether the flight landed in time.
func wait(ctx context.Context, fl *flight, limit time.Duration) bool {
	select {
	case <-fl.done:
		return true
	default:
	}
	if limit <= 0 {
		return false
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-fl.done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// settle turns a decision against an image into the refusal of the pod, where
// the gate enforces. A verdict goes before a fault: it will not pass.
func (c *check) settle(pod *attest.Pod, container *attest.Container, mode Mode, d *Decision) {
	if mode != Enforce || d.Outcome != Deny {
		return
	}
	if c.refusal != nil && (c.refusal.Reason.Kind() == attest.KindForbidden || d.Reason.Kind() != attest.KindForbidden) {
		return
	}
	object := fmt.Sprintf("pod %s container %s %s", pod.Ref, attest.Escape(container.Name), d.Object)
	if container.Kind == attest.ContainerEphemeral {
		// It cannot be taken out of the pod again.
		object += " (ephemeral: "
		if c.gate.cfg.CountEphemeral {
			object += "only a new pod mends it)"
		} else {
			object += "a new pod mends it, or its end)"
		}
	}
	c.refusal = &attest.DenyError{Reason: d.Reason, Object: object, Detail: d.Detail}
}

// count counts the verdicts: of a refused pod the refusal alone, for the others
// were not used.
func (c *check) count() {
	if c.refusal != nil {
		c.gate.metrics.count(verdictDeny, c.refusal.Reason)
		return
	}
	for i := range c.found {
		c.gate.metrics.count(int(c.found[i].Verdict), c.found[i].Reason)
	}
}

// mode returns what is done with a pod. Nothing that a tenant can write decides
// it but the names of its namespace and account.
func (g *Gate) mode(pod *attest.Pod) Mode {
	if _, ok := g.accounts[account{pod.Ref.Namespace, pod.ServiceAccount}]; ok {
		return g.cfg.Infrastructure
	}
	if m, ok := g.cfg.Namespaces[pod.Ref.Namespace]; ok {
		return m
	}
	return g.cfg.Mode
}

// unchecked is the entry where the gate is disabled.
func unchecked(c *attest.Container) attest.ImageEvidence {
	e := attest.ImageEvidence{Container: c.Name, Kind: c.Kind, Image: c.Image, Verdict: attest.VerdictUnchecked}
	if e.Digest = ParseImageID(c.ImageID).Digest; e.Digest == "" {
		if image, err := policy.ParseImage(c.Image); err == nil {
			e.Digest = image.Digest()
		}
	}
	return e
}
