// Package caller speaks to Hallmark as proxies do, one deliberate step at a
// time: CreateCertificate as Istio's agents call it, SDS streams as Envoy opens
// them, with any token and any bytes. It checks nothing but what every client
// must (the server's name and roots); what came back is the test's to judge.
package caller

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	securityv1 "istio.io/api/security/v1alpha1"
)

// SecretType is the type URL of SDS resources.
const SecretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// TLS returns the configuration with which a proxy trusts a server whose roots
// stand in the file.
func TLS(bundleFile, serverName string) (*tls.Config, error) {
	b, err := os.ReadFile(bundleFile)
	if err != nil {
		return nil, fmt.Errorf("reading roots: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("reading roots: %s has none", bundleFile)
	}
	return &tls.Config{RootCAs: pool, ServerName: serverName, MinVersion: tls.VersionTLS13}, nil
}

// Conn is a connection that is made when it is first used, and again when it
// breaks.
type Conn struct{ *grpc.ClientConn }

// Close ends the connection. It may be called often.
func (c Conn) Close() {
	_ = c.ClientConn.Close() // it fails only for one that was closed before
}

// Dial makes one.
func Dial(addr string, cfg *tls.Config) (Conn, error) {
	c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry())
	if err != nil {
		return Conn{}, fmt.Errorf("dialling %s: %w", addr, err)
	}
	return Conn{c}, nil
}

// With returns a context whose calls carry the token; an empty one is left out.
func With(ctx context.Context, token string, headers ...string) context.Context {
	if token != "" {
		headers = append(headers, "authorization", "Bearer "+token)
	}
	return metadata.AppendToOutgoingContext(ctx, headers...)
}

// Create asks for a certificate by CreateCertificate and returns the elements of
// the answer. The error is gRPC's.
func (c Conn) Create(ctx context.Context, token string, csr []byte, seconds int64) ([]string, error) {
	resp, err := securityv1.NewIstioCertificateServiceClient(c).CreateCertificate(With(ctx, token),
		&securityv1.IstioCertificateRequest{Csr: string(csr), ValidityDuration: seconds})
	if err != nil {
		return nil, err
	}
	return resp.CertChain, nil
}

// Certificates parses PEM blocks.
func Certificates(pemBytes []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(pemBytes); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parsing a certificate: %w", err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("parsing certificates: there are none")
	}
	return certs, nil
}

// Stream is an SDS stream.
type Stream struct {
	grpc   secretv3.SecretDiscoveryService_StreamSecretsClient
	node   *corev3.Node
	cancel context.CancelFunc
}

// Stream opens an SDS stream; nodeID is what it calls itself.
func (c Conn) Stream(ctx context.Context, token, nodeID string) (*Stream, error) {
	ctx, cancel := context.WithCancel(With(ctx, token))
	s, err := secretv3.NewSecretDiscoveryServiceClient(c).StreamSecrets(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return &Stream{grpc: s, node: &corev3.Node{Id: nodeID, Cluster: "bench"}, cancel: cancel}, nil
}

// Ask sends the first request of a stream, or a changed set of names on top of
// the last answer, which may be nil.
func (s *Stream) Ask(last *Answer, names ...string) error {
	req := &discoveryv3.DiscoveryRequest{TypeUrl: SecretType, ResourceNames: names, Node: s.node}
	s.node = nil // as Envoy does with set_node_on_first_message_only
	if last != nil {
		req.VersionInfo, req.ResponseNonce = last.Version, last.Nonce
	}
	return s.grpc.Send(req)
}

// Ack acknowledges an answer for the names that are subscribed.
func (s *Stream) Ack(a *Answer, names ...string) error { return s.Ask(a, names...) }

// Nack refuses an answer; version is the last one that was accepted.
func (s *Stream) Nack(a *Answer, version, why string, names ...string) error {
	return s.grpc.Send(&discoveryv3.DiscoveryRequest{
		TypeUrl: SecretType, ResourceNames: names, VersionInfo: version, ResponseNonce: a.Nonce,
		ErrorDetail: &status.Status{Code: 3, Message: why},
	})
}

// Close ends the stream.
func (s *Stream) Close() { s.cancel() }

// Answer is one response.
type Answer struct {
	Version, Nonce string
	Secrets        map[string]*tlsv3.Secret
}

// Next waits for the next response. The error is gRPC's.
func (s *Stream) Next() (*Answer, error) {
	resp, err := s.grpc.Recv()
	if err != nil {
		return nil, err
	}
	a := &Answer{Version: resp.VersionInfo, Nonce: resp.Nonce, Secrets: map[string]*tlsv3.Secret{}}
	for _, r := range resp.Resources {
		var secret tlsv3.Secret
		if err := r.UnmarshalTo(&secret); err != nil {
			return nil, fmt.Errorf("reading a secret: %w", err)
		}
		a.Secrets[secret.Name] = &secret
	}
	return a, nil
}

// Leaf returns the first certificate of the named secret of the answer.
func (a *Answer) Leaf(name string) (*x509.Certificate, error) {
	s := a.Secrets[name].GetTlsCertificate()
	if s == nil {
		return nil, fmt.Errorf("the answer has no certificate %q", name)
	}
	certs, err := Certificates(s.GetCertificateChain().GetInlineBytes())
	if err != nil {
		return nil, err
	}
	return certs[0], nil
}
