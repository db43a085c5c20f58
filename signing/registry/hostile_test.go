package registry_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/registry"
)

var someDigest = "sha256:" + strings.Repeat("ab", 32)

func TestNames(t *testing.T) {
	t.Parallel()
	c := newClient(t)
	for image, want := range map[string]string{
		"nginx@" + someDigest:                                "index.docker.io/library/nginx",
		"nginx:1.27@" + someDigest:                           "index.docker.io/library/nginx",
		"team/nginx@" + someDigest:                           "index.docker.io/team/nginx",
		"docker.io/nginx@" + someDigest:                      "index.docker.io/library/nginx",
		"docker.io/team/nginx@" + someDigest:                 "index.docker.io/team/nginx",
		"index.docker.io/library/nginx@" + someDigest:        "index.docker.io/library/nginx",
		"ghcr.io/team/app@" + someDigest:                     "ghcr.io/team/app",
		"GHCR.io/team/app@" + someDigest:                     "ghcr.io/team/app",
		"ghcr.io:5000/team/app:v1@" + someDigest:             "ghcr.io:5000/team/app",
		"localhost/app@" + someDigest:                        "localhost/app",
		"[::1]:5000/app@" + someDigest:                       "[::1]:5000/app",
		"127.0.0.1:5000/a/b/c/d@" + someDigest:               "127.0.0.1:5000/a/b/c/d",
		"docker.io.evil.example/library/nginx@" + someDigest: "docker.io.evil.example/library/nginx",
	} {
		s, err := c.Resolve(t.Context(), image)
		if err != nil || s.Repository != want || s.Digest != someDigest {
			t.Errorf("%s: %v, %v, want %s", image, s, err, want)
		}
	}
	for _, image := range []string{
		"", " ", ":", "@", "/", "nginx@", "@" + someDigest, "nginx@sha256:abc", "nginx@sha512:" + strings.Repeat("0", 128),
		"nginx@" + strings.ToUpper(someDigest), "nginx@" + someDigest + "\n", "nginx@" + someDigest + "@" + someDigest,
		"Nginx@" + someDigest, "ghcr.io/Team/app@" + someDigest, "ghcr.io//app@" + someDigest, "ghcr.io/../app@" + someDigest,
		"ghcr.io/team/../../v2/app@" + someDigest, "ghcr.io/./app@" + someDigest, "ghcr.io/app/@" + someDigest, "ghcr.io/-app@" + someDigest,
		"user@ghcr.io/app@" + someDigest, "user:pass@ghcr.io/app:v1", "http://ghcr.io/app@" + someDigest, "ghcr.io?x=/app@" + someDigest,
		"ghcr.io#/app@" + someDigest, "ghcr.io:port/app@" + someDigest, "ghcr.io:/app@" + someDigest, "ghcr.io./app@" + someDigest,
		"ghсr.io/app@" + someDigest /* Cyrillic */, "ghcr.io/аpp@" + someDigest, "ghcr.io\x00/app@" + someDigest, "ghcr.io/app\x00@" + someDigest,
		"::1/app@" + someDigest, "[::1%25eth0]:5000/app@" + someDigest, "nginx:-v1", "nginx:" + strings.Repeat("v", 129), "nginx:v1:v2",
		strings.Repeat("a/", 200) + "a@" + someDigest, strings.Repeat("a", 2000), "ghcr.io/" + strings.Repeat("a", 300) + "@" + someDigest,
		strings.Repeat("a", 64) + ".io/app@" + someDigest, "ghcr.io/app%2fx@" + someDigest, "ghcr.io\\app@" + someDigest,
	} {
		_, err := c.Resolve(t.Context(), image)
		if err == nil {
			t.Errorf("%q passes", image)
		}
		wantDenied(t, err, attest.ImageReferenceInvalid, "")
	}
	_, err := c.Collect(t.Context(), evidence.Subject{Repository: "ghcr.io/../app", Digest: someDigest})
	wantDenied(t, err, attest.ImageReferenceInvalid, "malformed")
	_, err = c.Collect(t.Context(), evidence.Subject{Repository: "ghcr.io/app", Digest: "latest"})
	wantDenied(t, err, attest.ImageReferenceInvalid, "sha256")
}

