package signing_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/policy"
)

const repo = "ghcr.io/org/app"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// signer signs as cosign does, in both formats.
type signer struct {
	key *ecdsa.PrivateKey
	pem string
}

func newSigner() *signer {
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must(x509.MarshalPKIXPublicKey(&k.PublicKey))
	return &signer{k, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
}

func (s *signer) name() string {
	der := must(x509.MarshalPKIXPublicKey(&s.key.PublicKey))
	return fmt.Sprintf("sha256:%x", sha256.Sum256(der))
}

func (s *signer) sign(message string) string {
	sum := sha256.Sum256([]byte(message))
	return base64.StdEncoding.EncodeToString(must(ecdsa.SignASN1(rand.Reader, s.key, sum[:])))
}

func (s *signer) bundle(digest string) evidence.Signature {
	return s.statement(digest, "https://sigstore.dev/cosign/sign/v1")
}

func (s *signer) statement(digest, predicateType string) evidence.Signature {
	payload := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`,
		strings.TrimPrefix(digest, "sha256:"), predicateType)
	const kind = "application/vnd.in-toto+json"
	pae := fmt.Sprintf("DSSEv1 %d %s %d %s", len(kind), kind, len(payload), payload)
	der := must(x509.MarshalPKIXPublicKey(&s.key.PublicKey))
	hint := sha256.Sum256(der)
	b := must(json.Marshal(map[string]any{
		"mediaType":            "application/vnd.dev.sigstore.bundle.v0.3+json",
		"verificationMaterial": map[string]any{"publicKey": map[string]any{"hint": base64.StdEncoding.EncodeToString(hint[:])}},
		"dsseEnvelope": map[string]any{
			"payload": base64.StdEncoding.EncodeToString([]byte(payload)), "payloadType": kind,
			"signatures": []any{map[string]any{"sig": s.sign(pae)}},
		},
	}))
	return evidence.Signature{Format: evidence.FormatBundle, Source: "referrer", Bundle: b}
}

func (s *signer) legacy(digest string) evidence.Signature {
	payload := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, repo, digest)
	return evidence.Signature{
		Format: evidence.FormatLegacy, Source: "tag .sig", Payload: []byte(payload),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": s.sign(payload)},
	}
}

// manifest is an image manifest whose configuration is named after seed.
func manifest(seed string) (raw []byte, config string) {
	config = evidence.DigestOf([]byte("config of " + seed))
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},"layers":[]}`, config), config
}

func index(children ...[]byte) []byte {
	var list []string
	for _, c := range children {
		list = append(list, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d}`, evidence.DigestOf(c), len(c)))
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}`, strings.Join(list, ","))
}

// collected is evidence of the first manifest in repository; the others are
// its children.
func collected(repository string, manifests [][]byte, signatures ...evidence.Signature) *evidence.Evidence {
	e := &evidence.Evidence{
		Subject:    evidence.Subject{Repository: repository, Digest: evidence.DigestOf(manifests[0])},
		Manifests:  map[string][]byte{},
		Signatures: signatures, Collected: time.Now(),
	}
	for _, m := range manifests {
		e.Manifests[evidence.DigestOf(m)] = m
	}
	return e
}

// image makes evidence of a one-platform image, signed by each of by.
func image(seed string, by ...*signer) *evidence.Evidence {
	raw, _ := manifest(seed)
	e := collected(repo, [][]byte{raw})
	for _, s := range by {
		e.Signatures = append(e.Signatures, s.bundle(e.Subject.Digest))
	}
	return e
}

// cip writes a policy. spec is its indented lines.
func cip(name, glob string, spec ...string) string {
	return "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata:\n  name: " + name +
		"\nspec:\n  images:\n  - glob: \"" + glob + "\"\n" + strings.Join(spec, "")
}

func authorities(list ...string) string { return "  authorities:\n" + strings.Join(list, "") }

func byKey(name string, s *signer, more ...string) string {
	return "  - name: " + name + "\n    key:\n      data: |\n        " + strings.ReplaceAll(strings.TrimSpace(s.pem), "\n", "\n        ") + "\n" + strings.Join(more, "")
}

func byStatic(name, action string) string {
	return "  - name: " + name + "\n    static:\n      action: " + action + "\n      message: because\n"
}

const warn = "  mode: warn\n"

func compile(documents ...string) *policy.Set {
	return policy.Compile([]policy.File{{Name: "all.yaml", Data: []byte(strings.Join(documents, "---\n"))}})
}

// collector is a registry that can fail.
type collector struct {
	mu       sync.Mutex // guards all below
	evidence map[evidence.Subject]*evidence.Evidence
	tags     map[string]string
	away     error
	hold     chan struct{} // questions wait for its end
	held     string        // where set, those to this repository only
	let      []string      // repositories that never wait
	asked    map[string]int
	arrived  chan string
	busy     atomic.Int32
	mostBusy atomic.Int32
}

func newCollector(all ...*evidence.Evidence) *collector {
	c := &collector{evidence: map[evidence.Subject]*evidence.Evidence{}, tags: map[string]string{}, asked: map[string]int{}, arrived: make(chan string, 4096)}
	for _, e := range all {
		c.push(e)
	}
	return c
}

func (c *collector) push(e *evidence.Evidence) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.evidence[e.Subject] = e
}

func (c *collector) tag(image, digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tags[image] = digest
}

func (c *collector) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = err
}

// block lets questions to repository ("" for all but let) wait until release.
func (c *collector) block(repository string, let ...string) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan struct{})
	c.hold, c.held, c.let = ch, repository, let
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.hold = nil
		close(ch)
	})
}

