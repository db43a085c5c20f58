package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	server "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/registry"
)

const (
	bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	simpleType = "application/vnd.dev.cosign.simplesigning.v1+json"
	indexType  = "application/vnd.oci.image.index.v1+json"
	signType   = "https://sigstore.dev/cosign/sign/v1"
	predicate  = "dev.sigstore.bundle.predicateType"
)

// bench is a real registry on loopback, at each path of which a test can put a
// lie in place of the truth.
type bench struct {
	t    *testing.T
	srv  *httptest.Server
	host string
	repo name.Repository

	mu    sync.Mutex // guards lies, front, log and seen
	lies  map[string]http.HandlerFunc
	front func(http.Handler) http.Handler
	log   []string
	seen  []http.Header
}

func newBench(t *testing.T, referrers bool) *bench {
	t.Helper()
	b := &bench{t: t, lies: map[string]http.HandlerFunc{}}
	truth := server.New(server.WithReferrersSupport(referrers), server.Logger(log.New(io.Discard, "", 0)))
	b.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.log = append(b.log, r.Method+" "+r.URL.Path)
		b.seen = append(b.seen, r.Header.Clone())
		lie, front := b.lies[r.URL.Path], b.front
		b.mu.Unlock()
		h := truth
		if lie != nil {
			h = lie
		}
		if front != nil {
			h = front(h)
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(b.srv.Close)
	b.host = strings.TrimPrefix(b.srv.URL, "http://")
	var err error
	b.repo, err = name.NewRepository(b.host+"/team/app", name.Insecure)
	must(t, err)
	return b
}

// lie answers at a path of the repository ("blobs/sha256:…").
func (b *bench) lie(path string, h http.HandlerFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lies["/v2/team/app/"+path] = h
}

// before puts a handler before everything.
func (b *bench) before(f func(http.Handler) http.Handler) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.front = f
}

func (b *bench) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log, b.seen = nil, nil
}

func (b *bench) requests() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.log)
}

func (b *bench) client(change ...func(*registry.Config)) *registry.Client {
	return newClient(b.t, append([]func(*registry.Config){func(c *registry.Config) {
		c.Insecure, c.AllowPrivate = []string{b.host}, []string{b.host}
	}}, change...)...)
}

func newClient(t *testing.T, change ...func(*registry.Config)) *registry.Client {
	t.Helper()
	cfg := registry.Config{Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now}
	for _, f := range change {
		f(&cfg)
	}
	c, err := registry.New(cfg)
	must(t, err)
	return c
}

func timeout(d time.Duration) func(*registry.Config) {
	return func(c *registry.Config) { c.Timeout = d }
}

// push puts an image under a tag.
func (b *bench) push(tag string) (evidence.Subject, v1.Image) {
	b.t.Helper()
	img, err := random.Image(64, 1)
	must(b.t, err)
	img = mutate.MediaType(img, types.OCIManifestSchema1)
	must(b.t, remote.Write(b.repo.Tag(tag), img))
	d, err := img.Digest()
	must(b.t, err)
	return b.subject(d), img
}

func (b *bench) subject(d v1.Hash) evidence.Subject {
	return evidence.Subject{Repository: b.host + "/team/app", Digest: d.String()}
}

// raw is a manifest as it is.
type raw struct {
	body []byte
	kind types.MediaType
}

func (r raw) RawManifest() ([]byte, error)        { return r.body, nil }
func (r raw) MediaType() (types.MediaType, error) { return r.kind, nil }

func (b *bench) put(ref name.Reference, manifest any, kind types.MediaType) string {
	b.t.Helper()
	body, err := json.Marshal(manifest)
	must(b.t, err)
	must(b.t, remote.Put(ref, raw{body, kind}))
	return evidence.DigestOf(body)
}

func (b *bench) blob(content, kind string) v1.Descriptor {
	b.t.Helper()
	l := static.NewLayer([]byte(content), types.MediaType(kind))
	must(b.t, remote.WriteLayer(b.repo, l))
	d, err := l.Digest()
	must(b.t, err)
	return v1.Descriptor{MediaType: types.MediaType(kind), Digest: d, Size: int64(len(content))}
}

// attach attaches a bundle as cosign does, and returns its manifest's digest.
func (b *bench) attach(s evidence.Subject, bundle string, change ...func(*v1.Manifest)) string {
	b.t.Helper()
	of, err := v1.NewHash(s.Digest)
	must(b.t, err)
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: bundleType,
		Config:      b.blob("{}", "application/vnd.oci.empty.v1+json"),
		Layers:      []v1.Descriptor{b.blob(bundle, bundleType)},
		Annotations: map[string]string{predicate: signType},
		Subject:     &v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: of, Size: 100},
	}
	for _, f := range change {
		f(&m)
	}
	body, err := json.Marshal(m)
	must(b.t, err)
	d := evidence.DigestOf(body)
	must(b.t, remote.Put(b.repo.Digest(d), raw{body, types.OCIManifestSchema1}))
	return d
}

// sign attaches a legacy signature.
func (b *bench) sign(s evidence.Subject, signatures ...string) {
	b.t.Helper()
	tag := b.repo.Tag(strings.Replace(s.Digest, ":", "-", 1) + ".sig")
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for _, sig := range signatures {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: static.NewLayer([]byte("{}"), simpleType), MediaType: simpleType,
			Annotations: map[string]string{"dev.cosignproject.cosign/signature": sig, "other": "note"},
		})
		must(b.t, err)
	}
	must(b.t, remote.Write(tag, img))
}

func (b *bench) collect(s evidence.Subject, change ...func(*registry.Config)) (*evidence.Evidence, error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	return b.client(change...).Collect(ctx, s)
}

func (b *bench) mustCollect(s evidence.Subject, change ...func(*registry.Config)) *evidence.Evidence {
	b.t.Helper()
	e, err := b.collect(s, change...)
	must(b.t, err)
	must(b.t, e.Check())
	return e
}

// found is the content of the signatures, in order.
func found(e *evidence.Evidence) []string {
	out := []string{}
	for _, s := range e.Signatures {
		if s.Format == evidence.FormatBundle {
			out = append(out, string(s.Bundle))
		} else {
			out = append(out, "legacy "+s.Annotations["dev.cosignproject.cosign/signature"])
		}
	}
	return out
}

func wantDenied(t *testing.T, err error, reason attest.Reason, detail string) {
	t.Helper()
	var d *attest.DenyError
	if !errors.As(err, &d) || d.Reason != reason || !strings.Contains(d.Detail, detail) {
		t.Errorf("got %v, want %s with %q", err, reason, detail)
	}
}

func wantSkipped(t *testing.T, e *evidence.Evidence, text string) {
	t.Helper()
	for _, s := range e.Skipped {
		if strings.Contains(s, text) {
			return
		}
	}
	t.Errorf("skipped are %q, want one with %q", e.Skipped, text)
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		fmt.Fprint(w, `{"errors":[{"code":"CODE","message":"in words"}]}`)
	}
}

func sortedKeys(m map[string][]byte) []string { return slices.Sorted(maps.Keys(m)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
