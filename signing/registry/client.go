package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
)

// Times. A collection ends within collectTimeout, whatever the registry does.
const (
	collectTimeout = 30 * time.Second
	partTimeout    = 8 * time.Second // of one attachment's request
	dialTimeout    = 5 * time.Second
	sessionLife    = 5 * time.Minute
	challengeLife  = 10 * time.Minute
)

// Bounds beside those of package evidence.
const (
	maxSessions      = 256
	maxRedirects     = 5
	maxReferrerPages = 16
	maxReferrers     = 256     // manifests that are looked at, of one image
	maxReferrer      = 1 << 20 // of such a manifest
	maxAnswer        = 64 << 10
	maxConfig        = 1 << 20 // of the docker config
	parallel         = 8       // requests of one collection at a time
)

// Config is what a [Client] needs.
type Config struct {
	// Insecure are hosts (HOST or HOST:PORT) that are spoken to without TLS.
	Insecure []string
	// AllowPrivate are hosts (HOST or HOST:PORT) that may lie at loopback,
	// link-local and private addresses. HOST means the default port.
	AllowPrivate []string
	CAFiles      []string // PEM, beside the system's; read once
	// DockerConfig is a docker config.json, read whenever a registry is met
	// anew. Empty: no credentials.
	DockerConfig string
	// Timeout ends a collection; zero means 30 s.
	Timeout    time.Duration
	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
}

// Client speaks to registries.
type Client struct {
	cfg   Config
	guard *guard
	m     metrics
	// helper is taken while credentials are read: a credential helper that hangs
	// holds up others, and is not started a second time.
	helper     chan struct{}
	challenges *lru.Cache[string, kept[*transport.Challenge]] // by host
	sessions   *lru.Cache[string, *session]                   // by repository
}

// kept is a value that ends.
type kept[T any] struct {
	value T
	until time.Time
}

// New makes a client; it connects to nothing.
func New(cfg Config) (*Client, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = collectTimeout
	}
	roots, err := loadRoots(cfg.CAFiles)
	if err != nil {
		return nil, fmt.Errorf("making a registry client: %w", err)
	}
	c := &Client{cfg: cfg, helper: make(chan struct{}, 1)}
	if err := c.m.register(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("making a registry client: %w", err)
	}
	c.guard = newGuard(cfg.Insecure, cfg.AllowPrivate, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, c.m.requests)
	if c.challenges, err = lru.New[string, kept[*transport.Challenge]](maxSessions); err != nil {
		return nil, fmt.Errorf("making a registry client: %w", err)
	}
	if c.sessions, err = lru.New[string, *session](maxSessions); err != nil {
		return nil, fmt.Errorf("making a registry client: %w", err)
	}
	if cfg.DockerConfig != "" {
		if _, err := readDockerConfig(cfg.DockerConfig); err != nil {
			return nil, fmt.Errorf("making a registry client: %w", err)
		}
	}
	return c, nil
}

// loadRoots returns the system's certificate authorities and those in files.
func loadRoots(files []string) (*x509.CertPool, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		if len(files) == 0 {
			return nil, fmt.Errorf("loading the system's certificate authorities: %w", err)
		}
		roots = x509.NewCertPool()
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("loading certificate authorities of registries: %w", err)
		}
		if !roots.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("loading certificate authorities of registries: %s has no certificate in PEM", f)
		}
	}
	return roots, nil
}

// Probe asks the registry at host whether it is one. The answer may demand
// credentials; they are not tried.
func (c *Client) Probe(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	t, err := c.parse(host + "/probe")
	if err != nil {
		return err
	}
	if t.repo.RegistryStr() != bare(host) && t.repo.RegistryStr() != strings.ToLower(host) {
		return attest.Deny(attest.ImageReferenceInvalid, attest.Escape(host), "it is no registry's host")
	}
	if _, err := c.challenge(ctx, t.repo.Registry); err != nil {
		return away(host, err)
	}
	return nil
}

// Resolve finds what image names. A digest is taken from the name alone; a tag
// is asked of the registry, twice: what it tells to HEAD and to GET, in header
// and in body, must be one digest, for a puller might ask either way.
//
// Errors are [*attest.DenyError] of ImageReferenceInvalid, ImageNotFound or
// RegistryAway.
func (c *Client) Resolve(ctx context.Context, image string) (evidence.Subject, error) {
	t, err := c.parse(image)
	if err != nil {
		return evidence.Subject{}, err
	}
	if t.digest != "" {
		return evidence.Subject{Repository: t.repo.Name(), Digest: t.digest}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, min(c.cfg.Timeout, partTimeout))
	defer cancel()
	if _, err := c.session(ctx, t.repo); err != nil { // once, before two need it
		return evidence.Subject{}, away(image, err)
	}
	var head, body string
	g, gctx := errgroup.WithContext(ctx)
	g.Go(c.guarded(func() (err error) {
		head, err = c.headTag(gctx, t)
		return err
	}))
	g.Go(c.guarded(func() error {
		raw, err := c.getTag(gctx, t, t.tag, evidence.MaxManifest)
		body = evidence.DigestOf(raw)
		return err
	}))
	if err := g.Wait(); err != nil {
		return evidence.Subject{}, denial(image, err)
	}
	if head != "" && head != body {
		return evidence.Subject{}, attest.Deny(attest.RegistryAway, image,
			"the registry contradicts itself about the tag: HEAD names %s, GET gives %s", head, body)
	}
	return evidence.Subject{Repository: t.repo.Name(), Digest: body}, nil
}

// headTag returns the digest in the header, or "" where there is none.
func (c *Client) headTag(ctx context.Context, t target) (string, error) {
	a, err := c.do(ctx, t.repo, http.MethodHead, t.path("manifests", t.tag), manifestTypes, 0)
	if err != nil {
		return "", err
	}
	digest := a.header.Get("Docker-Content-Digest")
	if digest != "" && !evidence.ValidDigest(digest) {
		return "", contentError{fmt.Errorf("HEAD names the digest %q, which is no sha256 digest", attest.Escape(digest))}
	}
	return digest, nil
}

// getTag fetches a manifest by tag. The digest in the header, if there is one,
// must be that of the body.
func (c *Client) getTag(ctx context.Context, t target, tag string, limit int64) ([]byte, error) {
	a, err := c.do(ctx, t.repo, http.MethodGet, t.path("manifests", tag), manifestTypes, limit)
	if err != nil {
		return nil, err
	}
	return a.body, a.checkHeader(evidence.DigestOf(a.body))
}

// getDigest fetches a manifest or a blob by its digest.
func (c *Client) getDigest(ctx context.Context, t target, kind, digest string, limit int64) ([]byte, error) {
	accept := ""
	if kind == "manifests" {
		accept = manifestTypes
	}
	a, err := c.do(ctx, t.repo, http.MethodGet, t.path(kind, digest), accept, limit)
	if err != nil {
		return nil, err
	}
	if got := evidence.DigestOf(a.body); got != digest {
		return nil, contentError{fmt.Errorf("the registry gives content of digest %s for %s", got, digest)}
	}
	return a.body, a.checkHeader(digest)
}

// denial turns what a request for the image itself ended with into a refusal.
func denial(image string, err error) error {
	var status *statusError
	if errors.As(err, &status) && status.missing() {
		return attest.Deny(attest.ImageNotFound, image, "%s", status)
	}
	return away(image, err)
}

// away says that the registry, not the image, is the trouble.
func away(image string, err error) error {
	var denied *attest.DenyError
	if errors.As(err, &denied) {
		return denied
	}
	return attest.Deny(attest.RegistryAway, image, "%s", attest.Escape(describe(err)))
}
