package istioca

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
)

// metrics go under Istio's names, so that dashboards made for istiod go on
// working. Our own are counted in sds/ra.
type metrics struct {
	requests, issued, unauthenticated prometheus.Counter
	refused                           *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "citadel_server_csr_count", Help: "Calls of CreateCertificate.",
		}),
		issued: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "citadel_server_success_cert_issuance_count", Help: "Certificates given by CreateCertificate.",
		}),
		unauthenticated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "citadel_server_authentication_failure_count", Help: "Calls of CreateCertificate that were not authenticated.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "citadel_server_csr_sign_err_count", Help: "Calls of CreateCertificate that were authenticated and got no certificate, by deny reason.",
		}, []string{"error"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.issued, m.unauthenticated, m.refused} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// failed counts a refusal. A caller that has gone was not refused.
func (m *metrics) failed(err error) {
	var deny *attest.DenyError
	switch {
	case !errors.As(err, &deny):
	case deny.Reason.Kind() == attest.KindUnauthenticated:
		m.unauthenticated.Inc()
	default:
		m.refused.WithLabelValues(deny.Reason.String()).Inc()
	}
}
