package kube

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/hallmark-ca/hallmark/attest"
)

// metrics of one cluster; each bears its id as a label.
type metrics struct {
	reviews    *prometheus.CounterVec
	latency    prometheus.Histogram
	unreviewed prometheus.Counter
	lookups    *prometheus.CounterVec
}

func newMetrics(c *Cluster) (*metrics, error) {
	m := &metrics{
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hallmark_token_reviews_total", Help: "Token reviews that were asked for, by result: ok, away, error, or the reason of the refusal.",
		}, []string{"result"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hallmark_token_review_seconds", Help: "How long a token review took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		unreviewed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hallmark_tokens_unreviewed_total", Help: "Tokens that only the stored keys vouched for, since the API server was away.",
		}),
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hallmark_lookups_total", Help: "Pods, nodes and accounts that were asked for one by one, by result: found, missing, away, error.",
		}, []string{"result"}),
	}
	collectors := []prometheus.Collector{m.reviews, m.latency, m.unreviewed, m.lookups}
	for source, count := range map[string]func() uint64{
		"kept":    func() uint64 { return c.reviews.Stats().Hits },
		"refused": func() uint64 { return c.reviews.Stats().NegativeHits },
		"joined":  func() uint64 { return c.reviews.Stats().Joined },
	} {
		collectors = append(collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "hallmark_token_review_cache_hits_total", Help: "Tokens that were not reviewed again, by where the answer came from: a review that is kept, a refusal that is kept, a review under way.",
			ConstLabels: prometheus.Labels{"source": source},
		}, func() float64 { return float64(count()) }))
	}
	collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hallmark_token_reviews_in_flight", Help: "Token reviews under way.",
	}, func() float64 { return float64(c.reviews.Stats().Runs) }))
	for k := range kinds {
		collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hallmark_view_age_seconds", Help: "Age of what is known of the cluster, by resource; -1 before the first list.",
			ConstLabels: prometheus.Labels{"resource": k.String()},
		}, func() float64 { return age(c.now(), c.view.times()[k]) }))
	}
	collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hallmark_cluster_keys_age_seconds", Help: "Age of the stored keys of the cluster; -1 while there are none.",
	}, func() float64 {
		fetched, _ := c.keys.state()
		return age(c.now(), fetched)
	}))
	registerer := prometheus.WrapRegistererWith(prometheus.Labels{"cluster": c.cfg.ID}, c.cfg.Registerer)
	for _, collector := range collectors {
		if err := registerer.Register(collector); err != nil {
			return nil, fmt.Errorf("registering metrics of cluster %q: %w", c.cfg.ID, err)
		}
	}
	return m, nil
}

func age(now, then time.Time) float64 {
	if then.IsZero() {
		return -1
	}
	return now.Sub(then).Seconds()
}

func (m *metrics) reviewed(err error, took time.Duration) {
	m.latency.Observe(took.Seconds())
	result := "error"
	var denial *attest.DenyError
	switch {
	case err == nil:
		result = "ok"
	case errors.As(err, &denial):
		result = denial.Reason.String()
	case away(err):
		result = "away"
	}
	m.reviews.WithLabelValues(result).Inc()
}

func (m *metrics) lookedUp(err error) {
	result := "error"
	switch {
	case err == nil:
		result = "found"
	case apierrors.IsNotFound(err):
		result = "missing"
	case away(err):
		result = "away"
	}
	m.lookups.WithLabelValues(result).Inc()
}
