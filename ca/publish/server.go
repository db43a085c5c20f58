package publish

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/netutil"

	"github.com/hallmark-ca/hallmark/attest"
)

// Bounds of a server that anyone may reach.
const (
	serverConnections = 512
	serverReadTime    = 5 * time.Second // handshake and headers
	serverWriteTime   = 10 * time.Second
	serverIdleTime    = 30 * time.Second
	serverHeaderBytes = 8 << 10
	serverStop        = 2 * time.Second
)

// Profile is how readers know the bundle endpoint (SPIFFE Federation section
// 5.2).
type Profile string

// The profiles.
const (
	WebPKI Profile = "https_web"    // by its name and an authority of theirs
	SPIFFE Profile = "https_spiffe" // by its SPIFFE ID and the bundle that they hold
)

// ServerConfig is what [NewServer] needs. All fields are required.
type ServerConfig struct {
	Handler http.Handler
	Profile Profile
	// TrustDomain is whose SPIFFE ID the certificate has to bear under [SPIFFE].
	TrustDomain attest.TrustDomain
	// Certificate is our own, asked for at every handshake.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Log         *slog.Logger
}

// Server serves what is public over HTTPS, to anyone.
type Server struct {
	cfg  ServerConfig
	http *http.Server
}

// NewServer checks cfg. Nothing listens before [Server.Run].
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Handler == nil || cfg.Certificate == nil || cfg.Log == nil || cfg.TrustDomain.IsZero() {
		return nil, errors.New("making public server: handler, trust domain, certificate and log are required")
	}
	if cfg.Profile != WebPKI && cfg.Profile != SPIFFE {
		return nil, fmt.Errorf("making public server: there is no profile %q", cfg.Profile)
	}
	s := &Server{cfg: cfg}
	s.http = &http.Server{
		Handler: cfg.Handler,
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			// The intermediate profile; TLS 1.3 has suites of its own.
			CipherSuites: []uint16{
				tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
				tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
				tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
			},
			ClientAuth: tls.NoClientCert, // section 5.1.1: readers need no identity
			// A reader that resumes has not seen the certificate of today.
			SessionTicketsDisabled: true,
			GetCertificate:         s.certificate,
			NextProtos:             []string{"h2", "http/1.1"},
		},
		ReadTimeout:       serverReadTime,
		ReadHeaderTimeout: serverReadTime,
		WriteTimeout:      serverWriteTime,
		IdleTimeout:       serverIdleTime,
		MaxHeaderBytes:    serverHeaderBytes,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// certificate refuses the handshake rather than show a certificate under which
// no reader could know us.
func (s *Server) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, err := s.cfg.Certificate(hello)
	if err != nil || s.cfg.Profile == WebPKI {
		return cert, err
	}
	leaf := cert.Leaf
	if leaf == nil {
		if len(cert.Certificate) == 0 {
			return nil, errors.New("there is no certificate")
		}
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("parsing our own certificate: %w", err)
		}
	}
	if err := checkSVID(leaf, s.cfg.TrustDomain); err != nil {
		s.cfg.Log.Error("no bundle is served: our own certificate is not what the profile https_spiffe needs", "error", err)
		return nil, err
	}
	return cert, nil
}

// checkSVID wants the one SPIFFE ID of an endpoint of td (X.509-SVID section 2).
func checkSVID(leaf *x509.Certificate, td attest.TrustDomain) error {
	if len(leaf.URIs) != 1 {
		return fmt.Errorf("it bears %d URIs, want one SPIFFE ID", len(leaf.URIs))
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return fmt.Errorf("reading its SPIFFE ID: %w", err)
	}
	if id.TrustDomain().Name() != td.String() || id.Path() == "" {
		return fmt.Errorf("its SPIFFE ID is %s, want one below spiffe://%s", id, td)
	}
	return nil
}

// Run serves l until ctx ends. It closes l, and can be called once.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), serverStop)
		defer cancel()
		stopped <- s.http.Shutdown(limit)
	})
	defer stop()
	if err := s.http.ServeTLS(netutil.LimitListener(l, serverConnections), "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the public port: %w", err)
	}
	if err := <-stopped; err != nil {
		return s.http.Close() // an answer that does not end is cut
	}
	return nil
}
