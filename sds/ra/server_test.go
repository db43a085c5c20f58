package ra_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
)

// handlers is a service of whatever a test wants.
type handlers struct {
	call   func(context.Context, *wrapperspb.StringValue) (any, error)
	stream grpc.StreamHandler
}

const (
	callMethod   = "/test.Service/Call"
	streamMethod = "/test.Service/Stream"
)

func (h handlers) register(r grpc.ServiceRegistrar) {
	desc := &grpc.ServiceDesc{ServiceName: "test.Service", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Call",
		Handler: func(_ any, ctx context.Context, dec func(any) error, wrap grpc.UnaryServerInterceptor) (any, error) {
			var in wrapperspb.StringValue
			if err := dec(&in); err != nil {
				return nil, err
			}
			return wrap(ctx, &in, &grpc.UnaryServerInfo{FullMethod: callMethod}, func(ctx context.Context, req any) (any, error) {
				return h.call(ctx, req.(*wrapperspb.StringValue))
			})
		},
	}}}
	if h.stream != nil {
		desc.Streams = []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true, Handler: h.stream}}
	}
	r.RegisterService(desc, h)
}

func echo(_ context.Context, in *wrapperspb.StringValue) (any, error) { return in, nil }

// serve serves h in a new world.
func serve(tb testing.TB, h handlers, change func(*ra.ServerConfig)) (*ratest.World, *ra.Server, *ratest.Running) {
	tb.Helper()
	w := ratest.New(tb, ratest.Config{})
	s := w.Server(tb, change)
	h.register(s.Registrar())
	return w, s, ratest.Serve(tb, s)
}

func call(ctx context.Context, conn *grpc.ClientConn, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out wrapperspb.StringValue
	err := conn.Invoke(ctx, callMethod, wrapperspb.String(text), &out)
	return out.GetValue(), err
}

func TestNotTLS(t *testing.T) {
	t.Parallel()
	w, _, running := serve(t, handlers{call: echo}, nil)
	for _, hello := range []string{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "\x00\x00\x00\x00\x00\x00\x00"} {
		before := w.Refused(t, attest.ConnectionNotTLS, ra.DoorMesh)
		conn := dialTCP(t, running.Addr)
		if _, err := conn.Write([]byte(hello)); err != nil {
			t.Fatal(err)
		}
		if answer, _ := io.ReadAll(conn); len(answer) > 7 { // an alert at most
			t.Errorf("%q is answered %q", hello, answer)
		}
		eventually(t, func() bool { return w.Refused(t, attest.ConnectionNotTLS, ra.DoorMesh) == before+1 })
	}
	if _, err := call(t.Context(), w.Dial(t, running.Addr), "x"); err != nil {
		t.Error(err)
	}
	eventually(t, func() bool { return w.Count(t, "hallmark_connections") == 1 })
}

func dialTCP(tb testing.TB, addr string) net.Conn {
	tb.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	return conn
}

// TestSlowHandshake: who says nothing, or stalls in the middle, is let go, and
// holds up nobody meanwhile.
func TestSlowHandshake(t *testing.T) {
	t.Parallel()
	w, _, running := serve(t, handlers{call: echo}, func(c *ra.ServerConfig) { c.HandshakeTimeout, c.Handshakes = 4*time.Second, 1 })
	silent := dialTCP(t, running.Addr)
	var stalled []net.Conn
	for range 20 { // each has its answer from us, and says no more
		conn := dialTCP(t, running.Addr)
		client := tls.Client(&halfDeaf{conn, t.Context()}, w.TLS())
		go client.Handshake()
		stalled = append(stalled, conn)
	}
	if _, err := call(t.Context(), w.Dial(t, running.Addr), "x"); err != nil {
		t.Error(err)
	}
	if w.Count(t, "hallmark_refusals_total") != 0 {
		t.Error("a real client had to wait until those who stall were let go")
	}
	for _, conn := range append(stalled, silent) {
		if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	}
	eventually(t, func() bool { return w.Refused(t, attest.HandshakeFailed, ra.DoorMesh) == 21 })
}

