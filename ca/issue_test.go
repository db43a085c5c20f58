package ca_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// clock is a clock that is moved by hand.
type clock struct{ now atomic.Pointer[time.Time] }

func newClock() *clock {
	c := &clock{}
	start := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	c.now.Store(&start)
	return c
}

func (c *clock) Now() time.Time { return *c.now.Load() }

func (c *clock) Move(d time.Duration) {
	next := c.Now().Add(d)
	c.now.Store(&next)
}

// spy is a key that tells of its use, and can fail.
type spy struct {
	crypto.Signer
	used   atomic.Int32
	before func() // runs before each signature
	err    error
}

func (s *spy) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.used.Add(1)
	if s.before != nil {
		s.before()
	}
	if s.err != nil {
		return nil, s.err
	}
	return s.Signer.Sign(random, digest, opts)
}

// spied makes w sign with a key that is watched from then on.
func spied(t *testing.T, w *world) *spy {
	t.Helper()
	s := &spy{Signer: catest.Key(t)}
	w.RenewUnder(t, catest.Key(t), s)
	s.used.Store(0)
	return s
}

func reasonOf(err error) attest.Reason {
	if err == nil {
		return 0
	}
	return attest.DenialOf(err).Reason
}

// nothingSigned wants neither key nor ledger touched since before.
func nothingSigned(t *testing.T, name string, w *world, s *spy, intents int) {
	t.Helper()
	if n := s.used.Load(); n != 0 {
		t.Errorf("%s: the key was used %d times", name, n)
	}
	if n := len(w.Ledger.Intents()); n != intents {
		t.Errorf("%s: %d intents in the ledger, want %d", name, n, intents)
	}
}

func TestGrantIsSpentOnce(t *testing.T) {
	c := newClock()
	w := newWorld(t, c.Now, nil)
	s := spied(t, w)
	req := ca.Request{Key: catest.Key(t).Public()}
	grant := w.grant(t)
	if _, err := w.Issue(t.Context(), grant, req); err != nil {
		t.Fatal(err)
	}
	s.used.Store(0)
	for name, grant := range map[string]*attest.Grant{"spent": grant, "none": nil, "not the registrar's": {}} {
		if _, err := w.Issue(t.Context(), grant, req); reasonOf(err) != attest.InternalError {
			t.Errorf("%s grant: %v", name, err)
		}
		nothingSigned(t, name, w, s, 1)
	}
	stale := w.grant(t)
	c.Move(attest.GrantLifetime + time.Millisecond)
	if _, err := w.Issue(t.Context(), stale, req); reasonOf(err) != attest.InternalError || !strings.Contains(err.Error(), attest.ErrGrantStale.Error()) {
		t.Errorf("stale grant: %v", err)
	}
	nothingSigned(t, "stale", w, s, 1)
	// A refusal spends it, too: facts age.
	grant = w.grant(t)
	if _, err := w.Issue(t.Context(), grant, ca.Request{CSR: []byte("none")}); reasonOf(err) != attest.CSRMalformed {
		t.Errorf("malformed request: %v", err)
	}
	if _, err := w.Issue(t.Context(), grant, req); reasonOf(err) != attest.InternalError {
		t.Errorf("grant of a refused request: %v", err)
	}
}

// One grant, many callers at once: one certificate.
func TestGrantIsSpentOnceByMany(t *testing.T) {
	w := newWorld(t, time.Now, nil)
	grant, key := w.grant(t), catest.Key(t).Public()
	var wg sync.WaitGroup
	var got atomic.Int32
	for range 32 {
		wg.Go(func() {
			if _, err := w.Issue(context.Background(), grant, ca.Request{Key: key}); err == nil {
				got.Add(1)
			}
		})
	}
	wg.Wait()
	if got.Load() != 1 || len(w.Ledger.Intents()) != 1 {
		t.Errorf("one grant gave %d certificates, with %d intents", got.Load(), len(w.Ledger.Intents()))
	}
}

