package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/memo"
)

// Config is what [New] needs. All fields are required but ServerAudience
// and Limits.
type Config struct {
	ID          string
	TrustDomain attest.TrustDomain
	REST        *rest.Config
	Audiences   []string // of which a token must carry one
	// ServerAudience permits that one of Audiences is the API server's own.
	ServerAudience bool
	ReviewCache    time.Duration // how long a review is believed at most
	Feed           *attest.Feed  // told of pods that changed or went
	Limits         Limits
	Registerer     prometheus.Registerer
	Log            *slog.Logger
	Now            func() time.Time
}

// Limits are the bounds of one cluster. A field that is zero has its default.
type Limits struct {
	Reviews     int           // token reviews in flight: 256
	PodReviews  int           // token reviews of one pod at once: 16; more come back at the rate of podReviewEvery
	Lookups     int           // GETs in flight: 100
	CallTime    time.Duration // one review, GET or fetch of keys: 3 s, so that there is time left to serve from the last view
	FreshWait   time.Duration // for a pod that is ahead of the watch: 2 s
	Stale       time.Duration // a view that is older is replaced by look-ups: 90 s
	Silence     time.Duration // of a watch, before it is begun anew: 75 s
	KeysRefresh time.Duration // between fetches of the keys: 5 min
	KeysRetry   time.Duration // between fetches that an unknown key causes: 10 s
}

func (l Limits) withDefaults() Limits {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	if l.Reviews == 0 {
		l.Reviews = 256
	}
	if l.PodReviews == 0 {
		l.PodReviews = 16
	}
	if l.Lookups == 0 {
		l.Lookups = 100
	}
	set(&l.CallTime, 3*time.Second)
	set(&l.FreshWait, 2*time.Second)
	set(&l.Stale, 90*time.Second)
	set(&l.Silence, 75*time.Second)
	set(&l.KeysRefresh, 5*time.Minute)
	set(&l.KeysRetry, 10*time.Second)
	return l
}

// Sizes of the caches. A review takes about 700 bytes: a mesh of 100,000 proxies
// that all connect within ReviewCache fits.
const (
	reviewsKept  = 1 << 17
	refusalsKept = 1 << 12
	lookupsKept  = 1 << 12
	refusalFor   = 10 * time.Second

	watchRetryFirst = 500 * time.Millisecond
	watchRetryLast  = 10 * time.Second
)

// Cluster is one Kubernetes cluster. It implements [attest.Cluster].
type Cluster struct {
	cfg       Config
	limits    Limits
	now       func() time.Time
	api       *api
	keys      *keys
	view      *view
	pool      *pool
	health    health
	buckets   *buckets
	audiences *memo.Cache[struct{}, []string] // the API server's own
	reviews   *memo.Cache[reviewKey, attest.Bound]
	lookups   *memo.Cache[lookupKey, found]
	metrics   *metrics
	watches   [kinds]atomic.Pointer[string] // what is wrong with each; nil: nothing
}

var _ attest.Cluster = (*Cluster)(nil)

// New checks cfg and returns a cluster whose view is empty until
// [Cluster.Run] has filled it.
func New(cfg Config) (*Cluster, error) {
	switch {
	case cfg.ID == "" || cfg.TrustDomain.IsZero() || cfg.REST == nil:
		return nil, errors.New("making cluster: id, trust domain and the way to the API server are required")
	case len(cfg.Audiences) == 0 || slices.Contains(cfg.Audiences, ""):
		// A review without audiences is one for the API server's own.
		return nil, errors.New("making cluster: audiences are required, and none may be empty")
	case cfg.ReviewCache <= 0:
		return nil, errors.New("making cluster: the time that a review is believed is not positive")
	case cfg.Feed == nil || cfg.Registerer == nil || cfg.Log == nil || cfg.Now == nil:
		return nil, errors.New("making cluster: feed, metrics, log and clock are required")
	}
	c := &Cluster{cfg: cfg, limits: cfg.Limits.withDefaults(), now: cfg.Now}
	c.cfg.Audiences = slices.Clone(cfg.Audiences)
	return c, c.build()
}

