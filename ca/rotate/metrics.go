package rotate

import (
	"crypto/x509"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca/journal"
)

// The phases of a rotation as a whole. Where a new root is on its way while an old one
// still drains, the new one's counts.
const (
	Idle      = "idle"
	Prepared  = "prepared"
	Published = "published"
	Draining  = "draining"
)

func phaseOf(s *journal.State) string {
	switch {
	case len(s.In(journal.Prepared)) > 0:
		return Prepared
	case len(s.In(journal.Published)) > 0:
		return Published
	case len(s.In(journal.Draining)) > 0:
		return Draining
	}
	return Idle
}

type metrics struct {
	phase                               *prometheus.GaugeVec
	consumers, confirmed, behind, aside *prometheus.GaugeVec
	steps                               *prometheus.CounterVec
	frozen, used, alert                 prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	gate := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "hallmark_rotation_gate_" + name, Help: help}, []string{"gate"})
	}
	m := &metrics{
		phase:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "hallmark_rotation_phase", Help: "1 for the phase that the rotation of the root is in, 0 for the others."}, []string{"phase"}),
		consumers: gate("consumers", "Consumers that a gate counts."),
		confirmed: gate("confirmed", "Consumers that are through a gate."),
		behind:    gate("behind", "Consumers that hold up a gate."),
		aside:     gate("aside", "Consumers that were set aside and no longer hold up a gate."),
		steps:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hallmark_rotation_steps_total", Help: "Steps of rotations, by what became of them (done, failed)."}, []string{"step", "outcome"}),
		frozen:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_rotation_frozen", Help: "1 while the outcome of a journal write is not known and nothing moves."}),
		used:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_rotation_root_life_used_ratio", Help: "Part of the active root's life that is over, 0 to 1."}),
		alert:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_rotation_root_life_alert_percent", Help: "Highest threshold that the active root's age has passed: 0, 50, 75, 90 or 97 percent."}),
	}
	for _, c := range []prometheus.Collector{m.phase, m.consumers, m.confirmed, m.behind, m.aside, m.steps, m.frozen, m.used, m.alert} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// show sets the gauges to what v sees.
func (m *metrics) show(v view) {
	now := phaseOf(v.state)
	for _, p := range []string{Idle, Prepared, Published, Draining} {
		value := 0.0
		if p == now {
			value = 1
		}
		m.phase.WithLabelValues(p).Set(value)
	}
	gates := map[string]Gate{"A": {}, "B": {}}
	for _, g := range v.gates() {
		gates[g.Name] = g
	}
	for name, g := range gates {
		m.consumers.WithLabelValues(name).Set(float64(g.Consumers))
		m.confirmed.WithLabelValues(name).Set(float64(g.Confirmed))
		m.behind.WithLabelValues(name).Set(float64(g.BehindCount))
		m.aside.WithLabelValues(name).Set(float64(g.AsideCount))
	}
	active, ok := v.state.ActiveRoot()
	if !ok {
		return
	}
	if cert, err := x509.ParseCertificate(active.Certificate); err == nil {
		used := lifeUsed(cert, v.now)
		m.used.Set(used)
		m.alert.Set(float64(alertFor(used)))
	}
}

// gates returns the gates that something waits at: A of the published root, B
// of the oldest that drains.
func (v view) gates() []Gate {
	var out []Gate
	if published := v.state.In(journal.Published); len(published) > 0 {
		out = append(out, gateA(published[0], v))
	}
	active, ok := v.state.ActiveRoot()
	if old := v.state.In(journal.Draining); ok && len(old) > 0 {
		out = append(out, gateB(old[0], active, v))
	}
	return out
}
