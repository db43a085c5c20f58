package sds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

// Config is what [New] needs. Limits that are zero take their defaults.
type Config struct {
	Source Source
	// MaxStreams bounds the streams in all, 20,000; one more is refused as
	// overload, and the client backs off.
	MaxStreams int
	// FirstRequest bounds how long a stream may stay without one, 5 s.
	FirstRequest time.Duration
	// Answer bounds how long a name waits for its first secret, 5 s: a listener
	// waits for it without end, so the stream must fail instead.
	Answer time.Duration
	// SlowReader bounds how long a response may stay unanswered while something
	// newer waits, 1 min.
	SlowReader time.Duration
	// Drain is over how long the streams of a stopping server end, 2 s, so that
	// they do not all arrive elsewhere at once.
	Drain      time.Duration
	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
}

// Server serves SDS streams, on a gRPC server with the codec of sds/ra: requests
// read themselves and responses are on the wire already. DeltaSecrets and
// FetchSecrets answer Unimplemented.
type Server struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer

	cfg     Config
	metrics *metrics
	drain   chan struct{} // closed when the server stops

	mu      sync.Mutex // guards stopped, open and the closing of empty
	stopped bool
	open    int
	empty   chan struct{} // closed when the server has stopped and no stream is open
}

// New checks cfg and returns a server.
func New(cfg Config) (*Server, error) {
	if cfg.Source == nil || cfg.Registerer == nil || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("making SDS server: source, registerer, log and clock are all required")
	}
	if cfg.MaxStreams < 0 || cfg.FirstRequest < 0 || cfg.Answer < 0 || cfg.SlowReader < 0 || cfg.Drain < 0 {
		return nil, errors.New("making SDS server: a limit is negative")
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 20_000
	}
	for limit, fallback := range map[*time.Duration]time.Duration{
		&cfg.FirstRequest: 5 * time.Second, &cfg.Answer: 5 * time.Second,
		&cfg.SlowReader: time.Minute, &cfg.Drain: 2 * time.Second,
	} {
		if *limit == 0 {
			*limit = fallback
		}
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("making SDS server: %w", err)
	}
	return &Server{cfg: cfg, metrics: m, drain: make(chan struct{}), empty: make(chan struct{})}, nil
}

// Register makes r serve s.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	secretv3.RegisterSecretDiscoveryServiceServer(r, s)
}

// drainGrace is how much longer than [Config.Drain] Run waits for streams that
// do not end: those whose client reads nothing end with their connection.
const drainGrace = 5 * time.Second

// Run serves until ctx ends, then ends every stream with ShuttingDown, spread
// over [Config.Drain], and refuses new ones.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return errors.New("running SDS server: it has run before")
	}
	s.stopped = true
	if s.open == 0 {
		close(s.empty)
	}
	s.mu.Unlock()
	close(s.drain)
	select {
	case <-s.empty:
	case <-time.After(s.cfg.Drain + drainGrace):
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cfg.Log.Warn("streams are left to end with their connections", "streams", s.open)
	}
	return nil
}

func (s *Server) enter() *attest.DenyError {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return attest.Deny(attest.ShuttingDown, "", "")
	case s.open >= s.cfg.MaxStreams:
		return attest.Deny(attest.Overloaded, "", "%d streams are open", s.open)
	}
	s.open++
	s.metrics.streams.Inc()
	return nil
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	s.metrics.streams.Dec()
	if s.stopped && s.open == 0 {
		close(s.empty)
	}
}

// StreamSecrets implements the service.
func (s *Server) StreamSecrets(rpc secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	ctx := rpc.Context()
	if deny := s.enter(); deny != nil {
		err := error(deny)
		if deny.Reason != attest.ShuttingDown { // which refuses nobody anything
			err = s.cfg.Source.Refuse(ctx, deny)
		}
		s.metrics.end(err, true)
		return ra.Status(err)
	}
	defer s.leave()
	err := s.serve(ctx, rpc)
	s.metrics.end(err, err != nil && ctx.Err() == nil)
	return ra.Status(err)
}

// serve lets the source find out who is calling before anything of the stream is
// read: who cannot prove anything costs no decoding.
func (s *Server) serve(ctx context.Context, rpc secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	holder, err := s.cfg.Source.Open(ctx, ra.CredentialFrom(ctx))
	if err != nil {
		return err
	}
	defer holder.Close()
	requests, done := make(chan received), make(chan struct{})
	// Ends when the handler has returned, because RecvMsg does.
	go receive(rpc, requests, done)
	defer close(done)
	return newStream(s, holder, rpc.SendMsg).run(ctx, requests)
}

// received is what one RecvMsg returned.
type received struct {
	request *request
	err     error
}

// receive reads until the stream's end. What a request does to its reader ends its
// stream, not the process.
func receive(rpc secretv3.SecretDiscoveryService_StreamSecretsServer, requests chan<- received, done <-chan struct{}) {
	defer func() {
		if v := recover(); v != nil {
			select {
			case requests <- received{err: attest.Deny(attest.InternalError, "", "panic reading a request: %v", v)}:
			case <-done:
			}
		}
	}()
	for later := false; ; later = true {
		r := &request{later: later}
		err := rpc.RecvMsg(r)
		select {
		case requests <- received{r, err}:
		case <-done:
			return
		}
		if err != nil {
			return
		}
	}
}

// endOf turns an error of RecvMsg into the stream's end: nil where the client ended
// its side, a refusal where its message was at fault.
func (st *stream) endOf(ctx context.Context, err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	if deny := ra.Received(err); deny != nil && ctx.Err() == nil {
		return st.holder.Refuse(ctx, deny)
	}
	return err
}