func TestRefusedRequestsTouchNothing(t *testing.T) {
	w := newWorld(t, time.Now, nil)
	s := spied(t, w)
	for name, tt := range refused(t) {
		if strings.HasPrefix(name, "cut at") {
			continue
		}
		_, err := w.Issue(t.Context(), w.grant(t), ca.Request{CSR: tt.csr})
		if got := reasonOf(err); got != tt.want {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
		nothingSigned(t, name, w, s, 0)
	}
	for name, req := range map[string]ca.Request{"no key at all": {}, "weak key": {Key: catest.RSA(t, 1024).Public()}} {
		if _, err := w.Issue(t.Context(), w.grant(t), req); reasonOf(err) != attest.CSRKeyRefused {
			t.Errorf("%s: %v", name, err)
		}
		nothingSigned(t, name, w, s, 0)
	}
}

// The intent is durable before the key is used, and nothing is signed that
// could not be recorded.
func TestIntentBeforeSignature(t *testing.T) {
	w := newWorld(t, time.Now, nil)
	s := spied(t, w)
	req := ca.Request{ID: "r1", Door: "test", Key: catest.Key(t).Public()}
	s.before = func() {
		if n := len(w.Ledger.Intents()); n != 1 {
			t.Errorf("the key is used with %d intents in the ledger", n)
		}
		if n := len(w.Ledger.Outcomes()); n != 0 {
			t.Errorf("the key is used with %d outcomes in the ledger", n)
		}
	}
	w.issue(t, req)
	s.before = nil
	s.used.Store(0)
	w.Ledger.Fail(ledger.ErrUnwritable)
	if _, err := w.Issue(t.Context(), w.grant(t), req); reasonOf(err) != attest.LedgerUnwritable {
		t.Errorf("with a ledger that cannot be written: %v", err)
	}
	if _, err := w.Mint(t.Context(), ca.Serving{DNS: []string{"a.example"}}, catest.Key(t).Public()); reasonOf(err) != attest.LedgerUnwritable {
		t.Errorf("Mint with a ledger that cannot be written: %v", err)
	}
	nothingSigned(t, "ledger away", w, s, 1)
	w.Ledger.Fail(nil)
	s.err = errors.New("the token was pulled out")
	if _, err := w.Issue(t.Context(), w.grant(t), req); reasonOf(err) != attest.AuthorityNotReady {
		t.Errorf("with a key that fails: %v", err)
	}
	outcomes := w.Ledger.Outcomes()
	if o := outcomes[len(outcomes)-1]; o.Status != ledger.Failed || !strings.Contains(o.Detail, "pulled out") || o.Serial != w.Ledger.Intents()[1].Serial {
		t.Errorf("outcome = %+v", o)
	}
}

// A caller who leaves while the intent becomes durable gets nothing signed.
func TestCallerGone(t *testing.T) {
	ctx, leave := context.WithCancel(context.Background())
	w := newWorld(t, time.Now, func(cfg *ca.Config) {
		cfg.Ledger.(*catest.Ledger).OnAppend = func(context.Context, *ledger.Intent) error { leave(); return nil }
	})
	s := spied(t, w)
	_, err := w.Issue(ctx, w.grant(t), ca.Request{Key: catest.Key(t).Public()})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	nothingSigned(t, "gone", w, s, 1)
	if o := w.Ledger.Outcomes(); len(o) != 1 || o[0].Status != ledger.Abandoned {
		t.Errorf("outcomes = %+v", o)
	}
}

func TestNoSnapshot(t *testing.T) {
	w := newWorld(t, time.Now, nil)
	empty, err := ca.New(ca.Config{Leaf: catest.LeafProfile(t), Ledger: w.Ledger, Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := empty.Issue(t.Context(), w.grant(t), ca.Request{Key: catest.Key(t).Public()}); reasonOf(err) != attest.AuthorityNotReady {
		t.Errorf("issue: %v", err)
	}
	if _, err := empty.Mint(t.Context(), ca.Serving{DNS: []string{"a.example"}}, catest.Key(t).Public()); err == nil {
		t.Error("Mint without a snapshot made a certificate")
	}
	if err := empty.Install(nil); err == nil {
		t.Error("no snapshot was installed")
	}
	if _, err := ca.New(ca.Config{}); err == nil {
		t.Error("an authority of nothing was made")
	}
}

func TestLifetimes(t *testing.T) {
	c := newClock()
	var log strings.Builder
	registry := prometheus.NewRegistry()
	w := newWorld(t, c.Now, func(cfg *ca.Config) {
		cfg.Registerer, cfg.Log = registry, slog.New(slog.NewTextHandler(&log, nil))
	})
	w.RenewFor(t, time.Hour)
	key := catest.Key(t).Public()
	for _, bad := range []time.Duration{-time.Second, time.Minute} {
		if _, err := w.Issue(t.Context(), w.grant(t), ca.Request{Key: key, Lifetime: bad}); reasonOf(err) != attest.LifetimeInvalid {
			t.Errorf("a life of %s: %v", bad, err)
		}
	}
	for range 3 { // 6 h are asked for, and 1 h is left
		if got := w.issue(t, ca.Request{Key: key}); !got.NotAfter.Equal(w.Current().Issuer().NotAfter) {
			t.Errorf("a leaf of an issuer that ends at %s ends at %s", w.Current().Issuer().NotAfter, got.NotAfter)
		}
	}
	if n := counter(t, registry, "hallmark_leaves_clipped_total"); n != 3 {
		t.Errorf("%v leaves are counted as cut, want 3", n)
	}
	if n := strings.Count(log.String(), "end with their issuing CA"); n != 1 {
		t.Errorf("the log says it %d times, want once for an issuing CA:\n%s", n, log.String())
	}
	c.Move(51 * time.Minute)
	w.token = w.cluster.Add(attesttest.Pod("shop", "web-0", "web", "registry.example/web@sha256:aa"))
	if _, err := w.Issue(t.Context(), w.grant(t), ca.Request{Key: key}); reasonOf(err) != attest.IssuerEnding {
		t.Errorf("nine minutes before the issuer's end: %v", err)
	}
}

func counter(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// An identity that rests on what a tag resolved to lives for the minimum.
func TestProvisionalIsShort(t *testing.T) {
	w := newWorld(t, time.Now, nil)
	w.gate.Provisional("registry.example/web@sha256:aa")
	got := w.issue(t, ca.Request{Key: catest.Key(t).Public(), Lifetime: 12 * time.Hour})
	if life := got.NotAfter.Sub(got.IssuedAt); life != 10*time.Minute {
		t.Errorf("a provisional leaf lives for %s", life)
	}
	if i := w.Ledger.Intents(); !i[len(i)-1].Provisional {
		t.Error("the ledger does not say that it is provisional")
	}
}

// Mint makes names of hosts: there is no way to put an identity in.
func TestMintHasNoWayToAnIdentity(t *testing.T) {
	for i := range reflect.TypeFor[ca.Serving]().NumField() {
		field := reflect.TypeFor[ca.Serving]().Field(i)
		switch field.Type {
		case reflect.TypeFor[*url.URL](), reflect.TypeFor[[]*url.URL](), reflect.TypeFor[attest.Identity]():
			t.Errorf("ca.Serving has a field %s, which can hold an identity", field.Name)
		}
	}
	w := newWorld(t, time.Now, nil)
	s := spied(t, w)
	for _, names := range []ca.Serving{
		{}, {DNS: []string{webURI}}, {DNS: []string{"cluster.local/ns/shop/sa/web"}}, {DNS: []string{"*.example"}}, {DNS: []string{""}},
		{DNS: []string{"A.example"}}, {DNS: []string{"a..example"}}, {DNS: []string{"-a.example"}}, {DNS: []string{"ä.example"}},
		{DNS: []string{strings.Repeat("a", 64) + ".example"}}, {DNS: []string{strings.Repeat("a.", 127) + "example"}}, {DNS: []string{"a.example"}, IPs: []net.IP{{1, 2, 3}}},
	} {
		if _, err := w.Mint(t.Context(), names, catest.Key(t).Public()); err == nil {
			t.Errorf("Mint made a certificate for %v", names)
		}
	}
	nothingSigned(t, "names of no host", w, s, 0)
}

// The slow lints see the first of each shape under each issuer, before it is
// recorded or signed, and stop it.
func TestLintShapes(t *testing.T) {
	var mu sync.Mutex
	seen, fail := 0, false
	w := newWorld(t, time.Now, func(cfg *ca.Config) {
		cfg.LintShape = func(der []byte) error {
			mu.Lock()
			defer mu.Unlock()
			if _, err := x509.ParseCertificate(der); err != nil {
				t.Errorf("what is linted is no certificate: %v", err)
			}
			seen++
			if fail {
				return errors.New("not to my taste")
			}
			return nil
		}
	})
	for range 3 {
		w.issue(t, ca.Request{Key: catest.Key(t).Public()})
		w.issue(t, ca.Request{Key: catest.RSA(t, 2048).Public()})
	}
	if seen != 2 {
		t.Errorf("two shapes were linted %d times", seen)
	}
	w.Renew(t)
	w.issue(t, ca.Request{Key: catest.Key(t).Public()})
	if seen != 3 {
		t.Errorf("a new issuer's first was not linted: %d", seen)
	}
	fail = true
	before := len(w.Ledger.Intents())
	if _, err := w.Issue(t.Context(), w.grant(t), ca.Request{Key: catest.RSA(t, 3072).Public()}); reasonOf(err) != attest.InternalError {
		t.Errorf("a shape that the lints refuse: %v", err)
	}
	if len(w.Ledger.Intents()) != before {
		t.Error("it was recorded")
	}
}

func TestNothingIsSignedTwice(t *testing.T) {
	w := newWorld(t, time.Now, nil)
	first, second := ca.SignTwice(w.Current(), catest.Key(t).Public(), time.Now())
	if first != nil || second == nil {
		t.Errorf("first: %v, second: %v", first, second)
	}
}

// Several hundred serials: all positive, of one length, none twice.
func TestSerials(t *testing.T) {
	w := newWorld(t, time.Now, nil)
	key := catest.Key(t).Public()
	seen := map[string]bool{}
	for range 300 {
		serial := w.issue(t, ca.Request{Key: key}).Serial
		if len(serial) != 32 || serial[0] < '4' || serial[0] > '7' || seen[serial] {
			t.Fatalf("serial %s", serial)
		}
		seen[serial] = true
	}
}

// Snapshots change under issuance, and each answer is of one piece.
func TestIssueWhileSnapshotsChange(t *testing.T) {
	w := newWorld(t, time.Now, nil)
	key := catest.Key(t).Public()
	done := make(chan struct{})
	var wg sync.WaitGroup
	var sequences sync.Map
	w.Subscribe(func(s *ca.Snapshot) { sequences.Store(s.Sequence(), true) })
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				got, err := w.Issue(context.Background(), attesttest.Grant(t, w.registrar, w.token), ca.Request{Key: key})
				if err != nil {
					t.Error(err)
					return
				}
				cert, err := x509.ParseCertificate(got.DER)
				if err != nil {
					t.Error(err)
					return
				}
				if err := cert.CheckSignatureFrom(got.Snapshot.Issuer()); err != nil {
					t.Errorf("the chain that goes out is not the one that signed: %v", err)
				}
			}
		})
	}
	for range 10 {
		w.AddRoot(t)
		w.Renew(t)
	}
	close(done)
	wg.Wait()
	if _, ok := sequences.Load(w.Current().Sequence()); !ok {
		t.Error("a subscriber was not told of the last snapshot")
	}
}

