package ledger

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	wait, sync, batch     prometheus.Histogram
	bytes, unwritable     prometheus.Gauge
	usage                 prometheus.Gauge
	lost, dropped, failed prometheus.Counter
}

func (m *metrics) register(r prometheus.Registerer) error {
	fast := prometheus.ExponentialBuckets(50e-6, 2, 16) // 50 µs to 1.6 s
	m.wait = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "hallmark_ledger_append_seconds", Help: "How long an intent waited until it was durable.", Buckets: fast})
	m.sync = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "hallmark_ledger_sync_seconds", Help: "How long one write and sync took.", Buckets: fast})
	m.batch = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "hallmark_ledger_batch_records", Help: "Records made durable by one sync.", Buckets: prometheus.ExponentialBuckets(1, 2, 12)})
	m.bytes = prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_ledger_bytes", Help: "Size of all segments."})
	m.usage = prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_ledger_usage_ratio", Help: "Size of all segments over ledger.maxBytes; alert at 0.8."})
	m.unwritable = prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_ledger_unwritable", Help: "1 while nothing can be recorded, and so nothing issued."})
	m.lost = prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_ledger_outcomes_lost_total", Help: "Outcomes that could not be recorded: their intents read as maybe issued."})
	m.dropped = prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_ledger_refusals_dropped_total", Help: "Refusals that were counted but not recorded, for lack of room."})
	m.failed = prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_ledger_write_failures_total", Help: "Writes or syncs that failed; each ends a segment."})
	for _, c := range []prometheus.Collector{m.wait, m.sync, m.batch, m.bytes, m.usage, m.unwritable, m.lost, m.dropped, m.failed} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