// halfDeaf never reads: its handshake stops after the first message.
type halfDeaf struct {
	net.Conn
	ctx context.Context
}

func (h *halfDeaf) Read([]byte) (int, error) {
	<-h.ctx.Done()
	return 0, h.ctx.Err()
}

// TestHandshakesWaitTheirTurn: while keys are computed for one client, the next
// waits, and is let go when it has waited too long.
func TestHandshakesWaitTheirTurn(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}, 10), make(chan struct{})
	w, _, running := serve(t, handlers{call: echo}, func(c *ra.ServerConfig) {
		c.HandshakeTimeout, c.Handshakes = time.Second, 1
		certificate := c.Certificate
		c.Certificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			entered <- struct{}{}
			<-leave
			return certificate(hello)
		}
	})
	first := make(chan error, 1)
	go func() { first <- tls.Client(dialTCP(t, running.Addr), w.TLS()).Handshake() }()
	<-entered
	if err := tls.Client(dialTCP(t, running.Addr), w.TLS()).Handshake(); err == nil {
		t.Error("the second did not wait")
	}
	eventually(t, func() bool { return w.Refused(t, attest.Overloaded, ra.DoorMesh) == 1 })
	close(leave)
	<-first // in time or not
	if _, err := call(t.Context(), w.Dial(t, running.Addr), "x"); err != nil {
		t.Error(err)
	}
}

// TestHandshakesRefused: old TLS, no HTTP/2, a client that distrusts us. A probe
// that only connects is none of it.
func TestHandshakesRefused(t *testing.T) {
	t.Parallel()
	w, _, running := serve(t, handlers{call: echo}, nil)
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.1": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 },
		"CBC": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		},
		"HTTP/1.1":   func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} },
		"distrust":   func(c *tls.Config) { c.RootCAs = nil },
		"no ALPN":    func(c *tls.Config) { c.NextProtos = nil },
		"TLS 1.2":    func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
		"as it is":   func(*tls.Config) {},
		"only a SYN": nil,
	} {
		conn := dialTCP(t, running.Addr)
		if change == nil {
			conn.Close()
			continue
		}
		before := w.Refused(t, attest.HandshakeFailed, ra.DoorMesh)
		cfg := w.TLS()
		change(cfg)
		client := tls.Client(conn, cfg)
		err := client.Handshake()
		if name == "TLS 1.2" || name == "as it is" {
			if state := client.ConnectionState(); err != nil || state.NegotiatedProtocol != "h2" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		eventually(t, func() bool { return w.Refused(t, attest.HandshakeFailed, ra.DoorMesh) == before+1 })
	}
	if strings.Contains(w.Log.String(), "EOF") {
		t.Errorf("a probe is logged:\n%s", w.Log)
	}
}

