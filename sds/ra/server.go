package ra

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

// Defaults of [ServerConfig], and limits that nothing has asked to be settings.
const (
	defaultConnections      = 20_000
	defaultStreams          = 1000
	defaultHandshakeTimeout = 5 * time.Second
	defaultMessageTime      = 10 * time.Second
	defaultGrace            = 10 * time.Second

	// maxMessage is where gRPC itself cuts. Front ends refuse above their own
	// limits, below it, in their own words: the Node of a plain Envoy has 61 KiB.
	maxMessage = 260 << 10
	// maxHeaders leaves room beside the largest token that is looked at, 16 KiB.
	maxHeaders = 32 << 10
	// window of a stream and of a connection: the smallest, so that nobody can
	// leave much here unread.
	window     = 64 << 10
	readBuffer = 8 << 10
	// streamWorkers keep their stacks from call to call. Long streams hold
	// theirs; when all are held, each call gets a goroutine as it would without.
	streamWorkers = 64

	// Envoy pings every few seconds where it is told to.
	pingsNoFasterThan = time.Second
	pingEvery         = time.Minute
	pingTimeout       = 20 * time.Second
	// maxIdle closes a connection without any stream: it has nothing to lose,
	// and neither do clients that come back in hours.
	maxIdle = 10 * time.Minute
)

// DoorMesh is the door of what is refused before any front end has it:
// connections, handshakes, and calls that failed here by a fault of ours.
const DoorMesh = "mesh"

// ServerConfig is what [NewServer] needs. Limits that are zero take their
// defaults.
type ServerConfig struct {
	RA *RA
	// Certificate is our own, asked for at every handshake.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Connections bounds the open connections, 20,000, and PeerConnections those
	// from one address, a quarter of it.
	Connections     int
	PeerConnections int
	// Strangers bounds the connections on which nobody has proved anything, an
	// eighth of Connections, and at least 64: beyond it the oldest goes.
	Strangers int
	// Handshakes bounds the handshakes whose keys are being computed at once,
	// twice the processors; a client that stalls holds none.
	Handshakes int
	// HandshakeTimeout is within what TLS and HTTP/2 must be agreed, 5 s.
	HandshakeTimeout time.Duration
	// Streams bounds the calls at once on one connection, 1000.
	Streams int
	// MessageTime is within what a message that has begun on a stream must end,
	// 10 s. A stream may be silent for hours, so nothing else would ever end half
	// of one.
	MessageTime time.Duration
	// Grace is how long calls may take to end once the server stops, 10 s.
	Grace      time.Duration
	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
}

// Server is the mesh port.
type Server struct {
	cfg    ServerConfig
	grpc   *grpc.Server
	guard  *guard
	health health
	drain  chan struct{}   // closed when the server stops
	single map[string]bool // methods with one answer, by full name; complete before Run
}

// NewServer checks cfg and returns a server without services. Services are
// registered before Run.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.RA == nil || cfg.Certificate == nil || cfg.Registerer == nil || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("making mesh server: registration authority, certificate, registerer, log and clock are all required")
	}
	if cfg.Connections < 0 || cfg.PeerConnections < 0 || cfg.Strangers < 0 || cfg.Handshakes < 0 || cfg.HandshakeTimeout < 0 || cfg.Streams < 0 || cfg.MessageTime < 0 || cfg.Grace < 0 {
		return nil, errors.New("making mesh server: a limit is negative")
	}
	cfg.Connections = orDefault(cfg.Connections, defaultConnections)
	cfg.PeerConnections = orDefault(cfg.PeerConnections, max(1, cfg.Connections/4))
	cfg.Strangers = orDefault(cfg.Strangers, max(64, cfg.Connections/8))
	cfg.Handshakes = orDefault(cfg.Handshakes, 2*runtime.GOMAXPROCS(0))
	cfg.HandshakeTimeout = orDefault(cfg.HandshakeTimeout, defaultHandshakeTimeout)
	cfg.Streams = orDefault(cfg.Streams, defaultStreams)
	cfg.MessageTime = orDefault(cfg.MessageTime, defaultMessageTime)
	cfg.Grace = orDefault(cfg.Grace, defaultGrace)
	s := &Server{cfg: cfg, drain: make(chan struct{}), single: map[string]bool{}}
	var err error
	if s.guard, err = newGuard(cfg); err != nil {
		return nil, fmt.Errorf("making mesh server: %w", err)
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(s.guard),
		grpc.ForceServerCodecV2(codec{}),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(uint32(min(cfg.Streams, 1<<20))),
		grpc.ConnectionTimeout(cfg.HandshakeTimeout),
		grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(window),
		grpc.ReadBufferSize(readBuffer),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingsNoFasterThan, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: pingTimeout, MaxConnectionIdle: maxIdle}),
		grpc.InTapHandle(s.tap), grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
		grpc.WaitForHandlers(true),
	)
	s.health.registered = s.grpc.GetServiceInfo
	grpc_health_v1.RegisterHealthServer(s.Registrar(), &s.health)
	return s, nil
}

// Registrar takes services. It is used before Run. Calls that have one answer
// are bounded by the registration authority's Timeout, reading of the request
// and sending of the answer included.
func (s *Server) Registrar() grpc.ServiceRegistrar { return registrar{s} }

// SetReady says what the health service answers. A server that was not told is
// not ready, and one that stops is not ready any more.
func (s *Server) SetReady(ready bool) { s.health.ready.Store(ready) }

// Draining is closed when the server begins to stop. Long streams then end of
// themselves with ShuttingDown, within Grace, not all in one moment.
func (s *Server) Draining() <-chan struct{} { return s.drain }

// EndConnections closes the connections that were accepted before at, spread over
// a time, and returns how many: their clients come back and meet our own
// certificate of now. Calls under way on them end as on a lost connection.
func (s *Server) EndConnections(at time.Time, over time.Duration) int {
	return s.guard.endBefore(at, over)
}

// Run serves l until ctx ends, then stops: no new connections, calls under way
// end or are ended when Grace is over. It closes l, and can be called once.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.guard.listen(l)) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving mesh port: %w", err)
	case <-ctx.Done():
	}
	s.health.stopping.Store(true)
	close(s.drain)
	stopped := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(stopped)
	}()
	if within(stopped, s.cfg.Grace) {
		return <-served
	}
	s.cfg.Log.Warn("calls were cut off: they had not ended in time", "grace", s.cfg.Grace.String())
	go s.grpc.Stop()
	// Handlers whose context has ended answer at once; one that does not is a
	// fault, and must not keep the process.
	if !within(stopped, s.cfg.Grace) {
		return errors.New("stopping mesh port: handlers did not end")
	}
	return <-served
}

func within(done <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
