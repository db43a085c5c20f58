// Package sdstest is the client's side of a stream of secrets without a network:
// a test says what the client sends and when, and each response is held against
// what must be true of every one. A client of it can answer late, never, wrongly
// or twice.
//
// It is linked into tests alone. A Stream is safe for concurrent use.
package sdstest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

// requestBuffer is how many requests a client can be ahead of the server.
const requestBuffer = 64

// Stream is one stream and the client's view of it.
type Stream struct {
	secretv3.SecretDiscoveryService_StreamSecretsServer // its methods that are not here are not called

	tb       testing.TB
	now      func() time.Time
	ctx      context.Context
	cancel   context.CancelFunc
	requests chan *discoveryv3.DiscoveryRequest
	ended    chan struct{}

	mu         sync.Mutex // guards all below
	closed     bool
	asked      bool
	err        error
	nonces     map[string]bool
	nonce      string
	unanswered bool
	responses  []*discoveryv3.DiscoveryResponse
	have       map[string]*tlsv3.Secret // newest received by name
	refused    map[string]string        // bytes refused last by name, until other bytes came
	names      []string                 // told to the server last
	ever       map[string]bool          // told to the server at any time
}

var _ secretv3.SecretDiscoveryService_StreamSecretsServer = (*Stream)(nil)

// Open runs server on a new stream that shows token.
func Open(tb testing.TB, server secretv3.SecretDiscoveryServiceServer, token string, now func() time.Time) *Stream {
	s := &Stream{
		tb: tb, now: now, requests: make(chan *discoveryv3.DiscoveryRequest, requestBuffer), ended: make(chan struct{}),
		nonces: map[string]bool{}, have: map[string]*tlsv3.Secret{}, refused: map[string]string{}, ever: map[string]bool{},
	}
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Bearer "+token))
	s.ctx, s.cancel = context.WithCancel(ctx)
	go func() {
		err := server.StreamSecrets(s)
		s.mu.Lock()
		s.err = err
		close(s.ended)
		s.mu.Unlock()
		s.cancel() // as gRPC does: it ends Recv
	}()
	return s
}

// Context implements [grpc.ServerStream].
func (s *Stream) Context() context.Context { return s.ctx }

