package kube

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/publish"
)

// DefaultKubeletDelay is how long a kubelet may take until a changed object is
// in the files of its pods.
const DefaultKubeletDelay = 2 * time.Minute

// Config is what [New] needs. All fields are required but one of ConfigMap and
// TrustBundle, TakeOver and Limits.
type Config struct {
	REST         *rest.Config
	Authority    *ca.Authority
	Namespace    string // ours, where the Lease lies
	ReplicaID    string
	ConfigMap    *ConfigMap
	TrustBundle  *TrustBundle
	KubeletDelay time.Duration
	TakeOver     []string // managers whose objects become ours, see the package comment
	Limits       Limits
	Registerer   prometheus.Registerer
	Log          *slog.Logger
	Now          func() time.Time
}

// Limits are the bounds of a publisher. A field that is zero has its default.
type Limits struct {
	Writes   float64       // a second: 100
	Parallel int           // writes at once: 8
	Lease    time.Duration // that is not renewed for so long is another's: 30 s, at least 5 s
}

func (l Limits) withDefaults() Limits {
	if l.Writes == 0 {
		l.Writes = 100
	}
	if l.Parallel == 0 {
		l.Parallel = 8
	}
	if l.Lease == 0 {
		l.Lease = 30 * time.Second
	}
	return l
}

// LeaseName is the Lease under which one replica writes.
const LeaseName = "hallmark-publish"

const (
	pageSize        = 500
	watchRetryFirst = 500 * time.Millisecond
	watchRetryLast  = 10 * time.Second
)

// Publisher keeps our bundle in the objects of one cluster.
type Publisher struct {
	cfg     Config
	api     *api
	targets map[kind]*target
	view    *view
	lease   *lease
	limiter *rate.Limiter
	pause   pause
	metrics *metrics

	mu   sync.Mutex // guards term
	term *term      // while we hold the Lease; else nil
}

// New checks cfg. Nothing is asked of the API server before [Publisher.Run].
func New(cfg Config) (*Publisher, error) {
	cfg.Limits = cfg.Limits.withDefaults()
	switch {
	case cfg.REST == nil || cfg.Authority == nil || cfg.Registerer == nil || cfg.Log == nil || cfg.Now == nil:
		return nil, errors.New("making publisher: the way to the API server, authority, metrics, log and clock are required")
	case cfg.Namespace == "" || cfg.ReplicaID == "" || cfg.KubeletDelay <= 0:
		return nil, errors.New("making publisher: our namespace, the replica's id and the delay of kubelets are required")
	case cfg.ConfigMap == nil && cfg.TrustBundle == nil:
		return nil, errors.New("making publisher: there is nothing to publish into")
	case cfg.Limits.Writes < 0 || cfg.Limits.Parallel < 0 || cfg.Limits.Lease < 5*time.Second:
		return nil, errors.New("making publisher: a limit is out of its range")
	}
	p := &Publisher{cfg: cfg, targets: map[kind]*target{}, limiter: rate.NewLimiter(rate.Limit(cfg.Limits.Writes), cfg.Limits.Parallel)}
	var err error
	if cfg.ConfigMap != nil {
		if _, err = labels.Parse(cfg.ConfigMap.Namespaces); err == nil {
			p.targets[configMaps], err = configMapTarget(cfg.ConfigMap)
		}
	}
	if err == nil && cfg.TrustBundle != nil {
		p.targets[trustBundles], err = trustBundleTarget(cfg.TrustBundle)
	}
	if err == nil {
		p.api, err = newAPI(cfg.REST)
	}
	if err != nil {
		return nil, fmt.Errorf("making publisher: %w", err)
	}
	p.view = newView(&p.cfg, p.targets, p.wake)
	p.lease = &lease{
		client: p.api.dynamic.Resource(leasesAt).Namespace(cfg.Namespace),
		name:   LeaseName, holder: cfg.ReplicaID + "_" + rand.Text()[:8], duration: cfg.Limits.Lease, now: cfg.Now, log: cfg.Log,
	}
	if p.metrics, err = newMetrics(p); err != nil {
		return nil, fmt.Errorf("making publisher: %w", err)
	}
	return p, nil
}