func TestSpecialAddresses(t *testing.T) {
	t.Parallel()
	for address, want := range map[string][2]string{ // what it is; what it is to a host that may be private
		"1.1.1.1": {}, "172.32.0.1": {}, "100.128.0.1": {}, "2606:4700::1111": {}, "::ffff:1.1.1.1": {}, "64:ff9b::101:101": {},
		"127.0.0.1": {"loopback", ""}, "127.255.0.1": {"loopback", ""}, "::1": {"loopback", ""}, "::ffff:127.0.0.1": {"loopback", ""},
		"64:ff9b::7f00:1": {"loopback", ""}, "10.0.0.1": {"private", ""}, "172.16.0.1": {"private", ""}, "192.168.1.1": {"private", ""},
		"::ffff:10.0.0.1": {"private", ""}, "64:ff9b::a00:1": {"private", ""}, "fd00::1": {"private", ""}, "fd00:ec2::254": {"private", ""},
		"169.254.169.254": {"link-local", ""}, "64:ff9b::a9fe:a9fe": {"link-local", ""}, "fe80::1": {"link-local", ""}, "fe80::1%eth0": {"link-local", ""},
		"100.64.0.1": {"carrier-grade NAT", ""}, "198.18.0.1": {"benchmarking", ""}, "64:ff9b:1::1": {"local NAT64", ""}, "fec0::1": {"site-local", ""},
		"0.0.0.0": {"unspecified", "unspecified"}, "0.1.2.3": {"unspecified", "unspecified"}, "::": {"unspecified or IPv4-compatible", "unspecified or IPv4-compatible"},
		"::7f00:1": {"unspecified or IPv4-compatible", "unspecified or IPv4-compatible"}, "224.0.0.1": {"multicast", "multicast"},
		"ff02::1": {"multicast", "multicast"}, "255.255.255.255": {"reserved", "reserved"}, "2002:7f00:1::": {"6to4", "6to4"},
		"2001::1": {"Teredo", "Teredo"}, "192.0.2.1": {"documentation", "documentation"}, "2001:db8::1": {"documentation", "documentation"},
	} {
		a := netip.MustParseAddr(address)
		if d := cmp.Diff(want, [2]string{registry.Special(a, false), registry.Special(a, true)}); d != "" {
			t.Errorf("%s: %s", address, d)
		}
	}
}

// No connection goes to a special address unless the very host is allowed,
// whatever name led there.
func TestAddressesAreCheckedAtConnect(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	b.forget()
	_, port, _ := strings.Cut(b.host, ":")
	for _, host := range []string{b.host, "localhost:" + port, "[::ffff:127.0.0.1]:" + port} {
		for _, allowed := range [][]string{nil, {"127.0.0.1"}, {"127.0.0.1:1"}, {"localhost"}, {"registry.example:" + port}} {
			c := newClient(t, func(cfg *registry.Config) { cfg.Insecure, cfg.AllowPrivate = []string{host}, allowed })
			_, err := c.Collect(t.Context(), evidence.Subject{Repository: host + "/team/app", Digest: s.Digest})
			wantDenied(t, err, attest.RegistryAway, "loopback address")
			wantDenied(t, err, attest.RegistryAway, "allowPrivate can name "+host)
		}
	}
	if n := len(b.requests()); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
	c := newClient(t, func(cfg *registry.Config) {
		cfg.Insecure, cfg.AllowPrivate = []string{"LOCALHOST:" + port}, []string{"LocalHost:" + port}
	})
	_, err := c.Collect(t.Context(), evidence.Subject{Repository: "localhost:" + port + "/team/app", Digest: s.Digest})
	must(t, err)
}