// RecvMsg is the server's, with the codec of sds/ra.
func (s *Stream) RecvMsg(m any) error {
	select {
	case r, ok := <-s.requests:
		if !ok {
			return io.EOF
		}
		data, err := proto.Marshal(r)
		if err != nil {
			return err
		}
		m.(ra.Decoder).Decode(data)
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// SendMsg is the server's, likewise. It fails the test where a response is one
// that no server may send.
func (s *Stream) SendMsg(m any) error {
	r := &discoveryv3.DiscoveryResponse{}
	if err := proto.Unmarshal(bytes.Join(m.(ra.Encoded), nil), r); err != nil {
		s.tb.Errorf("decoding response: %v", err)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
		s.tb.Error("a response came after the stream's end")
	default:
	}
	if s.unanswered {
		s.tb.Errorf("response %s came before %s was answered", r.GetNonce(), s.nonce)
	}
	if s.nonces[r.GetNonce()] || r.GetNonce() == "" {
		s.tb.Errorf("nonce %q is not new", r.GetNonce())
	}
	if r.GetTypeUrl() != sds.TypeURL || r.GetVersionInfo() == "" || len(r.GetResources()) == 0 {
		s.tb.Errorf("response has type %q, version %q, %d resources", r.GetTypeUrl(), r.GetVersionInfo(), len(r.GetResources()))
	}
	s.nonces[r.GetNonce()], s.nonce, s.unanswered = true, r.GetNonce(), true
	s.responses = append(s.responses, r)
	for _, resource := range r.GetResources() {
		secret := &tlsv3.Secret{}
		if err := resource.UnmarshalTo(secret); err != nil {
			s.tb.Errorf("decoding secret: %v", err)
			continue
		}
		CheckSecret(s.tb, secret, s.now())
		s.take(secret, string(resource.GetValue()))
	}
	return nil
}

// take holds a secret against what the client said before.
func (s *Stream) take(secret *tlsv3.Secret, text string) {
	name := secret.GetName()
	if s.refused[name] == text {
		s.tb.Errorf("the bytes of %q were sent again after they were refused", name)
	}
	delete(s.refused, name)
	if !s.ever[name] { // a request that takes it back may be on its way
		s.tb.Errorf("%q was sent, and the client never asked for it", name)
	}
	s.have[name] = secret
}

// CheckSecret holds secret against what Envoy must never be sent: a key that is
// not the certificate's, a certificate that has ended, a context without roots.
func CheckSecret(tb testing.TB, secret *tlsv3.Secret, now time.Time) {
	tb.Helper()
	if c := secret.GetTlsCertificate(); c != nil {
		pair, err := tls.X509KeyPair(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes())
		if err != nil {
			tb.Errorf("%q is a mixed pair: %v", secret.GetName(), err)
			return
		}
		if !now.Before(pair.Leaf.NotAfter) {
			tb.Errorf("%q was sent at %s and ended at %s", secret.GetName(), now, pair.Leaf.NotAfter)
		}
		return
	}
	if !x509.NewCertPool().AppendCertsFromPEM(Roots(tb, secret)) {
		tb.Errorf("%q has no root", secret.GetName())
	}
}

// Roots returns what a validation context trusts, in PEM.
func Roots(tb testing.TB, secret *tlsv3.Secret) []byte {
	tb.Helper()
	c := secret.GetValidationContext()
	if plain := c.GetTrustedCa().GetInlineBytes(); plain != nil {
		return plain
	}
	validator := &tlsv3.SPIFFECertValidatorConfig{}
	if err := c.GetCustomValidatorConfig().GetTypedConfig().UnmarshalTo(validator); err != nil {
		tb.Errorf("decoding SPIFFE validator of %q: %v", secret.GetName(), err)
	}
	var roots []byte
	for _, td := range validator.GetTrustDomains() {
		roots = append(roots, td.GetTrustBundle().GetInlineBytes()...)
	}
	return roots
}

// Leaf returns the leaf of a TLS certificate's secret.
func Leaf(tb testing.TB, secret *tlsv3.Secret) *x509.Certificate {
	tb.Helper()
	block, _ := pem.Decode(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
	if block == nil {
		tb.Fatalf("%q is no certificate", secret.GetName())
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// First sends a first request, with what a client that comes back says: the
// nonce and version of its last stream.
func (s *Stream) First(node *corev3.Node, names ...string) {
	s.Put(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: sds.TypeURL, ResourceNames: names, VersionInfo: "old", ResponseNonce: "old"})
}

// Ask sends a request with the nonce of the last response that has come: it
// accepts that, and sets the names.
func (s *Stream) Ask(names ...string) {
	s.mu.Lock()
	nonce := s.nonce
	s.mu.Unlock()
	s.Put(&discoveryv3.DiscoveryRequest{ResourceNames: names, ResponseNonce: nonce, TypeUrl: sds.TypeURL})
}

// Ack accepts the last response.
func (s *Stream) Ack() { s.Ask(s.Names()...) }

// Refuse refuses the last response, and sets the names.
func (s *Stream) Refuse(names ...string) {
	s.mu.Lock()
	nonce := s.nonce
	s.mu.Unlock()
	s.Put(&discoveryv3.DiscoveryRequest{ResourceNames: names, ResponseNonce: nonce, ErrorDetail: &statuspb.Status{Code: 13, Message: "no\nthanks"}})
}

// Nack refuses the last response.
func (s *Stream) Nack() { s.Refuse(s.Names()...) }

// Put sends any request.
func (s *Stream) Put(r *discoveryv3.DiscoveryRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if !s.asked || r.GetResponseNonce() == s.nonce { // it will be heard
		s.asked = true
		if s.unanswered && r.GetErrorDetail() != nil {
			for _, resource := range s.responses[len(s.responses)-1].GetResources() {
				secret := &tlsv3.Secret{}
				if resource.UnmarshalTo(secret) == nil {
					s.refused[secret.GetName()] = string(resource.GetValue())
				}
			}
		}
		s.unanswered, s.names = false, slices.Clone(r.GetResourceNames())
		for _, name := range s.names {
			s.ever[name] = true
		}
	}
	select {
	case s.requests <- r:
	case <-s.ctx.Done():
	}
}

// CloseSend ends the client's side.
func (s *Stream) CloseSend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.requests)
	}
}

// Cancel drops the stream, as a lost connection does.
func (s *Stream) Cancel() { s.cancel() }

// Names returns what the client asked for last.
func (s *Stream) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.names)
}

// Responses returns all that came, oldest first.
func (s *Stream) Responses() []*discoveryv3.DiscoveryResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.responses)
}

// Have returns the newest secret of each name.
func (s *Stream) Have() map[string]*tlsv3.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.have)
}

// Waiting tells whether the last response was not answered.
func (s *Stream) Waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unanswered
}

// Refused tells whether the newest bytes of name are refused.
func (s *Stream) Refused(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, is := s.refused[name]
	return is
}

// Done is closed when the server has ended the stream; Err then says how.
func (s *Stream) Done() <-chan struct{} { return s.ended }

// Ended tells whether the server has ended the stream.
func (s *Stream) Ended() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// Err returns how the server ended the stream: a gRPC status, or nil.
func (s *Stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
