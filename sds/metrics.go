package sds

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
)

type metrics struct {
	streams prometheus.Gauge
	pushes  *prometheus.CounterVec
	answers *prometheus.CounterVec
	stale   prometheus.Counter
	unknown prometheus.Counter
	ended   *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_sds_streams", Help: "Streams of secrets that are open."}),
		pushes:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hallmark_sds_pushes_total", Help: "Secrets sent, by what they are."}, []string{"secret"}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hallmark_sds_answers_total", Help: "What clients said of the secrets sent to them: ack or nack."}, []string{"secret", "answer"}),
		stale:   prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_sds_stale_requests_total", Help: "Requests that named another response than the last, and were ignored."}),
		unknown: prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_sds_unknown_names_total", Help: "Names asked for that stand for nothing, each once for a stream."}),
		ended:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hallmark_sds_streams_ended_total", Help: "Streams ended, by the reason of the refusal; None where the client left."}, []string{"reason"}),
	}
	for _, c := range []prometheus.Collector{m.streams, m.pushes, m.answers, m.stale, m.unknown, m.ended} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	for _, t := range []topic{topicSVID, topicBundle} {
		m.pushes.WithLabelValues(t.String())
		m.answers.WithLabelValues(t.String(), "ack")
		m.answers.WithLabelValues(t.String(), "nack")
	}
	return m, nil
}

// end counts a stream's end. refused is false where the client left.
func (m *metrics) end(err error, refused bool) {
	reason := attest.Reason(0)
	if refused {
		reason = attest.DenialOf(err).Reason
	}
	m.ended.WithLabelValues(reason.String()).Inc()
}