func (c *collector) count(question string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[question]
}

func (c *collector) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, i := range maps.All(c.asked) {
		n += i
	}
	return n
}

func (c *collector) enter(ctx context.Context, question, repository string) error {
	n := c.busy.Add(1)
	defer c.busy.Add(-1)
	for {
		most := c.mostBusy.Load()
		if n <= most || c.mostBusy.CompareAndSwap(most, n) {
			break
		}
	}
	c.mu.Lock()
	c.asked[question]++
	hold := c.hold
	if c.held != "" && c.held != repository || slices.Contains(c.let, repository) {
		hold = nil
	}
	c.mu.Unlock()
	select {
	case c.arrived <- question:
	default:
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return attest.Deny(attest.RegistryAway, repository, "%v", ctx.Err())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.away
}

func (c *collector) Resolve(ctx context.Context, image string) (evidence.Subject, error) {
	parsed, err := policy.ParseImage(image)
	if err != nil {
		return evidence.Subject{}, attest.Deny(attest.ImageReferenceInvalid, "", "%v", err)
	}
	if err := c.enter(ctx, image, parsed.Repository()); err != nil {
		return evidence.Subject{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	digest, ok := c.tags[image]
	if !ok {
		return evidence.Subject{}, attest.Deny(attest.ImageNotFound, image, "no such tag")
	}
	return evidence.Subject{Repository: parsed.Repository(), Digest: digest}, nil
}

func (c *collector) Collect(ctx context.Context, s evidence.Subject) (*evidence.Evidence, error) {
	if err := c.enter(ctx, s.String(), s.Repository); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.evidence[s]
	if !ok {
		return nil, attest.Deny(attest.ImageNotFound, s.String(), "no such manifest")
	}
	fresh := *e
	fresh.Collected = time.Now()
	return &fresh, nil
}

// gate is a gate under test, with what it rests on.
type gate struct {
	*signing.Gate
	registry *collector
	set      atomic.Pointer[policy.Set]
	store    *evidence.Store
	dir      string
	metrics  *prometheus.Registry
	feed     *attest.Feed
	changes  chan attest.Change
	stop     func()
}

// newGate starts a gate that enforces. It is stopped at the test's end, or by
// stop.
func newGate(t testing.TB, registry *collector, set *policy.Set, change ...func(*signing.Config)) *gate {
	t.Helper()
	return newGateIn(t, t.TempDir(), registry, set, change...)
}

func newGateIn(t testing.TB, dir string, registry *collector, set *policy.Set, change ...func(*signing.Config)) *gate {
	t.Helper()
	g := &gate{registry: registry, dir: dir, metrics: prometheus.NewRegistry(), feed: &attest.Feed{}, changes: make(chan attest.Change, 2000)}
	g.set.Store(set)
	log := slog.New(slog.DiscardHandler)
	var err error
	g.store, err = evidence.NewStore(evidence.StoreConfig{Dir: dir, Keep: 24 * time.Hour, MaxBytes: 1 << 30, Registerer: g.metrics, Log: log, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	g.feed.Subscribe(func(c attest.Change) { g.changes <- c })
	cfg := signing.Config{
		Mode: signing.Enforce, Infrastructure: signing.Audit, Accounts: []string{"istio-system/ztunnel"},
		ResolveTags: true, Policies: g.set.Load, Collector: registry, Store: g.store, Feed: g.feed,
		Registerer: g.metrics, Log: log, Now: time.Now,
	}
	for _, fn := range change {
		fn(&cfg)
	}
	if g.Gate, err = signing.NewGate(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	g.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("running the gate: %v", err)
		}
	})
	t.Cleanup(g.stop)
	return g
}

// apply puts other policies in force and tells the gate.
func (g *gate) apply(set *policy.Set) {
	g.set.Store(set)
	g.Reconsider()
}

func pod(containers ...attest.Container) *attest.Pod {
	for i := range containers {
		if containers[i].Name == "" {
			containers[i].Name = fmt.Sprintf("c%d", i)
		}
	}
	return &attest.Pod{
		Cluster: "Kubernetes", Ref: attest.PodRef{Namespace: "shop", Name: "cart", UID: "uid"}, ServiceAccount: "cart",
		Phase: "Running", Labels: map[string]string{"app": "cart"}, Containers: containers,
	}
}

func runs(image, imageID string) attest.Container {
	return attest.Container{Image: image, ImageID: imageID, Running: true}
}

func pinned(e *evidence.Evidence) attest.Container {
	return runs(e.Subject.String(), e.Subject.String())
}

// check asks the gate and returns the reason of the refusal, if it is one.
func (g *gate) check(t testing.TB, p *attest.Pod) ([]attest.ImageEvidence, *attest.DenyError) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	found, err := g.Check(ctx, []*attest.Pod{p})
	if err != nil {
		return nil, attest.DenialOf(err)
	}
	return found, nil
}

func wantPass(t testing.TB, found []attest.ImageEvidence, refusal *attest.DenyError) {
	t.Helper()
	if refusal != nil {
		t.Fatalf("refused: %v", refusal)
	}
	for _, e := range found {
		if e.Verdict != attest.VerdictPass {
			t.Fatalf("%s: %s %s, want pass", e.Image, e.Verdict, e.Reason)
		}
	}
}

func wantReason(t testing.TB, refusal *attest.DenyError, want attest.Reason) {
	t.Helper()
	if refusal == nil {
		t.Fatalf("passed, want %s", want)
	}
	if refusal.Reason != want {
		t.Fatalf("refused as %v, want %s", refusal, want)
	}
}
