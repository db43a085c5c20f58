package publish_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallmark-ca/hallmark/ca/bundle"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/publish"
)

const hint = time.Minute

func newEndpoint(tb testing.TB, authority *catest.Authority, now func() time.Time) *publish.Endpoint {
	tb.Helper()
	e, err := publish.NewEndpoint(publish.EndpointConfig{
		Authority: authority.Authority, RefreshHint: hint,
		Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: now,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func get(h http.Handler, change func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "/bundle", nil)
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestEndpointAnswers(t *testing.T) {
	t.Parallel()
	authority := catest.New(t, trustDomain(t), time.Now, nil)
	e := newEndpoint(t, authority, time.Now)

	first := get(e, nil)
	b, err := bundle.Parse(trustDomain(t), first.Body.Bytes())
	if err != nil || first.Code != 200 || b.Sequence != authority.Current().Sequence() || b.RefreshHint != hint {
		t.Fatalf("%d, bundle %+v (%v)", first.Code, b, err)
	}
	tag := first.Header().Get("ETag")
	if first.Header().Get("Content-Type") != "application/json" || first.Header().Get("Cache-Control") != "no-cache" || tag == "" {
		t.Errorf("headers %v", first.Header())
	}
	for _, named := range []string{tag, "W/" + tag, `"x", ` + tag, "*"} {
		if w := get(e, func(r *http.Request) { r.Header.Set("If-None-Match", named) }); w.Code != 304 || w.Body.Len() != 0 {
			t.Errorf("If-None-Match %s: %d with %d bytes", named, w.Code, w.Body.Len())
		}
	}

	authority.AddRoot(t)
	w := get(e, func(r *http.Request) { r.Header.Set("If-None-Match", tag) })
	if next, err := bundle.Parse(trustDomain(t), w.Body.Bytes()); err != nil || len(next.Roots) != 2 || next.Sequence <= b.Sequence {
		t.Errorf("after a change, who had the old one gets %d, %+v (%v)", w.Code, next, err)
	}

	for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, "BREW"} {
		w := get(e, func(r *http.Request) { r.Method = method })
		if w.Code != 405 || w.Header().Get("Allow") != "GET" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d, %v", method, w.Code, w.Header())
		}
	}
}

func TestEndpointReport(t *testing.T) {
	t.Parallel()
	now := time.Now()
	authority := catest.New(t, trustDomain(t), time.Now, nil)
	e := newEndpoint(t, authority, func() time.Time { return now })
	sequence := authority.Current().Sequence()
	if r := e.Report()[0]; r.Sequence != sequence || !r.At.Equal(now.Add(5*hint)) || r.Problem != "" {
		t.Errorf("report %+v", r)
	}
	then := now
	now = now.Add(time.Hour)
	authority.AddRoot(t)
	if r := e.Report()[0]; r.Sequence != sequence+1 || !r.At.Equal(then.Add(time.Hour+5*hint)) {
		t.Errorf("report after a change %+v", r)
	}
}

// svid returns a certificate of key that is valid for name and, where uri is not
// empty, bears it, signed by a new root.
func svid(tb testing.TB, uri string) (tls.Certificate, *x509.Certificate) {
	tb.Helper()
	rootKey, key := catest.Key(tb), catest.Key(tb)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		tb.Fatal(err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if uri != "" {
		at, err := url.Parse(uri)
		if err != nil {
			tb.Fatal(err)
		}
		leaf.URIs = []*url.URL{at}
	}
	if der, err = x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), rootKey); err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, root
}