// TestNoResumption: a session never outlives our certificate. Tickets come with
// what the server sends first, so something must be read to have any.
func TestNoResumption(t *testing.T) {
	t.Parallel()
	w, _, running := serve(t, handlers{call: echo}, nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg := w.TLS()
		cfg.MinVersion, cfg.MaxVersion, cfg.NextProtos = version, version, []string{"h2"}
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		for range 2 {
			client := tls.Client(dialTCP(t, running.Addr), cfg)
			_, err := io.WriteString(client, http2.ClientPreface)
			framer := http2.NewFramer(client, client)
			if err = errors.Join(err, framer.WriteSettings()); err == nil {
				_, err = framer.ReadFrame()
			}
			if err != nil || client.ConnectionState().DidResume {
				t.Errorf("TLS %#x: resumed: %v, error %v", version, client.ConnectionState().DidResume, err)
			}
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	for reason, change := range map[attest.Reason]func(*ra.ServerConfig){
		attest.Overloaded:            func(c *ra.ServerConfig) { c.Connections, c.PeerConnections = 3, 5 },
		attest.CallerStreamsExceeded: func(c *ra.ServerConfig) { c.Connections, c.PeerConnections = 5, 3 },
	} {
		w, _, running := serve(t, handlers{call: echo}, change)
		var open []net.Conn
		for range 3 {
			open = append(open, dialTCP(t, running.Addr))
		}
		eventually(t, func() bool { return w.Count(t, "hallmark_connections") == 3 })
		if _, err := io.ReadAll(dialTCP(t, running.Addr)); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("a connection too many: %v", err)
		}
		eventually(t, func() bool { return w.Refused(t, reason, ra.DoorMesh) == 1 })
		open[0].Close()
		eventually(t, func() bool { return w.Count(t, "hallmark_connections") == 2 })
		if _, err := call(t.Context(), w.Dial(t, running.Addr), "x"); err != nil {
			t.Error(err)
		}
	}
}

// Twenty thousand connections that had shaken hands and never asked for anything
// took a gigabyte, from anybody who reached the port.
func TestStrangersMakeRoom(t *testing.T) {
	t.Parallel()
	var w *ratest.World
	h := handlers{call: func(ctx context.Context, in *wrapperspb.StringValue) (any, error) {
		_, err := w.RA.Attest(ctx, ra.DoorMesh, ra.CredentialFrom(ctx))
		return in, err
	}}
	w, _, running := serve(t, h, func(c *ra.ServerConfig) { c.Strangers = 3 })
	_, token := w.Pod("shop", "web-0", "web", "registry.example/web@sha256:aa")
	known := w.Dial(t, running.Addr)
	if _, err := call(ratest.With(t.Context(), token), known, "x"); err != nil {
		t.Fatal(err)
	}
	var strangers []*tls.Conn
	for n := range 8 {
		client := tls.Client(dialTCP(t, running.Addr), w.TLS())
		if err := client.Handshake(); err != nil {
			t.Fatal(err)
		}
		strangers = append(strangers, client)
		eventually(t, func() bool { return w.Count(t, "hallmark_connections") == float64(1+min(n+1, 3)) })
	}
	if n := w.Refused(t, attest.Overloaded, ra.DoorMesh); n != 5 {
		t.Errorf("%v were told off, want 5", n)
	}
	if _, err := io.ReadAll(strangers[4]); err != nil && !strings.Contains(err.Error(), "reset") && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an old stranger: %v", err)
	}
	// Who proved something stays, whoever comes.
	if _, err := call(ratest.With(t.Context(), token), known, "x"); err != nil {
		t.Error(err)
	}
	if n := w.Count(t, "hallmark_connections"); n != 4 {
		t.Errorf("%v connections, want 4: the known one was made anew", n)
	}
}

// TestConnectionsAreEndedOnce: those from before a moment go, their clients come
// back, and a handler can tell.
func TestConnectionsAreEndedOnce(t *testing.T) {
	t.Parallel()
	connected := make(chan time.Time, 1)
	h := handlers{call: func(ctx context.Context, in *wrapperspb.StringValue) (any, error) {
		connected <- ra.Connected(ctx)
		return in, nil
	}}
	w, server, running := serve(t, h, nil)
	conn := w.Dial(t, running.Addr)
	if _, err := call(t.Context(), conn, "x"); err != nil {
		t.Fatal(err)
	}
	first := <-connected
	moment := time.Now()
	if n := server.EndConnections(moment, time.Millisecond); n != 1 || !first.Before(moment) {
		t.Errorf("%d connections were ended, want 1; it was made at %s", n, first)
	}
	eventually(t, func() bool { return w.Count(t, "hallmark_connections") == 0 })
	eventually(t, func() bool { _, err := call(t.Context(), conn, "x"); return err == nil })
	if again := <-connected; again.Before(moment) {
		t.Errorf("the new connection was made at %s, before %s", again, moment)
	}
	if n := server.EndConnections(moment, time.Millisecond); n != 0 {
		t.Errorf("%d connections made since were ended", n)
	}
}

