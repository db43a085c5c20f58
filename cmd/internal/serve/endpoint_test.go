package serve_test

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
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca/bundle"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/publish"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/serve"
)

// webCertificate writes a certificate of our own making for 127.0.0.1, which
// ends as said, and its key.
func webCertificate(t *testing.T, cfg *config.Endpoint, until time.Time) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(until.Unix()), NotBefore: time.Now().Add(-time.Hour), NotAfter: until, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{cfg.CertificateFile: {Type: "CERTIFICATE", Bytes: der}, cfg.KeyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// eventually asks until what is missing is nothing.
func eventually(t *testing.T, missing func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		err := missing()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}

// TestEndpointOpensByItself: a certificate that is not there, an address that is
// in use and a certificate that has ended keep the port shut and end nothing, and
// as long as it is shut nobody counts as a reader.
func TestEndpointOpensByItself(t *testing.T) {
	t.Parallel()
	const hint = time.Minute
	dir := t.TempDir()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	e := &config.Endpoint{Listen: taken.Addr().String(), CertificateFile: filepath.Join(dir, "web.crt"), KeyFile: filepath.Join(dir, "web.key"), RefreshHint: hint}
	td := attesttest.Domain(t, "example.org")
	var ahead atomic.Int64 // of the clock
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	authority := catest.New(t, td, now, nil)
	d, err := serve.NewEndpointDoor(authority.Authority, &config.Config{TrustDomain: td, Bundle: config.Bundle{Endpoint: e}}, now, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if found := d.Findings(t.Context()); found["bundle.endpoint.certificateFile"] == nil || found["bundle.endpoint.listen"] == nil {
		t.Errorf("the check finds %v", found)
	}
	shut := func(why string) func() error {
		return func() error {
			if r := d.Report()[0]; r.Sequence != 0 || !r.At.IsZero() || !strings.Contains(r.Problem, why) {
				return fmt.Errorf("%+v, want it shut: %s", r, why)
			}
			return nil
		}
	}
	if err := shut("not open yet")(); err != nil {
		t.Error(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()

	eventually(t, shut("web.crt"))
	cert := webCertificate(t, e, now().Add(time.Hour))
	eventually(t, shut(syscall.EADDRINUSE.Error()))
	taken.Close()
	opened := now()
	eventually(t, holds(d, authority))
	if r := d.Report()[0]; r.At.Before(opened.Add(publish.Hints*hint)) || r.Holds(r.Sequence, now()) {
		t.Errorf("open since %s, its readers count from %s", opened, r.At)
	}
	if err := read(e.Listen, cert, authority); err != nil {
		t.Error(err)
	}

	ahead.Store(int64(2 * time.Hour))
	eventually(t, shut("ended"))
	webCertificate(t, e, now().Add(time.Hour))
	opened = now()
	eventually(t, holds(d, authority))
	if r := d.Report()[0]; r.At.Before(opened.Add(publish.Hints * hint)) {
		t.Errorf("open again since %s, its readers count from %s", opened, r.At)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func holds(d *serve.EndpointDoor, authority *catest.Authority) func() error {
	return func() error {
		if r := d.Report()[0]; r.Sequence != authority.Current().Sequence() || r.Problem != "" {
			return fmt.Errorf("%+v, want sequence %d", r, authority.Current().Sequence())
		}
		return nil
	}
}

// read fetches the bundle as a reader does that trusts cert.
func read(addr string, cert *x509.Certificate, authority *catest.Authority) error {
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	defer client.CloseIdleConnections()
	res, err := client.Get("https://" + addr + "/any/path")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	b, err := bundle.Parse(authority.Current().TrustDomain(), body)
	if err != nil {
		return err
	}
	if b.Sequence != authority.Current().Sequence() {
		return errors.New("it is not the bundle in force")
	}
	return nil
}
