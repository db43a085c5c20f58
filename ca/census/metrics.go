package census

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	consumers  prometheus.GaugeFunc
	turnedAway prometheus.Counter
	incomplete prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, consumers func() float64) (*metrics, error) {
	m := &metrics{
		consumers:  prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "hallmark_census_consumers", Help: "Consumers that are kept: proxy instances by door and identity."}, consumers),
		turnedAway: prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_census_turned_away_total", Help: "Leaves and streams of consumers for whom there was no room. Gates are shut until these have ended."}),
		incomplete: prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_census_incomplete", Help: "1 while not every consumer can be known, so that no gate opens."}),
	}
	for _, c := range []prometheus.Collector{m.consumers, m.turnedAway, m.incomplete} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	m.incomplete.Set(1) // until the ledger is read
	return m, nil
}