func TestSnapshotRefusals(t *testing.T) {
	td, now := attesttest.Domain(t, "cluster.local"), time.Now()
	key, rootKey, issuingKey := catest.Key(t), catest.Key(t), catest.Key(t)
	root := catest.Certify(t, ca.Root, td, rootKey, ca.Parent{}, catest.RootLifetime, now)
	other := catest.Certify(t, ca.Root, td, key, ca.Parent{}, catest.RootLifetime, now)
	again := catest.Certify(t, ca.Root, td, rootKey, ca.Parent{}, catest.RootLifetime, now) // same key, so same name
	issuing := catest.Certify(t, ca.Issuing, td, issuingKey, ca.Parent{Certificate: root, Signer: rootKey}, catest.IssuingLifetime, now)
	w := newWorld(t, time.Now, nil)
	leafIssued := w.issue(t, ca.Request{Key: key.Public()})
	leaf, err := x509.ParseCertificate(leafIssued.DER)
	if err != nil {
		t.Fatal(err)
	}
	one := func(c ...*x509.Certificate) []*x509.Certificate { return c }
	good := ca.SnapshotConfig{TrustDomain: td, Sequence: 1, Signer: issuingKey, Chain: one(issuing), Roots: one(root)}
	if _, err := ca.NewSnapshot(good, now); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ca.SnapshotConfig){
		"no signer":              func(c *ca.SnapshotConfig) { c.Signer = nil },
		"no chain":               func(c *ca.SnapshotConfig) { c.Chain = nil },
		"no roots":               func(c *ca.SnapshotConfig) { c.Roots = nil },
		"no trust domain":        func(c *ca.SnapshotConfig) { c.TrustDomain = attest.TrustDomain{} },
		"another's key":          func(c *ca.SnapshotConfig) { c.Signer = key },
		"a key that cannot sign": func(c *ca.SnapshotConfig) { c.Signer = catest.RSA(t, 2048) },
		"another root alone":     func(c *ca.SnapshotConfig) { c.Roots = one(other) },
		"a root twice":           func(c *ca.SnapshotConfig) { c.Roots = one(root, root) },
		"two roots of one name":  func(c *ca.SnapshotConfig) { c.Roots = one(root, again) },
		"a leaf as a root":       func(c *ca.SnapshotConfig) { c.Roots = one(root, leaf) },
		"a leaf as the issuer":   func(c *ca.SnapshotConfig) { c.Chain, c.Signer = one(leaf), key },
		"the root in the chain":  func(c *ca.SnapshotConfig) { c.Chain = one(issuing, root) },
		"a stranger in the chain": func(c *ca.SnapshotConfig) {
			c.Chain = one(issuing, w.Current().Issuer())
		},
	} {
		cfg := good
		change(&cfg)
		if _, err := ca.NewSnapshot(cfg, now); err == nil {
			t.Errorf("%s: a snapshot was made", name)
		}
	}
	if _, err := ca.NewSnapshot(good, now.Add(catest.IssuingLifetime+time.Minute)); err == nil {
		t.Error("a snapshot was made of an issuing CA that has ended")
	}
}

