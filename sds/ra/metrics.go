package ra

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
)

// latencies are the buckets of both histograms, in seconds: from a warm cache to
// the bound on every answer.
var latencies = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}

type metrics struct {
	refusals *prometheus.CounterVec
	issued   *prometheus.CounterVec
	issuance *prometheus.HistogramVec
	attest   prometheus.Histogram
	doors    sync.Map // name → *doorMetrics
}

// doorMetrics are one door's children, looked up once.
type doorMetrics struct {
	issued   prometheus.Counter
	seconds  prometheus.Observer
	refusals [256]atomic.Pointer[prometheus.Counter] // by reason, made when first needed
}

func newMetrics(registerer prometheus.Registerer, q *queue) (*metrics, error) {
	m := &metrics{
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hallmark_refusals_total", Help: "Refusals, by reason (hallmark reasons explains each) and door.",
		}, []string{"reason", "door"}),
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hallmark_issued_total", Help: "Certificates given to callers, by door.",
		}, []string{"door"}),
		issuance: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hallmark_issuance_seconds", Help: "Time from a request to its certificate, waiting included, by door.", Buckets: latencies,
		}, []string{"door"}),
		attest: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hallmark_attest_seconds", Help: "Time to find out who is calling.", Buckets: latencies,
		}),
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hallmark_issuances_waiting", Help: "Requests that wait for a slot to be made a certificate.",
	}, func() float64 { return float64(q.waiting.Load()) })
	running := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hallmark_issuances_in_flight", Help: "Certificates that are being made.",
	}, func() float64 { return float64(len(q.slots)) })
	for _, c := range []prometheus.Collector{m.refusals, m.issued, m.issuance, m.attest, waiting, running} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// door returns the children of one door. Doors are names in our own code, so
// that there are few.
func (m *metrics) door(name string) *doorMetrics {
	if d, ok := m.doors.Load(name); ok {
		return d.(*doorMetrics)
	}
	d, _ := m.doors.LoadOrStore(name, &doorMetrics{
		issued: m.issued.WithLabelValues(name), seconds: m.issuance.WithLabelValues(name),
	})
	return d.(*doorMetrics)
}

// refused counts one refusal.
func (m *metrics) refused(door string, reason attest.Reason) {
	child := &m.door(door).refusals[reason]
	if counter := child.Load(); counter != nil {
		(*counter).Inc()
		return
	}
	counter := m.refusals.WithLabelValues(reason.String(), door)
	child.Store(&counter)
	counter.Inc()
}
