package signing

import (
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
)

// verdicts are the values of the label verdict.
var verdicts = [...]string{"unchecked", "pass", "would-deny", "deny"}

const verdictDeny = len(verdicts) - 1

type metrics struct {
	decisions *prometheus.CounterVec
	decided   prometheus.Histogram
	waits     prometheus.Histogram
	fetches   *prometheus.HistogramVec
	changes   prometheus.Counter

	// counters caches those of decisions by verdict and reason: looking one up
	// by its labels costs more than a decision that is at hand.
	counters [len(verdicts)][256]atomic.Pointer[prometheus.Counter]
}

func newMetrics(r prometheus.Registerer, g *Gate) (*metrics, error) {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hallmark_image_decisions_total", Help: "Images looked at for an issuance, by verdict and the reason against them."}, []string{"verdict", "reason"}),
		decided:   prometheus.NewHistogram(prometheus.HistogramOpts{Name: "hallmark_image_decision_seconds", Help: "Time to decide on an image that was not decided before, without waiting.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8)}),
		waits:     prometheus.NewHistogram(prometheus.HistogramOpts{Name: "hallmark_image_wait_seconds", Help: "Time that requests waited for a registry.", Buckets: []float64{0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 4, 5}}),
		fetches:   prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "hallmark_image_fetch_seconds", Help: "Questions to registries (collect: manifests and signatures; resolve: a tag), by result.", Buckets: []float64{0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}}, []string{"question", "result"}),
		changes:   prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_image_decision_changes_total", Help: "Digests whose decision a change of the policies has turned."}),
	}
	cached := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "hallmark_image_decisions_cached", Help: "Decisions at hand."}, func() float64 { return float64(g.decisions.Len()) })
	queued := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "hallmark_image_fetches_under_way", Help: "Questions to registries that are not answered yet."}, func() float64 { return float64(g.fetcher.underWay()) })
	for _, c := range []prometheus.Collector{m.decisions, m.decided, m.waits, m.fetches, m.changes, cached, queued} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("making image gate: registering metrics: %w", err)
		}
	}
	return m, nil
}

// count counts one image's verdict.
func (m *metrics) count(verdict int, reason attest.Reason) {
	slot := &m.counters[verdict][reason]
	c := slot.Load()
	if c == nil {
		label := ""
		if reason != 0 {
			label = reason.String()
		}
		counter := m.decisions.WithLabelValues(verdicts[verdict], label)
		c = &counter
		slot.Store(c)
	}
	(*c).Inc()
}