func (c *Cluster) build() error {
	var err error
	if c.api, err = newAPI(c.cfg.REST); err != nil {
		return err
	}
	if c.keys, err = newKeys(c.api, c.limits, c.now); err != nil {
		return err
	}
	if c.pool, err = newPool(); err != nil {
		return err
	}
	if c.buckets, err = newBuckets(c.limits.PodReviews, min(podReviewEvery, c.cfg.ReviewCache/4)); err != nil {
		return err
	}
	c.audiences, err = memo.New[struct{}, []string](memo.Config{
		Size: 1, NegativeSize: 1, Negative: refusalFor, Running: 1, Timeout: c.limits.CallTime, Now: c.now,
	})
	if err != nil {
		return err
	}
	c.reviews, err = memo.New[reviewKey, attest.Bound](memo.Config{
		Size: reviewsKept, NegativeSize: refusalsKept, Negative: refusalFor,
		Running: c.limits.Reviews, Timeout: c.limits.CallTime, Now: c.now,
	})
	if err != nil {
		return err
	}
	c.lookups, err = memo.New[lookupKey, found](memo.Config{
		Size: lookupsKept, NegativeSize: lookupsKept, Negative: missingFor,
		Running: c.limits.Lookups, Timeout: c.limits.CallTime, Now: c.now,
	})
	if err != nil {
		return err
	}
	c.view, err = newView(c.now, c.reviews.ForgetTag, func(podUID string) {
		c.cfg.Feed.Announce(attest.Change{Instance: attest.Instance{Cluster: c.cfg.ID, PodUID: podUID}})
	})
	if err != nil {
		return err
	}
	c.metrics, err = newMetrics(c)
	return err
}

// TrustDomain implements [attest.Cluster].
func (c *Cluster) TrustDomain() attest.TrustDomain { return c.cfg.TrustDomain }

// Run keeps the view and the keys up to date until ctx ends. An API server that
// is away does not end it.
func (c *Cluster) Run(ctx context.Context) error {
	// client-go would write lines of its own to the standard error; what they say
	// is told by source.failed.
	ctx = klog.NewContext(ctx, klog.Logger{})
	group, ctx := errgroup.WithContext(ctx)
	for k := range kinds {
		reflector := c.reflector(k)
		group.Go(func() error {
			reflector.RunWithContext(ctx)
			return nil
		})
	}
	group.Go(func() error {
		c.refreshKeys(ctx)
		return nil
	})
	return group.Wait()
}

func (c *Cluster) reflector(k kind) *cache.Reflector {
	logger := klog.Logger{}
	r := cache.NewReflectorWithOptions(&source{
		api: c.api, cluster: c.cfg.ID, path: k.path(name{}), wire: c.wireOf(k), pool: c.pool, silence: c.limits.Silence,
		begun:  func(how opening) { c.view.begun(k, how, c.limits.Stale) },
		failed: func(err error) { c.watched(k, err) },
	}, &object{}, store{c.view, k}, cache.ReflectorOptions{
		Logger: &logger, Name: k.String(), TypeDescription: k.String(),
		Backoff: &wait.Backoff{Duration: watchRetryFirst, Cap: watchRetryLast, Factor: 2, Jitter: 1, Steps: 10},
	})
	r.WatchListPageSize = pageSize
	return r
}

// wireOf returns how objects of kind k are decoded.
func (c *Cluster) wireOf(k kind) func() wire {
	if k == pods {
		return func() wire { return &wirePod{} }
	}
	return func() wire { return &wireMeta{} }
}

// watched notes how the last request of a watch went, and logs when it begins or
// ends to fail.
func (c *Cluster) watched(k kind, err error) {
	log := c.cfg.Log.With("cluster", c.cfg.ID, "resource", k.String())
	if err == nil {
		if c.watches[k].Swap(nil) != nil {
			log.Info("the watch is back")
		}
		return
	}
	text := attest.Escape(err.Error())
	level := slog.LevelDebug
	if c.watches[k].Swap(&text) == nil {
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, "the watch failed and is begun anew", "error", text)
}

// refreshKeys fetches the keys now and then; until there are any, often.
func (c *Cluster) refreshKeys(ctx context.Context) {
	pause := watchRetryFirst
	for {
		err := c.keys.refresh(ctx)
		fetched, _ := c.keys.state()
		switch {
		case fetched.IsZero():
			pause = min(2*pause, c.limits.KeysRetry)
		default:
			pause = c.limits.KeysRefresh
		}
		if err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("the keys of the cluster cannot be fetched", "cluster", c.cfg.ID, "error", attest.Escape(err.Error()), "again", pause.String())
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// Age returns how old the view is, false before the first list is complete.
func (c *Cluster) Age() (time.Duration, bool) {
	times := c.view.times()
	asOf := slices.MinFunc(times[:], time.Time.Compare)
	if asOf.IsZero() {
		return 0, false
	}
	return c.now().Sub(asOf), true
}

// Ready says why the cluster cannot be answered for yet: the view was never
// complete, or no keys were ever fetched. An API server that is away later
// changes nothing: known callers renew.
func (c *Cluster) Ready() error {
	for k, fresh := range c.view.times() {
		if fresh.IsZero() {
			why := "the first list is not complete"
			if failed := c.watches[k].Load(); failed != nil {
				why = *failed
			}
			return fmt.Errorf("cluster %q: %s: %s", c.cfg.ID, kind(k), why)
		}
	}
	if fetched, err := c.keys.state(); fetched.IsZero() {
		if err == nil {
			err = errors.New("not fetched yet")
		}
		return fmt.Errorf("cluster %q: keys: %s", c.cfg.ID, attest.Escape(err.Error()))
	}
	return nil
}
