// Package ratest puts a whole registration authority together in memory, and
// where wanted the mesh port before it on a loopback address: pods whose tokens
// are made up, images that pass unless told otherwise, a real authority with a
// ledger that keeps what it is told. Front ends are tested over it with real TLS
// and real gRPC.
//
// It is linked into tests alone. Everything in it is safe for concurrent use.
package ratest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/pem"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

// ServerName is the name in the serving certificate.
const ServerName = "hallmark.test"

// World is a registration authority with everything that stands behind it.
type World struct {
	Domain    attest.TrustDomain
	Cluster   *attesttest.Cluster
	Gate      *attesttest.Gate
	Authority *catest.Authority
	Metrics   *prometheus.Registry
	Log       *Log
	RA        *ra.RA
}

// Config says what of a world is not as usual. The zero value is the usual one.
type Config struct {
	RA      func(*ra.Config)
	CA      func(*ca.Config)
	Cluster func(attest.Cluster) attest.Cluster // put before World.Cluster
}

// New makes a world.
func New(tb testing.TB, cfg Config) *World {
	tb.Helper()
	w := &World{
		Domain: attesttest.Domain(tb, "cluster.local"), Gate: &attesttest.Gate{},
		Metrics: prometheus.NewRegistry(), Log: &Log{},
	}
	w.Cluster = attesttest.NewCluster(w.Domain, time.Now)
	w.Authority = catest.New(tb, w.Domain, time.Now, cfg.CA)
	var cluster attest.Cluster = w.Cluster
	if cfg.Cluster != nil {
		cluster = cfg.Cluster(cluster)
	}
	rc := ra.Config{
		Registrar: attesttest.NewRegistrar(tb, cluster, w.Gate, time.Now),
		Authority: w.Authority.Authority, Refusals: w.Authority.Ledger,
		Registerer: w.Metrics, Log: w.Logger(), Now: time.Now,
	}
	if cfg.RA != nil {
		cfg.RA(&rc)
	}
	var err error
	if w.RA, err = ra.New(rc); err != nil {
		tb.Fatal(err)
	}
	return w
}

// Pod adds a running pod of the account, and returns it and its token.
func (w *World) Pod(namespace, name, account, image string) (*attest.Pod, string) {
	pod := attesttest.Pod(namespace, name, account, image)
	return pod, w.Cluster.Add(pod)
}

// Identity returns the identity of an account.
func (w *World) Identity(tb testing.TB, namespace, account string) attest.Identity {
	tb.Helper()
	id, err := attest.NewIdentity(w.Domain, namespace, account)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// Logger writes to w.Log, all levels.
func (w *World) Logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(w.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Certificate makes a serving certificate for [ServerName] and 127.0.0.1.
func (w *World) Certificate(tb testing.TB) *tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	issued, err := w.Authority.Mint(context.Background(), ca.Serving{ID: "serving", DNS: []string{ServerName}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}, key.Public())
	if err != nil {
		tb.Fatal(err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{issued.DER}, PrivateKey: key}
	for _, element := range issued.Snapshot.ChainPEM() {
		block, _ := pem.Decode(element)
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return cert
}

// Server makes a mesh server; change may alter its configuration.
func (w *World) Server(tb testing.TB, change func(*ra.ServerConfig)) *ra.Server {
	tb.Helper()
	cert := w.Certificate(tb)
	cfg := ra.ServerConfig{
		RA:          w.RA,
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil },
		Registerer:  w.Metrics, Log: w.Logger(), Now: time.Now,
	}
	if change != nil {
		change(&cfg)
	}
	s, err := ra.NewServer(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// Running is a server that serves.
type Running struct {
	Addr string
	stop context.CancelFunc
	done chan error
	once sync.Once
	err  error
}

// Serve runs s on a loopback port until the test ends, or Stop is called.
func Serve(tb testing.TB, s *ra.Server) *Running {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Running{Addr: l.Addr().String(), stop: cancel, done: make(chan error, 1)}
	go func() { r.done <- s.Run(ctx, l) }()
	tb.Cleanup(func() { _ = r.Stop() }) // a test that minds asks itself
	return r
}

// Stop ends the server's context and returns what Run returned.
func (r *Running) Stop() error {
	r.once.Do(func() {
		r.stop()
		r.err = <-r.done
	})
	return r.err
}

// TLS returns a client's configuration that trusts the world's roots.
func (w *World) TLS() *tls.Config {
	return &tls.Config{RootCAs: w.Authority.Roots(), ServerName: ServerName, NextProtos: []string{"h2"}}
}

// Dial returns a client's connection to addr, closed when the test ends.
func (w *World) Dial(tb testing.TB, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	tb.Helper()
	conn, err := grpc.NewClient(addr, append([]grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(w.TLS()))}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return conn
}

// With returns a client's context that shows token.
func With(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// Count returns the sum of a counter's or gauge's children whose labels include
// those given, name and value by turns.
func (w *World) Count(tb testing.TB, name string, labels ...string) float64 {
	tb.Helper()
	families, err := w.Metrics.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			have := map[string]string{}
			for _, l := range m.GetLabel() {
				have[l.GetName()] = l.GetValue()
			}
			match := true
			for i := 0; i < len(labels); i += 2 {
				match = match && have[labels[i]] == labels[i+1]
			}
			if match {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// Refused returns how often reason was given at door.
func (w *World) Refused(tb testing.TB, reason attest.Reason, door string) float64 {
	tb.Helper()
	return w.Count(tb, "hallmark_refusals_total", "reason", reason.String(), "door", door)
}

// Log keeps what was logged. The zero value is ready.
type Log struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// String returns all that was logged.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