// serve runs a public server and returns its URL.
func serve(t *testing.T, handler http.Handler, profile publish.Profile, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) string {
	t.Helper()
	s, err := publish.NewServer(publish.ServerConfig{
		Handler: handler, Profile: profile, TrustDomain: trustDomain(t), Certificate: certificate, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return "https://" + l.Addr().String()
}

func always(cert tls.Certificate) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
}

// TestFederation fetches our bundle as go-spiffe does, under both profiles.
func TestFederation(t *testing.T) {
	t.Parallel()
	authority := catest.New(t, trustDomain(t), time.Now, nil)
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	endpointID := spiffeid.RequireFromPath(td, "/hallmark/bundle")
	for _, tc := range []struct {
		profile publish.Profile
		uri     string
		option  func(*x509.Certificate) federation.FetchOption
		works   bool
	}{
		{publish.WebPKI, "", func(root *x509.Certificate) federation.FetchOption {
			pool := x509.NewCertPool()
			pool.AddCert(root)
			return federation.WithWebPKIRoots(pool)
		}, true},
		{publish.SPIFFE, endpointID.String(), func(root *x509.Certificate) federation.FetchOption {
			return federation.WithSPIFFEAuth(x509bundle.FromX509Authorities(td, []*x509.Certificate{root}), endpointID)
		}, true},
		{publish.SPIFFE, "spiffe://elsewhere/bundle", func(root *x509.Certificate) federation.FetchOption {
			pool := x509.NewCertPool()
			pool.AddCert(root)
			return federation.WithWebPKIRoots(pool)
		}, false},
		{publish.SPIFFE, "", func(root *x509.Certificate) federation.FetchOption {
			pool := x509.NewCertPool()
			pool.AddCert(root)
			return federation.WithWebPKIRoots(pool)
		}, false},
	} {
		cert, root := svid(t, tc.uri)
		at := serve(t, newEndpoint(t, authority, time.Now), tc.profile, always(cert))
		got, err := federation.FetchBundle(t.Context(), td, at+"/bundle", tc.option(root))
		if !tc.works {
			if err == nil {
				t.Errorf("%s with %q: served under a certificate that is none of the profile", tc.profile, tc.uri)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.profile, err)
			continue
		}
		if sequence, _ := got.SequenceNumber(); sequence != authority.Current().Sequence() || !slices.EqualFunc(got.X509Authorities(), authority.Current().Roots(), (*x509.Certificate).Equal) {
			t.Errorf("%s: fetched sequence %d, %d roots", tc.profile, sequence, len(got.X509Authorities()))
		}
	}
}

// TestServerIsBounded holds the public port against readers that do not behave.
func TestServerIsBounded(t *testing.T) {
	t.Parallel()
	authority := catest.New(t, trustDomain(t), time.Now, nil)
	cert, root := svid(t, "")
	at := serve(t, newEndpoint(t, authority, time.Now), publish.WebPKI, always(cert))
	pool := x509.NewCertPool()
	pool.AddCert(root)
	dial := func(cfg *tls.Config) (*tls.Conn, error) {
		cfg.RootCAs = pool
		return tls.Dial("tcp", strings.TrimPrefix(at, "https://"), cfg)
	}

	if _, err := dial(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is served")
	}
	if _, err := dial(&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}); err == nil {
		t.Error("a suite outside the intermediate profile is served")
	}
	conn, err := dial(&tls.Config{NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /bundle HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("a", 64<<10))
	if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 431 ") {
		t.Errorf("headers of 64 KiB: %.80s (%v)", answer, err)
	}
	conn, err = dial(&tls.Config{NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "POST /bundle HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
	if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 405 ") || !strings.Contains(string(answer), "Connection: close") {
		t.Errorf("a body without end: %.300s (%v)", answer, err)
	}
}

func TestCertificateFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write := func(cert tls.Certificate) {
		t.Helper()
		der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
			if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, _ := svid(t, "")
	second, _ := svid(t, "")
	now := time.Now()
	open := func() (*publish.CertificateFiles, error) {
		return publish.OpenCertificate(certFile, keyFile, slog.New(slog.DiscardHandler), func() time.Time { return now })
	}
	if _, err := open(); err == nil {
		t.Error("opened without files")
	}
	write(first)
	files, err := open()
	if err != nil {
		t.Fatal(err)
	}
	shown := func(want tls.Certificate, when string) {
		t.Helper()
		got, err := files.Get(nil)
		if err != nil || string(got.Certificate[0]) != string(want.Certificate[0]) {
			t.Errorf("%s: another certificate is shown (%v)", when, err)
		}
	}
	shown(first, "at first")
	write(second)
	now = now.Add(31 * time.Second)
	shown(second, "after a renewal")
	if err := os.WriteFile(keyFile, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(31 * time.Second)
	shown(second, "with a broken key")
	write(first)
	now = now.Add(2 * time.Hour)
	shown(second, "with one that has ended")
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "ended at") {
		t.Errorf("opened one that has ended: %v", err)
	}
}