// Report tells what the readers of each object hold, by its name. Where the view
// is not whole, a reader that holds nothing says so.
func (p *Publisher) Report() []publish.Reader { return p.view.report() }

// Run watches, and writes while it holds the Lease, until ctx ends. An API server
// that is away does not end it.
func (p *Publisher) Run(ctx context.Context) error {
	// client-go would write lines of its own to the standard error; what they say
	// is told by source.told.
	ctx = klog.NewContext(ctx, klog.Logger{})
	changed := make(chan struct{}, 1)
	p.cfg.Authority.Subscribe(func(*ca.Snapshot) {
		select {
		case changed <- struct{}{}:
		default: // the newest is read anyway
		}
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		p.follow(ctx, changed)
		return nil
	})
	for k := range p.watched() {
		reflector := p.reflector(k)
		group.Go(func() error {
			reflector.RunWithContext(ctx)
			return nil
		})
	}
	group.Go(func() error {
		p.summarize(ctx)
		return nil
	})
	group.Go(func() error {
		p.lease.hold(ctx, p.write)
		return nil
	})
	return group.Wait()
}

// watched returns the kinds that are watched, and the target of each.
func (p *Publisher) watched() map[kind]*target {
	all := map[kind]*target{}
	for k, t := range p.targets {
		all[k] = t
	}
	if all[configMaps] != nil {
		all[namespaces] = nil // watched by their metadata
	}
	return all
}

// follow hands each new bundle to the view.
func (p *Publisher) follow(ctx context.Context, changed <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		snap := p.cfg.Authority.Current()
		content := snap.BundlePEM()
		p.view.want(&wanted{trustDomain: snap.TrustDomain().String(), sequence: snap.Sequence(), content: string(content), sum: sumOf(content)})
	}
}

func (p *Publisher) reflector(k kind) *cache.Reflector {
	s := &source{api: p.api, kind: k, told: func(err error) { p.told(k, err) }}
	if t := p.targets[k]; t != nil {
		s.path, s.name = t.path, t.name
	} else {
		s.selector = p.targets[configMaps].selector
	}
	logger := klog.Logger{}
	r := cache.NewReflectorWithOptions(s, &object{}, store{p.view, k}, cache.ReflectorOptions{
		Logger: &logger, Name: k.String(), TypeDescription: k.String(),
		Backoff: &wait.Backoff{Duration: watchRetryFirst, Cap: watchRetryLast, Factor: 2, Jitter: 1, Steps: 10},
	})
	r.WatchListPageSize = pageSize
	return r
}

// told notes how the last request of a watch went, and logs what is new.
func (p *Publisher) told(k kind, err error) {
	switch text, news := p.view.told(k, err); {
	case !news:
	case text == "":
		p.cfg.Log.Info("a watch of the bundle's objects runs again", "resource", k.String())
	default:
		p.cfg.Log.Warn("a watch of the bundle's objects failed and is begun anew", "resource", k.String(), "error", text)
	}
}

const (
	summaryEvery = 10 * time.Second
	summaryNames = 5
)

// summarize logs what is behind whenever that is something new, a few by name:
// there may be thousands, all for one cause.
func (p *Publisher) summarize(ctx context.Context) {
	tick := time.NewTicker(summaryEvery)
	defer tick.Stop()
	var last string
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		all := p.view.report()
		var named []string
		behind := 0
		for _, r := range all {
			if r.Problem == "" {
				continue
			}
			if behind++; len(named) < summaryNames {
				named = append(named, r.Name+": "+r.Problem)
			}
		}
		text := fmt.Sprint(behind, named)
		switch {
		case text == last:
		case behind > 0:
			p.cfg.Log.Warn("objects do not hold the newest bundle", "objects", len(all), "behind", behind, "first", named)
		default:
			p.cfg.Log.Info("all objects hold the newest bundle", "objects", len(all))
		}
		last = text
	}
}

func escape(err error) string { return attest.Escape(err.Error()) }