// A name that looks local makes the library try plain HTTP by itself.
func TestPlainHTTPOnlyWhereConfigured(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	b.forget()
	_, err := b.collect(s, func(c *registry.Config) { c.Insecure = nil })
	wantDenied(t, err, attest.RegistryAway, "TLS")
	if n := len(b.requests()); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	b.attach(s, `{"n":1}`)
	var plain atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { plain.Add(1) }))
	t.Cleanup(elsewhere.Close)
	redirect := &atomic.Bool{}
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if redirect.Load() && strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		b.srv.Config.Handler.ServeHTTP(w, r)
	}))
	t.Cleanup(secure.Close)
	host := strings.TrimPrefix(secure.URL, "https://")
	s.Repository = host + "/team/app"
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600))
	private := func(c *registry.Config) {
		c.AllowPrivate = []string{host, strings.TrimPrefix(elsewhere.URL, "http://")}
	}
	trusting := newClient(t, private, func(c *registry.Config) { c.CAFiles = []string{ca} })

	e, err := trusting.Collect(t.Context(), s)
	must(t, err)
	if len(e.Signatures) != 1 {
		t.Errorf("%d signatures over TLS", len(e.Signatures))
	}
	_, err = newClient(t, private).Collect(t.Context(), s)
	wantDenied(t, err, attest.RegistryAway, "certificate")

	redirect.Store(true)
	_, err = trusting.Collect(t.Context(), s)
	wantDenied(t, err, attest.RegistryAway, "plain http to")
	if plain.Load() != 0 {
		t.Error("a redirect led to plain HTTP")
	}
	for _, bad := range []string{filepath.Join(t.TempDir(), "none"), b.file("no.pem", "hello")} {
		_, err := registry.New(registry.Config{CAFiles: []string{bad}, Registerer: prometheus.NewRegistry(), Log: slog.Default(), Now: time.Now})
		if err == nil || !strings.Contains(err.Error(), "certificate authorities") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func (b *bench) file(name, content string) string {
	b.t.Helper()
	f := filepath.Join(b.t.TempDir(), name)
	must(b.t, os.WriteFile(f, []byte(content), 0o600))
	return f
}

// dockerConfig has credentials for hosts.
func (b *bench) dockerConfig(user, password string, hosts ...string) string {
	b.t.Helper()
	auths := map[string]any{}
	for _, h := range hosts {
		auths[h] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}
	}
	j, err := json.Marshal(map[string]any{"auths": auths})
	must(b.t, err)
	return b.file("config.json", string(j))
}

// recorder is another host, which remembers what reached it.
type recorder struct {
	*httptest.Server
	host string
	mu   sync.Mutex // guards got
	got  []*http.Request
}

func newRecorder(t *testing.T, h http.HandlerFunc) *recorder {
	t.Helper()
	r := &recorder{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.got = append(r.got, req.Clone(req.Context()))
		r.mu.Unlock()
		h(w, req)
	}))
	t.Cleanup(r.Close)
	r.host = strings.TrimPrefix(r.URL, "http://")
	return r
}

func (r *recorder) requests() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	b.attach(s, `{"n":1}`)
	blob := "blobs/" + evidence.DigestOf([]byte(`{"n":1}`))
	store := newRecorder(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"n":1}`) })
	b.before(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, _, ok := r.BasicAuth(); !ok || user != "robot" {
				w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	config := b.dockerConfig("robot", "secret", b.host)
	allow := func(hosts ...string) func(*registry.Config) {
		return func(c *registry.Config) {
			c.DockerConfig, c.Insecure, c.AllowPrivate = config, append(hosts, b.host), append(hosts, b.host)
		}
	}
	to := func(url string) {
		b.lie(blob, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, url, http.StatusTemporaryRedirect) })
	}

	to(store.URL + "/blob?signature=presigned")
	e := b.mustCollect(s, allow(store.host))
	if len(e.Signatures) != 1 {
		t.Errorf("a redirect to an allowed host was not followed: %q", e.Skipped)
	}
	for _, r := range store.requests() {
		if len(r.Header["Authorization"])+len(r.Header["Cookie"])+len(r.Header["Referer"]) != 0 {
			t.Errorf("another host got %v", r.Header)
		}
	}
	before := len(store.requests())
	for url, why := range map[string]string{
		store.URL + "/blob?signature=presigned":    "plain http to",
		"http://169.254.169.254/latest/meta-data":  "plain http to",
		"https://169.254.169.254/latest/meta-data": "link-local address",
		"https://[fd00:ec2::254]/latest":           "private address",
		"https://[::ffff:10.0.0.1]/":               "private address",
		"https://127.0.0.1:1/":                     "loopback address",
		"https://localhost:1/":                     "loopback address",
		"https://no-such-host.invalid/":            "no-such-host.invalid",
		"ftp://files.example/":                     "only http and https",
		"https://user:pass@files.example/":         "user information",
		"/v2/team/app/" + blob:                     "too many redirects",
	} {
		to(url)
		_, err := b.collect(s, allow())
		wantDenied(t, err, attest.RegistryAway, why)
		if err != nil && (strings.Contains(err.Error(), "presigned") || strings.Contains(err.Error(), "pass@")) {
			t.Errorf("a secret in a URL is shown: %v", err)
		}
	}
	if n := len(store.requests()) - before; n != 0 {
		t.Errorf("%d requests reached a host that is not configured", n)
	}
	// The same host on another port is another host.
	_, port, _ := strings.Cut(store.host, ":")
	to("http://127.0.0.1:" + port + "/")
	b.mustCollect(s, allow(store.host))
	for _, r := range store.requests() {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials went to another port")
		}
	}
}

// tokens is a registry's token service.
func (b *bench) tokens(token func(r *http.Request) string) *recorder {
	b.t.Helper()
	service := newRecorder(b.t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"token":%q,"refresh_token":"refresh-secret"}`, token(r))
	})
	// The library takes no realm at a private address in figures.
	service.host = strings.Replace(service.host, "127.0.0.1", "localhost", 1)
	b.before(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer good" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="registry"`, service.host))
				status(http.StatusUnauthorized)(w, r)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	return service
}

