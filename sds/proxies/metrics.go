package proxies

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
)

type metrics struct {
	proxies  prometheus.Gauge
	refusing prometheus.Gauge
	unproven prometheus.Counter
	asks     *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		proxies:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_sds_proxies", Help: "Proxy instances whose key and SVID are kept here."}),
		refusing: prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_sds_proxies_refusing", Help: "Proxy instances that refused the newest secret sent to them under some name."}),
		unproven: prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_sds_unproven_acks_total", Help: "Secrets accepted that the same proxy had refused before, which proves nothing."}),
		asks:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hallmark_sds_asks_total", Help: "Questions to the registration authority: first, renewal or check, and how they ended."}, []string{"what", "result"}),
	}
	for _, c := range []prometheus.Collector{m.proxies, m.refusing, m.unproven, m.asks} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) asked(what string, err error) {
	result := "granted"
	switch {
	case err == nil:
	case attest.DenialOf(err).Reason.Kind() == attest.KindUnavailable:
		result = "unavailable"
	default:
		result = "refused"
	}
	m.asks.WithLabelValues(what, result).Inc()
}
