package registry

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	requests    *prometheus.CounterVec
	collections *prometheus.HistogramVec
}

func (m *metrics) register(r prometheus.Registerer) error {
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hallmark_registry_requests_total", Help: "Requests to registries and their token services, by answer; refused ones were never sent."}, []string{"answer"})
	m.collections = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "hallmark_registry_collect_seconds", Help: "How long it took to collect an image's evidence.",
		Buckets: prometheus.ExponentialBuckets(0.005, 2, 13), // 5 ms to 20 s
	}, []string{"outcome"})
	for _, a := range []string{"2xx", "3xx", "4xx", "5xx", "failed", "refused"} {
		m.requests.WithLabelValues(a)
	}
	for _, o := range []string{"complete", "incomplete", "refused"} {
		m.collections.WithLabelValues(o)
	}
	for _, c := range []prometheus.Collector{m.requests, m.collections} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