func TestTokens(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	b.attach(s, `{"n":1}`)
	var answer atomic.Pointer[string]
	say := func(s string) { answer.Store(&s) }
	say("good")
	service := b.tokens(func(*http.Request) string { return *answer.Load() })
	with := func(c *registry.Config) {
		c.Insecure, c.AllowPrivate = []string{b.host, service.host}, []string{b.host, service.host}
		c.DockerConfig = b.dockerConfig("robot", "secret", b.host)
	}
	c := b.client(with)
	for range 2 {
		if e, err := c.Collect(t.Context(), s); err != nil || len(e.Signatures) != 1 {
			t.Errorf("%v, %v", e, err)
		}
	}
	if n := len(service.requests()); n != 1 {
		t.Errorf("%d tokens were asked for, want one for both", n)
	}
	if len(service.requests()) == 0 {
		t.Fatal("the token service was not asked")
	}
	r := service.requests()[0]
	if user, pass, _ := r.BasicAuth(); user != "robot" || pass != "secret" || r.URL.Query().Get("scope") != "repository:team/app:pull" {
		t.Errorf("the token service was asked %s by %s", r.URL, user)
	}

	// A token that the registry never takes: no loop.
	say("stale")
	b.forget()
	_, err := b.collect(s, with)
	wantDenied(t, err, attest.RegistryAway, "credentials")
	if n := len(b.requests()); n > 20 {
		t.Errorf("%d requests with a token that is not taken", n)
	}
	// A session whose token ended is made anew, once.
	say("good")
	early, late := time.Now(), time.Now().Add(time.Hour)
	var now atomic.Pointer[time.Time]
	now.Store(&early)
	c = b.client(with, func(c *registry.Config) { c.Now = func() time.Time { return *now.Load() } })
	_, err = c.Collect(t.Context(), s)
	must(t, err)
	before := len(service.requests())
	now.Store(&late)
	_, err = c.Collect(t.Context(), s)
	must(t, err)
	if n := len(service.requests()) - before; n != 1 {
		t.Errorf("%d tokens for a session that ended", n)
	}
	// An answer without a token is not quoted: it may hold another secret.
	say("")
	_, err = b.collect(s, with)
	wantDenied(t, err, attest.RegistryAway, "token service")
	if err != nil && strings.Contains(err.Error(), "refresh-secret") {
		t.Errorf("a secret is shown: %v", err)
	}
	// A realm at a host that may not be reached.
	_, err = b.collect(s, func(c *registry.Config) { c.DockerConfig = b.dockerConfig("robot", "secret", b.host) })
	wantDenied(t, err, attest.RegistryAway, "plain http to "+service.host)
}

