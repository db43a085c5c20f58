package keys

import "github.com/prometheus/client_golang/prometheus"

// metrics may be nil.
type metrics struct {
	calls    *prometheus.CounterVec
	reopened prometheus.Counter
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	if registerer == nil {
		return nil, nil
	}
	m := &metrics{
		calls:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hallmark_key_device_calls_total", Help: "Calls to devices that hold keys (PKCS #11 tokens), by outcome: done, failed, abandoned."}, []string{"outcome"}),
		reopened: prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_key_device_reopened_total", Help: "How often a key device was opened anew because a session had failed."}),
	}
	for _, outcome := range []string{"done", "failed", "abandoned"} {
		m.calls.WithLabelValues(outcome)
	}
	for _, c := range []prometheus.Collector{m.calls, m.reopened} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) count(outcome string) {
	if m != nil {
		m.calls.WithLabelValues(outcome).Inc()
	}
}

func (m *metrics) reopen() {
	if m != nil {
		m.reopened.Inc()
	}
}