// TestPings: a proxy that pings every few seconds, with no stream open, keeps
// its connection.
func TestPings(t *testing.T) {
	t.Parallel()
	w, _, running := serve(t, handlers{call: echo}, nil)
	client := tls.Client(dialTCP(t, running.Addr), w.TLS())
	if _, err := io.WriteString(client, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(client, client)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(1100 * time.Millisecond)
	defer tick.Stop()
	for pings := 0; pings < 5; {
		if pings > 0 {
			<-tick.C
		}
		if err := framer.WritePing(false, [8]byte{1}); err != nil {
			t.Fatal(err)
		}
		for acked := false; !acked; {
			frame, err := framer.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			switch f := frame.(type) {
			case *http2.GoAwayFrame:
				t.Fatalf("sent away after %d pings: %s %q", pings, f.ErrCode, f.DebugData())
			case *http2.PingFrame:
				acked = f.IsAck()
			}
		}
		pings++
	}
}

// TestHeadersAreBounded: a token of 16 KiB passes, a header list beyond the
// limit does not, and the connection's other calls live.
func TestHeadersAreBounded(t *testing.T) {
	t.Parallel()
	w, _, running := serve(t, handlers{call: func(ctx context.Context, _ *wrapperspb.StringValue) (any, error) {
		return wrapperspb.String(ra.CredentialFrom(ctx).Token), nil
	}}, nil)
	conn := w.Dial(t, running.Addr)
	for _, c := range []struct {
		size int
		ok   bool
	}{{16 << 10, true}, {40 << 10, false}, {1000, true}} {
		got, err := call(ratest.With(t.Context(), strings.Repeat("t", c.size)), conn, "x")
		if (err == nil) != c.ok || c.ok && len(got) != c.size {
			t.Errorf("token of %d bytes: %v", c.size, err)
		}
	}
}

// TestPanic: it ends its call and nothing else, with an id that the log knows
// and no word of what happened.
func TestPanic(t *testing.T) {
	t.Parallel()
	w, _, running := serve(t, handlers{
		call:   func(context.Context, *wrapperspb.StringValue) (any, error) { panic("secret of ours") },
		stream: func(any, grpc.ServerStream) error { panic("secret of ours too") },
	}, nil)
	conn := w.Dial(t, running.Addr)
	_, unary := call(t.Context(), conn, "x")
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, streamMethod)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{unary, stream.RecvMsg(&wrapperspb.StringValue{})} {
		text := status.Convert(err).Message()
		if status.Code(err) != codes.Unavailable || !strings.HasPrefix(text, "InternalError (id ") {
			t.Errorf("answer is %v", err)
		}
		if id := text[len("InternalError (id ") : len(text)-1]; strings.Count(w.Log.String(), id) != 2 {
			t.Errorf("the log does not know %s:\n%s", id, w.Log)
		}
	}
	if w.Refused(t, attest.InternalError, ra.DoorMesh) != 2 || !strings.Contains(w.Log.String(), "server_test.go") {
		t.Error("not counted, or no stack")
	}
}

// TestErrorsLeaveOnlyThroughStatus: a handler's own error text stays here.
func TestErrorsLeaveOnlyThroughStatus(t *testing.T) {
	t.Parallel()
	w, _, running := serve(t, handlers{call: func(context.Context, *wrapperspb.StringValue) (any, error) {
		return nil, errors.New("secret of ours")
	}}, nil)
	if _, err := call(t.Context(), w.Dial(t, running.Addr), "x"); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "secret") {
		t.Errorf("answer is %v", err)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	w, s, running := serve(t, handlers{call: echo}, nil)
	client := grpc_health_v1.NewHealthClient(w.Dial(t, running.Addr))
	check := func(service string) (grpc_health_v1.HealthCheckResponse_ServingStatus, codes.Code) {
		answer, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		return answer.GetStatus(), status.Code(err)
	}
	if got, _ := check(""); got != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("before it was told, it is %s", got)
	}
	s.SetReady(true)
	for _, name := range []string{"", "test.Service"} {
		if got, _ := check(name); got != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("%q is %s", name, got)
		}
	}
	if _, code := check("other"); code != codes.NotFound {
		t.Errorf("an unknown service is %s", code)
	}
	s.SetReady(false)
	if got, _ := check(""); got != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("not ready is %s", got)
	}
	watch, err := client.Watch(metadata.AppendToOutgoingContext(t.Context()), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("Watch is answered %v", err)
	}
}