func TestDockerConfig(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"/does/not/exist", newBench(t, true).file("config.json", "hello")} {
		_, err := registry.New(registry.Config{DockerConfig: bad, Registerer: prometheus.NewRegistry(), Log: slog.Default(), Now: time.Now})
		if err == nil || !strings.Contains(err.Error(), "docker config") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	b := newBench(t, true)
	s, _ := b.push("v1")
	b.before(func(http.Handler) http.Handler {
		return status(http.StatusUnauthorized, "WWW-Authenticate", `Basic realm="x"`)
	})
	_, err := b.collect(s)
	wantDenied(t, err, attest.RegistryAway, "credentials")
	_, err = b.collect(s, func(c *registry.Config) {
		c.DockerConfig = b.file("config.json", fmt.Sprintf(`{"credHelpers":{%q:"no-such-helper"}}`, b.host))
	})
	wantDenied(t, err, attest.RegistryAway, "no-such-helper")
}

// A credential helper is a process that knows no deadline: a collection ends
// all the same, and no second helper is started beside the one that hangs.
func TestCredentialHelperHangs(t *testing.T) {
	dir := t.TempDir()
	started := filepath.Join(dir, "started")
	script := fmt.Sprintf("#!/bin/sh\necho >>%s\nexec sleep 3\n", started)
	must(t, os.WriteFile(filepath.Join(dir, "docker-credential-hang"), []byte(script), 0o700))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	b := newBench(t, true)
	s, _ := b.push("v1")
	b.before(func(http.Handler) http.Handler {
		return status(http.StatusUnauthorized, "WWW-Authenticate", `Basic realm="x"`)
	})
	c := b.client(timeout(500*time.Millisecond), func(c *registry.Config) {
		c.DockerConfig = b.file("config.json", fmt.Sprintf(`{"credHelpers":{%q:"hang"}}`, b.host))
	})
	for _, detail := range []string{"reading the registry's credentials", "waiting for a credential helper"} {
		_, err := c.Collect(t.Context(), s)
		wantDenied(t, err, attest.RegistryAway, detail)
	}
	lines, err := os.ReadFile(started)
	must(t, err)
	if len(lines) != 1 {
		t.Errorf("%d helpers were started", len(lines))
	}
}

