package proxies_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

// served is a scene with real TLS and gRPC before it, in real time.
type served struct {
	*scene
	addr string
	stop func() error
}

func serve(t *testing.T, life time.Duration) *served {
	t.Helper()
	s := newScene(t, life, nil)
	server := s.Server(t, func(cfg *ra.ServerConfig) { cfg.Streams = 2000 })
	s.server.Register(server.Registrar())
	r := ratest.Serve(t, server)
	return &served{s, r.Addr, r.Stop}
}

// client is one stream over the network.
type client struct {
	t      *testing.T
	stream secretv3.SecretDiscoveryService_StreamSecretsClient
	cancel context.CancelFunc
}

func (s *served) dial(t *testing.T) secretv3.SecretDiscoveryServiceClient {
	return secretv3.NewSecretDiscoveryServiceClient(s.Dial(t, s.addr))
}

func open(t *testing.T, c secretv3.SecretDiscoveryServiceClient, token string, names ...string) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(ratest.With(context.Background(), token), time.Minute)
	t.Cleanup(cancel)
	stream, err := c.StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := &client{t, stream, cancel}
	s.send(&discoveryv3.DiscoveryRequest{TypeUrl: sds.TypeURL, ResourceNames: names})
	return s
}

func (c *client) send(r *discoveryv3.DiscoveryRequest) {
	if err := c.stream.Send(r); err != nil {
		c.t.Logf("sending: %v", err) // Recv says why
	}
}

// recv receives one response, checks it and accepts it.
func (c *client) recv(names ...string) map[string]*tlsv3.Secret {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	secrets := map[string]*tlsv3.Secret{}
	for _, resource := range r.GetResources() {
		secret := &tlsv3.Secret{}
		if err := resource.UnmarshalTo(secret); err != nil {
			c.t.Fatal(err)
		}
		sdstest.CheckSecret(c.t, secret, time.Now())
		secrets[secret.GetName()] = secret
	}
	c.send(&discoveryv3.DiscoveryRequest{TypeUrl: sds.TypeURL, ResourceNames: names, ResponseNonce: r.GetNonce(), VersionInfo: r.GetVersionInfo()})
	return secrets
}

func (c *client) end(code codes.Code) {
	c.t.Helper()
	if r, err := c.stream.Recv(); status.Code(err) != code {
		c.t.Errorf("got %v, %v; want the end by %s", r, err, code)
	}
}

// TestServed goes the whole way over TLS and gRPC: secrets, renewals, a
// new root, a refusal, a stop.
func TestServed(t *testing.T) {
	s := serve(t, 3*time.Second)
	conn := s.dial(t)
	svid, roots := open(t, conn, s.token, "default"), open(t, conn, s.token, "ROOTCA")
	first := svid.recv("default")["default"]
	if got := sdstest.Leaf(t, first).URIs[0].String(); got != s.Identity(t, "shop", "web").String() {
		t.Errorf("the leaf names %s", got)
	}
	if got := sdstest.Roots(t, roots.recv("ROOTCA")["ROOTCA"]); string(got) != string(s.Authority.Current().BundlePEM()) {
		t.Error("the roots are not the bundle")
	}
	for range 3 {
		svid.recv("default")
	}
	s.Authority.AddRoot(t)
	if got := sdstest.Roots(t, roots.recv("ROOTCA")["ROOTCA"]); string(got) != string(s.Authority.Current().BundlePEM()) {
		t.Error("the roots are not the new bundle")
	}
	open(t, conn, "garbage", "default").end(codes.Unauthenticated)
	open(t, conn, s.token, make([]string, 101)...).end(codes.ResourceExhausted)
	if _, err := conn.FetchSecrets(ratest.With(t.Context(), s.token), &discoveryv3.DiscoveryRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("FetchSecrets answers %v", err)
	}
	other, token := s.Pod("shop", "web-1", "web", "registry.example/other@sha256:bb")
	refused := open(t, conn, token, "default")
	refused.recv("default")
	s.Gate.Deny(other.Containers[0].Image, attest.ImageUnsigned)
	s.feed.Announce(attest.Change{Digest: "sha256:bb"})
	refused.end(codes.PermissionDenied)
}

// TestGoroutines opens a thousand streams and closes them in every way: nothing
// is left of them.
func TestGoroutines(t *testing.T) {
	s := serve(t, 30*time.Minute)
	conn := s.dial(t)
	open(t, conn, s.token, "ROOTCA").recv("ROOTCA") // what a connection needs stays
	before := settled(t, 0)
	heap := inUse()
	var streams []*client
	for i := range 1000 {
		_, token := s.Pod("shop", fmt.Sprint("pod-", i/10), "web", image)
		name := []string{"default", "ROOTCA"}[i%2]
		c := open(t, conn, token, name)
		c.recv(name)
		streams = append(streams, c)
	}
	t.Logf("%d goroutines and %d KiB for 1,000 streams, both sides of each", runtime.NumGoroutine()-before, (inUse()-heap)>>10)
	for i, c := range streams {
		if i%2 == 0 {
			c.cancel()
			continue
		}
		if err := c.stream.CloseSend(); err != nil {
			t.Error(err)
		}
		c.end(codes.Unknown) // io.EOF
	}
	if after := settled(t, before); after > before {
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before:\n%s", after, before, buf[:runtime.Stack(buf, true)])
	}
	if got := s.Count(t, "hallmark_sds_streams"); got != 1 {
		t.Errorf("%v streams are counted, want 1", got)
	}
}

// inUse returns the bytes that are in use after a collection.
func inUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// settled waits until there are no more than limit goroutines, or their number
// has not changed for a while, and returns it.
func settled(t *testing.T, limit int) int {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	last, same := runtime.NumGoroutine(), 0
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline) && same < 50; <-tick.C {
		n := runtime.NumGoroutine()
		if limit > 0 && n <= limit {
			return n
		}
		if n == last {
			same++
			continue
		}
		last, same = n, 0
	}
	return last
}
