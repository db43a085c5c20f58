package ra

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/hallmark-ca/hallmark/attest"
)

// guard stands before gRPC: it counts connections and turns away too many, does
// the TLS handshakes, and says why one failed.
type guard struct {
	credentials.TransportCredentials
	cfg   ServerConfig
	slots chan struct{} // handshakes whose keys are being computed

	mu        sync.Mutex // guards all below
	conns     map[*conn]struct{}
	peers     map[netip.Addr]int
	strangers *list.List // of *conn: shook hands and proved nothing yet, the oldest first
}

// suites for TLS 1.2: forward secret, authenticated. Those of 1.3 all are.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

func newGuard(cfg ServerConfig) (*guard, error) {
	g := &guard{cfg: cfg, slots: make(chan struct{}, cfg.Handshakes), conns: map[*conn]struct{}{}, peers: map[netip.Addr]int{}, strangers: list.New()}
	g.TransportCredentials = credentials.NewTLS(&tls.Config{
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   suites,
		NextProtos:     []string{"h2"},
		GetCertificate: cfg.Certificate,
		// A resumed session would prove an older certificate of ours, and the
		// keys of tickets would be one more secret.
		SessionTicketsDisabled: true,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			return nil, hello.Conn.(*conn).begin()
		},
	})
	return g, cfg.Registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hallmark_connections", Help: "Open connections on the mesh port.",
	}, func() float64 {
		g.mu.Lock()
		defer g.mu.Unlock()
		return float64(len(g.conns))
	}))
}

// listen returns l, counted.
func (g *guard) listen(l net.Listener) net.Listener { return &listener{l, g} }

type listener struct {
	net.Listener
	guard *guard
}

// Accept closes connections that are too many at once: one that is left waiting
// costs its client more.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: raw, guard: l.guard, peer: addrOf(raw.RemoteAddr()), accepted: l.guard.cfg.Now()}
		deny := l.guard.admit(c)
		if deny == nil {
			return c, nil
		}
		raw.Close()
		l.guard.refuse(c.peer, deny)
	}
}

func (g *guard) admit(c *conn) *attest.DenyError {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case len(g.conns) >= g.cfg.Connections:
		return attest.Deny(attest.Overloaded, "", "%d connections are open", len(g.conns))
	case g.peers[c.peer] >= g.cfg.PeerConnections:
		return attest.Deny(attest.CallerStreamsExceeded, "", "%d connections are open from this address", g.peers[c.peer])
	}
	g.conns[c] = struct{}{}
	g.peers[c.peer]++
	return nil
}

func (g *guard) forget(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, c)
	g.known(c)
	if g.peers[c.peer]--; g.peers[c.peer] == 0 {
		delete(g.peers, c.peer)
	}
}

// stranger notes that c has shaken hands. A connection then takes some 40 KiB,
// and needs no proof: where there are too many that have brought none, the oldest
// goes. Callers prove who they are with their first call, so that they are rarely
// the oldest.
func (g *guard) stranger(c *conn) {
	g.mu.Lock()
	var oldest *conn
	if _, open := g.conns[c]; open {
		c.strange = g.strangers.PushBack(c)
	}
	if g.strangers.Len() > g.cfg.Strangers {
		oldest = g.strangers.Front().Value.(*conn)
		g.known(oldest)
	}
	g.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close() // gone either way
		g.refuse(oldest.peer, attest.Deny(attest.Overloaded, "", "more than %d connections on which nobody has proved anything", g.cfg.Strangers))
	}
}

// known takes c from among the strangers. The lock is held.
func (g *guard) known(c *conn) {
	if c.strange != nil {
		g.strangers.Remove(c.strange)
		c.strange = nil
	}
}

// proved notes that the caller of ctx has proved who it is, on its connection.
func proved(ctx context.Context) {
	if p, ok := peer.FromContext(ctx); ok {
		if s, ok := p.AuthInfo.(session); ok {
			g := s.conn.guard
			g.mu.Lock()
			defer g.mu.Unlock()
			g.known(s.conn)
		}
	}
}

// endBefore closes the connections that were accepted before at, spread over a
// time.
func (g *guard) endBefore(at time.Time, over time.Duration) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		if c.accepted.Before(at) {
			n++
			time.AfterFunc(rand.N(over), func() { _ = c.Close() }) // gone either way
		}
	}
	return n
}

func (g *guard) refuse(peer netip.Addr, deny *attest.DenyError) {
	// There is no call to end with it; it is counted and logged.
	_ = g.cfg.RA.refuse(context.Background(), refusalOf{door: DoorMesh, peer: peer, deny: deny})
}

// ServerHandshake implements [credentials.TransportCredentials]. The deadline
// stands on raw already.
func (g *guard) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := g.TransportCredentials.ServerHandshake(raw)
	raw.(*conn).end()
	if err != nil {
		if deny := handshakeDenial(err); deny != nil {
			g.refuse(raw.(*conn).peer, deny)
		}
		return nil, nil, err
	}
	g.stranger(raw.(*conn))
	return secured, session{info.(credentials.TLSInfo), raw.(*conn)}, nil
}

// session is what a handshake leaves for its connection's calls.
type session struct {
	credentials.TLSInfo
	conn *conn
}

// Clone implements [credentials.TransportCredentials].
func (g *guard) Clone() credentials.TransportCredentials { return g }

// handshakeDenial is why a handshake failed, nil where the client has only gone
// (as probes of the port do).
func handshakeDenial(err error) *attest.DenyError {
	var notTLS tls.RecordHeaderError
	var deny *attest.DenyError
	switch {
	case errors.As(err, &deny):
		return deny
	case errors.As(err, &notTLS) && notTLS.Conn != nil:
		return attest.Deny(attest.ConnectionNotTLS, "", "it began with %q", notTLS.RecordHeader[:])
	case errors.Is(err, os.ErrDeadlineExceeded):
		return attest.Deny(attest.HandshakeFailed, "", "not finished in time")
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed):
		return nil
	}
	return attest.Deny(attest.HandshakeFailed, "", "%v", err)
}

// conn is one connection. During its handshake it may hold a slot, from the
// client's hello until the answer to it is written: a client that stalls on
// either side of that holds nothing.
type conn struct {
	net.Conn
	guard    *guard
	peer     netip.Addr
	accepted time.Time
	held     bool          // a slot; the handshake's goroutine's alone
	strange  *list.Element // its place among the strangers; the guard's lock guards it
	closed   sync.Once
}

// begin waits for a slot, at most half the time that the handshake has.
func (c *conn) begin() error {
	if c.held {
		return nil
	}
	select {
	case c.guard.slots <- struct{}{}:
		c.held = true
		return nil
	default:
	}
	timer := time.NewTimer(c.guard.cfg.HandshakeTimeout / 2)
	defer timer.Stop()
	select {
	case c.guard.slots <- struct{}{}:
		c.held = true
		return nil
	case <-timer.C:
		return attest.Deny(attest.Overloaded, "", "no slot for a handshake within %s", c.guard.cfg.HandshakeTimeout/2)
	}
}

func (c *conn) end() {
	if c.held {
		c.held = false
		<-c.guard.slots
	}
}

// Read implements [net.Conn]. Whoever reads has written what it had to say.
func (c *conn) Read(p []byte) (int, error) {
	c.end()
	return c.Conn.Read(p)
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.closed.Do(func() { c.guard.forget(c) })
	return c.Conn.Close()
}
