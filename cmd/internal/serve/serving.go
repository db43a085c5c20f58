package serve

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// servingCertificate is our own certificate on the mesh port: from our own
// authority, renewed at half its life and with each new issuing CA.
type servingCertificate struct {
	authority *ca.Authority
	mesh      config.Mesh
	now       func() time.Time
	log       *slog.Logger
	expiry    prometheus.Gauge

	minting sync.Mutex // one certificate after the other: the last made is shown
	current atomic.Pointer[tls.Certificate]
	renew   chan struct{} // one token: a new issuing CA is in force
	first   chan struct{} // closed when there is a certificate
	once    sync.Once
}

// servingRetry is the pause after a failed attempt.
const servingRetry = time.Second

func newServingCertificate(b *base, authority *ca.Authority, mesh config.Mesh) (*servingCertificate, error) {
	s := &servingCertificate{
		authority: authority, mesh: mesh, now: b.now, log: b.log.With("part", "serving"),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "hallmark_serving_certificate_expiry_timestamp_seconds", Help: "When our own certificate on the mesh port ends, in seconds since 1970.",
		}),
		renew: make(chan struct{}, 1), first: make(chan struct{}),
	}
	if err := b.metrics.Register(s.expiry); err != nil {
		return nil, fmt.Errorf("making serving certificate: %w", err)
	}
	return s, nil
}

// get is for [tls.Config.GetCertificate].
func (s *servingCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := s.current.Load(); cert != nil {
		return cert, nil
	}
	return nil, errors.New("no serving certificate was made yet")
}

func (s *servingCertificate) ready() error {
	cert := s.current.Load()
	switch {
	case cert == nil:
		return errors.New("no serving certificate was made yet")
	case !cert.Leaf.NotAfter.After(s.now()):
		return fmt.Errorf("our own certificate ended at %s", cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// run keeps the certificate fresh until ctx ends.
func (s *servingCertificate) run(ctx context.Context) error {
	s.authority.Subscribe(func(*ca.Snapshot) {
		select {
		case s.renew <- struct{}{}:
		default: // it is going to be renewed anyway
		}
	})
	var wait <-chan time.Time // nil until there is an authority to ask
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.renew:
		case <-wait:
		}
		next, err := s.mint(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // it was asked to end
			}
			s.log.Error("making our own certificate failed; the last one stays in use", "error", err, "retryIn", servingRetry.String())
			next = servingRetry
		}
		wait = time.After(next)
	}
}

// mint makes a key and a certificate, and says after how long the next is due.
func (s *servingCertificate) mint(ctx context.Context) (time.Duration, error) {
	s.minting.Lock()
	defer s.minting.Unlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0, fmt.Errorf("generating serving key: %w", err)
	}
	issued, err := s.authority.Mint(ctx, ca.Serving{ID: "serving-" + rand.Text(), DNS: s.mesh.Names, IPs: s.mesh.IPs}, key.Public())
	if err != nil {
		return 0, err
	}
	leaf, err := x509.ParseCertificate(issued.DER)
	if err != nil {
		return 0, fmt.Errorf("parsing serving certificate: %w", err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{issued.DER}, PrivateKey: key, Leaf: leaf}
	for _, block := range issued.Snapshot.ChainPEM() {
		der, _ := pem.Decode(block)
		cert.Certificate = append(cert.Certificate, der.Bytes)
	}
	s.current.Store(cert)
	s.once.Do(func() { close(s.first) })
	s.expiry.Set(float64(issued.NotAfter.Unix()))
	s.log.Info("our own certificate renewed", "serial", issued.Serial, "notAfter", issued.NotAfter, "authority", issued.Snapshot.AuthorityID())
	return issued.NotAfter.Sub(issued.IssuedAt) / 2, nil
}