func TestImageItself(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		reason attest.Reason
		detail string
	}{
		"404":         {status(http.StatusNotFound), attest.ImageNotFound, "404"},
		"410":         {status(http.StatusGone), attest.ImageNotFound, "410"},
		"401":         {status(http.StatusUnauthorized), attest.RegistryAway, "wrong or missing credentials"},
		"403":         {status(http.StatusForbidden), attest.RegistryAway, "CODE in words"},
		"429":         {status(http.StatusTooManyRequests, "Retry-After", "17"), attest.RegistryAway, "retry after 17"},
		"500":         {status(http.StatusInternalServerError), attest.RegistryAway, "500"},
		"503":         {status(http.StatusServiceUnavailable), attest.RegistryAway, "503"},
		"no content":  {status(http.StatusNoContent), attest.RegistryAway, "204"},
		"other body":  {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"a":1}`) }, attest.RegistryAway, "content of digest"},
		"endless":     {endless, attest.RegistryAway, "larger than"},
		"declared":    {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "10737418240") }, attest.RegistryAway, "larger than"},
		"hangs up":    {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, attest.RegistryAway, "EOF"},
		"long header": {status(http.StatusOK, "X-Long", strings.Repeat("x", 1<<20)), attest.RegistryAway, "header"},
	} {
		b.lie("manifests/"+s.Digest, c.answer)
		_, err := b.collect(s)
		t.Run(name, func(t *testing.T) { wantDenied(t, err, c.reason, c.detail) })
	}
	// Something that is no image.
	for _, body := range []string{"hello", `{"manifests":[],"layers":[]}`, `{"config":{},"config":{}}`} {
		other := b.serve(body)
		_, err := b.collect(other)
		wantDenied(t, err, attest.ImageNotFound, "no image")
	}
	// Nobody there, and no such name.
	b.srv.Close()
	_, err := b.collect(s)
	wantDenied(t, err, attest.RegistryAway, "refused")
	_, err = newClient(t).Collect(t.Context(), evidence.Subject{Repository: "registry.invalid/app", Digest: someDigest})
	wantDenied(t, err, attest.RegistryAway, "registry.invalid")
}

// serve gives a body at its own digest.
func (b *bench) serve(body string) evidence.Subject {
	d := evidence.DigestOf([]byte(body))
	b.lie("manifests/"+d, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
	return evidence.Subject{Repository: b.host + "/team/app", Digest: d}
}

func TestTagsThatLie(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	first, _ := b.push("first")
	second, _ := b.push("second")
	c := b.client()
	image := b.host + "/team/app:moving"
	fetch := func(tag, method string) (http.Header, []byte) {
		req, err := http.NewRequest(method, b.srv.URL+"/v2/team/app/manifests/"+tag, nil)
		must(t, err)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		defer resp.Body.Close()
		var body bytes.Buffer
		_, err = body.ReadFrom(resp.Body)
		must(t, err)
		return resp.Header, body.Bytes()
	}
	_, body := fetch("first", http.MethodGet)
	// answer tells head to HEAD, and header and the first image's body to GET.
	answer := func(head, header string) {
		b.lie("manifests/moving", func(w http.ResponseWriter, r *http.Request) {
			h := header
			if r.Method == http.MethodHead {
				h = head
			}
			if h != "" {
				w.Header().Set("Docker-Content-Digest", h)
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			if r.Method == http.MethodGet {
				w.Write(body)
			}
		})
	}
	for name, c := range map[string]struct{ head, header, detail string }{
		"honest":            {first.Digest, first.Digest, ""},
		"no header":         {"", "", ""},
		"HEAD differs":      {second.Digest, first.Digest, "contradicts itself about the tag"},
		"header differs":    {first.Digest, second.Digest, "its header names"},
		"both differ":       {second.Digest, second.Digest, "its header names"},
		"malformed":         {"sha256:xyz", first.Digest, "no sha256 digest"},
		"malformed in GET":  {first.Digest, "sha256:xyz", "its header names"},
		"another algorithm": {"sha512:" + strings.Repeat("0", 128), first.Digest, "no sha256 digest"},
	} {
		answer(c.head, c.header)
		s, err := b.client().Resolve(t.Context(), image)
		switch {
		case c.detail == "" && (err != nil || s != first):
			t.Errorf("%s: %v, %v", name, s, err)
		case c.detail != "":
			wantDenied(t, err, attest.RegistryAway, c.detail)
		}
	}
	_, err := c.Resolve(t.Context(), b.host+"/team/app:absent")
	wantDenied(t, err, attest.ImageNotFound, "404")
	// By digest too, the header must agree.
	b.lie("manifests/"+first.Digest, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Docker-Content-Digest", second.Digest)
		w.Write(body)
	})
	_, err = b.collect(first)
	wantDenied(t, err, attest.RegistryAway, "its header names")
	// A digest is not asked of anybody.
	b.forget()
	s, err := c.Resolve(t.Context(), b.host+"/team/app:v9@"+someDigest)
	if err != nil || s.Digest != someDigest || len(b.requests()) != 0 {
		t.Errorf("%v, %v, %q", s, err, b.requests())
	}
}

func TestProbeAndMetrics(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	metrics := prometheus.NewRegistry()
	c := b.client(func(c *registry.Config) { c.Registerer = metrics })
	must(t, c.Probe(t.Context(), b.host))
	wantDenied(t, c.Probe(t.Context(), "127.0.0.1:1"), attest.RegistryAway, "loopback")
	for _, host := range []string{"", "nginx", "host/path", "user@host.example"} {
		wantDenied(t, c.Probe(t.Context(), host), attest.ImageReferenceInvalid, "")
	}
	s, _ := b.push("v1")
	_, err := c.Collect(t.Context(), s)
	must(t, err)
	families, err := metrics.Gather()
	must(t, err)
	series := 0
	for _, f := range families {
		series += len(f.GetMetric())
	}
	if len(families) != 2 || series != 9 {
		t.Errorf("%d families of %d series", len(families), series)
	}
}
