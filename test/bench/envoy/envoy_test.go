package envoy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/hallmark-ca/hallmark/test/bench/echo"
	"github.com/hallmark-ca/hallmark/test/bench/envoy"
	"github.com/hallmark-ca/hallmark/test/tools"
)

const (
	clientID = "spiffe://cluster.local/ns/shop/sa/client"
	serverID = "spiffe://cluster.local/ns/shop/sa/server"
)

// Both samples give an Envoy its identity from whatever serves SDS, and what
// the bench reads of it is what was served.
func TestSamples(t *testing.T) {
	tools.Need(t, "envoy")
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s := newSource(t)
	app, err := echo.Start("server")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(app.Close)
	server := s.envoy(t, ctx, envoy.Config{Sample: envoy.GoogleGRPC, Token: serverID, Caller: clientID, Server: serverID, App: app.Addr()})
	client := s.envoy(t, ctx, envoy.Config{Sample: envoy.EnvoyGRPC, Token: clientID, Caller: serverID, Server: serverID, Peer: server.Inbound()})

	for _, tt := range []struct {
		e  *envoy.Envoy
		id string
	}{{server, serverID}, {client, clientID}} {
		id, err := tt.e.AwaitIdentity(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if id.ID != tt.id || id.Leaf.Issuer.CommonName != "root" {
			t.Errorf("identity %s by %s, want %s by root", id.ID, id.Leaf.Issuer, tt.id)
		}
		roots, err := tt.e.Roots(ctx)
		if err != nil || len(roots) != 1 || !roots[0].Equal(s.root) {
			t.Errorf("roots: %v (%v)", roots, err)
		}
	}
	body, err := client.Call(ctx, "/")
	if err != nil {
		t.Fatal(err)
	}
	var got echo.Answer
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	if want := (echo.Answer{Service: "server", Peer: clientID, Self: serverID}); got != want {
		t.Errorf("answer %+v, want %+v", got, want)
	}
}

// A new token reaches the next stream, and an Envoy that comes back has its old
// addresses.
func TestTokenAndRestart(t *testing.T) {
	tools.Need(t, "envoy")
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s := newSource(t)
	e := s.envoy(t, ctx, envoy.Config{Token: "nobody", Caller: serverID, Server: serverID})
	if err := e.Await(ctx, func(context.Context) error {
		lines, err := e.Said("closed: 16, who is nobody")
		if err == nil && len(lines) == 0 {
			err = errors.New("not refused yet")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if state, err := e.State(ctx); err != nil || state != "PRE_INITIALIZING" {
		t.Errorf("without an identity it is %s (%v)", state, err)
	}
	if _, err := e.Identity(ctx); !errors.Is(err, envoy.ErrNoIdentity) {
		t.Errorf("identity of nobody: %v", err)
	}
	if err := e.SetToken(clientID); err != nil {
		t.Fatal(err)
	}
	first, err := e.AwaitIdentity(ctx)
	if err != nil {
		t.Fatal(err)
	}
	outbound, inbound := e.Outbound(), e.Inbound()
	e.Stop()
	if err := e.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	second, err := e.AwaitIdentity(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if second.Serial() == first.Serial() || e.Outbound() != outbound || e.Inbound() != inbound {
		t.Errorf("after Restart: serial %s then %s, %s then %s", first.Serial(), second.Serial(), inbound, e.Inbound())
	}
	if c, err := net.Dial("tcp", inbound); err != nil {
		t.Errorf("it does not listen where it did: %v", err)
	} else {
		c.Close()
	}
}

// A sample that has lost a value which its reader must change is not run.
func TestSampleOfAnotherName(t *testing.T) {
	tools.Need(t, "envoy")
	_, err := envoy.Start(context.Background(), envoy.Config{Dir: t.TempDir(), Sample: "pod.yaml", Hallmark: "127.0.0.1:1", Bundle: "none"})
	if err == nil || !strings.Contains(err.Error(), "changing the sample") && !strings.Contains(err.Error(), "no sample") {
		t.Errorf("Start: %v, want an error about the sample", err)
	}
}

// source is the smallest SDS server that Envoy takes an identity from: the token
// is the SPIFFE ID.
type source struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	addr, bundle string
	root         *x509.Certificate
	key          *ecdsa.PrivateKey

	mu     sync.Mutex // guards serial and held
	serial int64
	held   map[string]*tlsv3.Secret // by connection and name: an instance has one key
}

func newSource(t *testing.T) *source {
	t.Helper()
	s := &source{held: map[string]*tlsv3.Secret{}}
	var err error
	s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	s.root = s.sign(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, "root", s.key)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	own := s.sign(t, &x509.Certificate{DNSNames: []string{"hallmark.hallmark-system.svc"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, "", key)
	s.bundle = filepath.Join(t.TempDir(), "bundle.pem")
	must(t, os.WriteFile(s.bundle, certPEM(s.root), 0o600))

	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	s.addr = l.Addr().String()
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{own.Raw}, PrivateKey: key}}})))
	secretv3.RegisterSecretDiscoveryServiceServer(server, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return s
}

func (s *source) envoy(t *testing.T, ctx context.Context, cfg envoy.Config) *envoy.Envoy {
	t.Helper()
	cfg.Dir, cfg.Hallmark, cfg.Bundle = t.TempDir(), s.addr, s.bundle
	e, err := envoy.Start(ctx, cfg)
	must(t, err)
	t.Cleanup(e.Close)
	return e
}

func (s *source) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	id := strings.TrimPrefix(strings.Join(md.Get("authorization"), ""), "Bearer ")
	if !strings.HasPrefix(id, "spiffe://") {
		return status.Error(codes.Unauthenticated, "who is "+id)
	}
	for first := true; ; first = false {
		req, err := stream.Recv()
		if err != nil {
			return err // the client's end of the stream
		}
		if !first {
			continue // ACKs
		}
		resp := &discoveryv3.DiscoveryResponse{VersionInfo: "1", Nonce: "1", TypeUrl: req.TypeUrl}
		for _, name := range req.ResourceNames {
			secret, err := s.secret(id, name)
			if err != nil {
				return err
			}
			a, err := anypb.New(secret)
			if err != nil {
				return err
			}
			resp.Resources = append(resp.Resources, a)
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (s *source) secret(id, name string) (*tlsv3.Secret, error) {
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	if name == "ROOTCA" {
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(certPEM(s.root))}}}, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	uri, err := url.Parse(id)
	if err != nil {
		return nil, err
	}
	leaf, err := s.make(&x509.Certificate{URIs: []*url.URL{uri}}, "", key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(certPEM(leaf)), PrivateKey: inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
	}}}, nil
}

func (s *source) sign(t *testing.T, c *x509.Certificate, name string, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	cert, err := s.make(c, name, key)
	must(t, err)
	return cert
}

func (s *source) make(c *x509.Certificate, name string, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	s.mu.Lock()
	s.serial++
	c.SerialNumber = big.NewInt(s.serial)
	s.mu.Unlock()
	c.Subject.CommonName, c.NotBefore, c.NotAfter = name, time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent := s.root
	if parent == nil {
		parent = c
	}
	if !c.IsCA {
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), s.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
