package kube

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a publisher.
type metrics struct {
	writes    *prometheus.CounterVec
	takenBack *prometheus.CounterVec
}

func newMetrics(p *Publisher) (*metrics, error) {
	m := &metrics{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hallmark_bundle_object_writes_total", Help: "Writes of objects that hold the bundle, by resource and result: ok, conflict, terminating, refused, away.",
		}, []string{"resource", "result"}),
		takenBack: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hallmark_bundle_objects_taken_back_total", Help: "Objects that were changed by another hand and written anew, by resource.",
		}, []string{"resource"}),
	}
	collectors := []prometheus.Collector{m.writes, m.takenBack, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hallmark_bundle_objects_writer", Help: "1 on the replica that writes the objects that hold the bundle, else 0.",
	}, func() float64 {
		if p.lease.held.Load() {
			return 1
		}
		return 0
	})}
	for name, behind := range map[string]bool{"current": false, "behind": true} {
		collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hallmark_bundle_objects", Help: "Objects that are to hold the bundle, by state: current, behind.",
			ConstLabels: prometheus.Labels{"state": name},
		}, func() float64 {
			n := 0
			for _, r := range p.view.report() {
				if (r.Problem != "") == behind {
					n++
				}
			}
			return float64(n)
		}))
	}
	for _, c := range collectors {
		if err := p.cfg.Registerer.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	for k := range p.targets {
		m.takenBack.WithLabelValues(k.String())
	}
	return m, nil
}

func (m *metrics) written(k kind, result string) {
	m.writes.WithLabelValues(k.String(), result).Inc()
}
