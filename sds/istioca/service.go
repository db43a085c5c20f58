package istioca

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

// Door is this front end's name in ledger, log and metrics.
const Door = "istio-ca"

// floor is the shortest lifetime given here: half of a shorter one drowns in the
// back-date, and ztunnel then asks in a loop.
const floor = 10 * time.Minute

// Config is what [New] needs.
type Config struct {
	RA         *ra.RA
	Registerer prometheus.Registerer
}

// Service answers CreateCertificate.
type Service struct {
	ra      *ra.RA
	metrics *metrics
	tail    atomic.Pointer[tail]
}

// New checks cfg and returns the service.
func New(cfg Config) (*Service, error) {
	if cfg.RA == nil || cfg.Registerer == nil {
		return nil, errors.New("making Istio's door: registration authority and registerer are required")
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("making Istio's door: %w", err)
	}
	return &Service{ra: cfg.RA, metrics: m}, nil
}

// Register puts the service on a server whose codec takes the messages of
// sds/ra.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "istio.v1.auth.IstioCertificateService",
		HandlerType: (*any)(nil),
		// On the wire a unary call is a stream of one message each way. Declared
		// so, the handler runs before the request is read.
		Streams: []grpc.StreamDesc{{
			StreamName: "CreateCertificate", ClientStreams: true,
			Handler: func(_ any, stream grpc.ServerStream) error { return s.createCertificate(stream) },
		}},
		Metadata: "security/v1alpha1/ca.proto",
	}, s)
}

func (s *Service) createCertificate(stream grpc.ServerStream) error {
	s.metrics.requests.Inc()
	ctx, cancel := s.ra.Bound(stream.Context())
	defer cancel()
	caller, err := s.ra.Attest(ctx, Door, ra.CredentialFrom(ctx))
	if err != nil {
		s.metrics.failed(err)
		return err
	}
	var req request
	if err := stream.RecvMsg(&req); err != nil {
		return s.notReceived(stream, caller, err)
	}
	identity, deny := req.identity(caller)
	if deny != nil {
		err := s.ra.Refuse(ctx, Door, caller, deny)
		s.metrics.failed(err)
		return err
	}
	issued, err := s.ra.Issue(ctx, Door, caller, identity, ca.Request{CSR: req.csr, Floor: floor, Lifetime: req.lifetime})
	if err != nil {
		s.metrics.failed(err)
		return err
	}
	if err := stream.SendMsg(s.reply(issued)); err != nil {
		return err
	}
	s.metrics.issued.Inc()
	return nil
}

// notReceived is the answer where no whole request came.
func (s *Service) notReceived(stream grpc.ServerStream, caller attest.Caller, err error) error {
	deny := ra.Received(err)
	if errors.Is(err, io.EOF) {
		deny = attest.Deny(attest.RequestMalformed, "request", "the call ended without one")
	}
	if deny == nil {
		return err
	}
	err = s.ra.Refuse(stream.Context(), Door, caller, deny)
	s.metrics.failed(err)
	return err
}