func TestInstallNeverGoesBack(t *testing.T) {
	td, now := attesttest.Domain(t, "cluster.local"), time.Now()
	w := newWorld(t, time.Now, nil)
	w.AddRoot(t)
	current := w.Current()
	rootKey, issuingKey := catest.Key(t), catest.Key(t)
	root := catest.Certify(t, ca.Root, td, rootKey, ca.Parent{}, catest.RootLifetime, now)
	snapshot := func(td attest.TrustDomain, sequence uint64, roots []*x509.Certificate) *ca.Snapshot {
		s, err := ca.NewSnapshot(ca.SnapshotConfig{
			TrustDomain: td, Sequence: sequence, Signer: issuingKey, Roots: roots,
			Chain: []*x509.Certificate{catest.Certify(t, ca.Issuing, td, issuingKey, ca.Parent{Certificate: root, Signer: rootKey}, time.Hour, now)},
		}, now)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	more := append(current.Roots(), root)
	for name, s := range map[string]*ca.Snapshot{
		"a lower sequence":                   snapshot(td, current.Sequence()-1, more),
		"another bundle of the same":         snapshot(td, current.Sequence(), more),
		"another trust domain":               snapshot(attesttest.Domain(t, "other.example"), current.Sequence()+1, more),
		"another trust domain, same numbers": snapshot(attesttest.Domain(t, "other.example"), current.Sequence(), more),
	} {
		if err := w.Install(s); err == nil || w.Current() != current {
			t.Errorf("%s was installed (%v)", name, err)
		}
	}
	if err := w.Install(snapshot(td, current.Sequence()+1, more)); err != nil {
		t.Error(err)
	}
}

// A CA is made whole, or not at all.
func TestCertify(t *testing.T) {
	td, now := attesttest.Domain(t, "cluster.local"), time.Now()
	rootKey := catest.Key(t)
	root := catest.Certify(t, ca.Root, td, rootKey, ca.Parent{}, time.Hour, now)
	issuing := catest.Certify(t, ca.Issuing, td, catest.Key(t), ca.Parent{Certificate: root, Signer: rootKey}, 48*time.Hour, now)
	if !issuing.NotAfter.Equal(root.NotAfter) || issuing.NotBefore.Before(root.NotBefore) {
		t.Errorf("an issuing CA lives from %s to %s, its root from %s to %s", issuing.NotBefore, issuing.NotAfter, root.NotBefore, root.NotAfter)
	}
	for _, c := range []*x509.Certificate{root, issuing} {
		if !c.IsCA || len(c.ExtKeyUsage) > 0 || len(c.PermittedURIDomains) > 0 || len(c.URIs)+len(c.DNSNames) > 0 || c.KeyUsage&x509.KeyUsageCertSign == 0 {
			t.Errorf("%s is not as contracts S-1 to S-5 want it", c.Subject)
		}
	}
	if root.MaxPathLen != 1 || issuing.MaxPathLen != 0 || !issuing.MaxPathLenZero {
		t.Errorf("path lengths are %d and %d", root.MaxPathLen, issuing.MaxPathLen)
	}
	bare := *root
	bare.SubjectKeyId = nil
	for name, tt := range map[string]struct {
		kind   ca.AuthorityKind
		td     attest.TrustDomain
		pub    crypto.PublicKey
		parent ca.Parent
		life   time.Duration
		at     time.Time
	}{
		"no signer":             {ca.Root, td, rootKey.Public(), ca.Parent{}, time.Hour, now},
		"no kind":               {ca.AuthorityKind{}, td, rootKey.Public(), ca.Parent{Signer: rootKey}, time.Hour, now},
		"no trust domain":       {ca.Root, attest.TrustDomain{}, rootKey.Public(), ca.Parent{Signer: rootKey}, time.Hour, now},
		"no key":                {ca.Issuing, td, nil, ca.Parent{Certificate: root, Signer: rootKey}, time.Hour, now},
		"no life":               {ca.Root, td, rootKey.Public(), ca.Parent{Signer: rootKey}, 0, now},
		"signed by a stranger":  {ca.Issuing, td, rootKey.Public(), ca.Parent{Certificate: root, Signer: catest.Key(t)}, time.Hour, now},
		"root of another's key": {ca.Root, td, rootKey.Public(), ca.Parent{Signer: catest.Key(t)}, time.Hour, now},
		"parent has ended":      {ca.Issuing, td, rootKey.Public(), ca.Parent{Certificate: root, Signer: rootKey}, time.Hour, now.Add(2 * time.Hour)},
		"parent without id":     {ca.Issuing, td, rootKey.Public(), ca.Parent{Certificate: &bare, Signer: rootKey}, time.Hour, now},
		"weak signer":           {ca.Root, td, catest.RSA(t, 2048).Public(), ca.Parent{Signer: catest.RSA(t, 2048)}, time.Hour, now},
	} {
		if _, err := ca.Certify(tt.kind, tt.td, tt.pub, tt.parent, tt.life, tt.at); err == nil {
			t.Errorf("%s: a CA was made", name)
		}
	}
}
