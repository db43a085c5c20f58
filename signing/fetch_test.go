package signing_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing"
	"github.com/hallmark-ca/hallmark/signing/evidence"
)

// clock is a gate's time, moved by hand.
type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *clock) use(cfg *signing.Config) { cfg.Now = c.Now }

func newGateConfig(t *testing.T) signing.Config {
	t.Helper()
	var cfg signing.Config
	newGate(t, newCollector(), signedBy(newSigner()), func(c *signing.Config) { cfg = *c })
	cfg.Registerer = nil
	return cfg
}

// A hundred pods of one image cause one fetch.
func TestFetchJoins(t *testing.T) {
	t.Parallel()
	s := newSigner()
	e := image("a", s)
	registry := newCollector(e)
	release := registry.block("")
	g := newGate(t, registry, signedBy(s))
	var checks sync.WaitGroup
	for range 100 {
		checks.Go(func() {
			found, refusal := g.check(t, pod(pinned(e)))
			if refusal != nil || found[0].Verdict != attest.VerdictPass {
				t.Errorf("%v %+v", refusal, found)
			}
		})
	}
	<-registry.arrived
	release()
	checks.Wait()
	if n := registry.total(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
}

// The answer is there within the request's bound; the fetch goes on, and the
// retry finds it ready.
func TestFetchGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSigner()
		e := image("a", s)
		registry := newCollector(e)
		release := registry.block("")
		g := newGate(t, registry, signedBy(s))
		for name, row := range map[string]struct {
			limit, want time.Duration
		}{
			"no deadline": {0, 4500 * time.Millisecond},
			"a long one":  {10 * time.Second, 4500 * time.Millisecond},
			"5 s":         {5 * time.Second, 4500 * time.Millisecond},
			"a short one": {time.Second, 750 * time.Millisecond},
			"no margin":   {time.Millisecond, 0},
		} {
			ctx, cancel := context.WithCancel(context.Background())
			if row.limit > 0 {
				ctx, cancel = context.WithTimeout(context.Background(), row.limit)
			}
			start := time.Now()
			_, err := g.Check(ctx, []*attest.Pod{pod(pinned(e))})
			cancel()
			if err == nil || attest.DenialOf(err).Reason != attest.EvidencePending {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(start); took != row.want {
				t.Errorf("%s: answered after %s, want %s", name, took, row.want)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := g.Check(ctx, []*attest.Pod{pod(pinned(e))}); err == nil || attest.DenialOf(err).Reason != attest.EvidencePending {
			t.Errorf("the caller has left: %v", err)
		}
		release()
		synctest.Wait()
		found, refusal := g.check(t, pod(pinned(e)))
		wantPass(t, found, refusal)
		if n := registry.total(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

// A registry that hangs is given up after 30 s, and asked again.
func TestFetchTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSigner()
		e := image("a", s)
		registry := newCollector(e)
		release := registry.block("")
		g := newGate(t, registry, signedBy(s))
		_, refusal := g.check(t, pod(pinned(e)))
		wantReason(t, refusal, attest.EvidencePending)
		<-time.After(26 * time.Second)
		_, refusal = g.check(t, pod(pinned(e)))
		wantReason(t, refusal, attest.RegistryAway)
		release()
		<-time.After(3 * time.Second)
		found, refusal := g.check(t, pod(pinned(e)))
		wantPass(t, found, refusal)
	})
}

// A refusal holds for 10 s, however often it is asked; then the registry is
// asked again, and what was signed meanwhile passes.
func TestFetchAfterRefusal(t *testing.T) {
	t.Parallel()
	s := newSigner()
	bare, signed := image("a"), image("a", s)
	registry := newCollector(bare)
	clock := newClock()
	g := newGate(t, registry, signedBy(s), clock.use)
	for range 50 {
		_, refusal := g.check(t, pod(pinned(bare)))
		wantReason(t, refusal, attest.ImageUnsigned)
	}
	if n := registry.total(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
	registry.push(signed)
	clock.advance(9 * time.Second)
	_, refusal := g.check(t, pod(pinned(bare)))
	wantReason(t, refusal, attest.ImageUnsigned)
	clock.advance(2 * time.Second)
	found, refusal := g.check(t, pod(pinned(bare)))
	wantPass(t, found, refusal)
	if n := registry.total(); n != 2 {
		t.Errorf("%d fetches, want 2", n)
	}
	// From here on nothing is asked any more, but once a day.
	clock.advance(23 * time.Hour)
	found, refusal = g.check(t, pod(pinned(bare)))
	wantPass(t, found, refusal)
	if n := registry.total(); n != 2 {
		t.Errorf("%d fetches, want 2", n)
	}
}

// Evidence that the registry could not give whole is no verdict, and is asked
// for again.
func TestFetchIncomplete(t *testing.T) {
	t.Parallel()
	s := newSigner()
	signed := image("a", s)
	part := image("a", newSigner())
	part.Incomplete = true
	registry := newCollector(part)
	clock := newClock()
	g := newGate(t, registry, signedBy(s), clock.use)
	_, refusal := g.check(t, pod(pinned(signed)))
	wantReason(t, refusal, attest.RegistryAway)
	registry.push(signed)
	clock.advance(11 * time.Second)
	found, refusal := g.check(t, pod(pinned(signed)))
	wantPass(t, found, refusal)
}

// A refusal stands on evidence while the registry is away: a fault does not
// turn it into something else.
func TestFetchRefusalStands(t *testing.T) {
	t.Parallel()
	s := newSigner()
	bare := image("a")
	clock := newClock()
	g := newGate(t, newCollector(bare), signedBy(s), clock.use)
	_, refusal := g.check(t, pod(pinned(bare)))
	wantReason(t, refusal, attest.ImageUnsigned)
	g.registry.fail(away)
	clock.advance(time.Minute)
	_, refusal = g.check(t, pod(pinned(bare)))
	wantReason(t, refusal, attest.ImageUnsigned)
}

// The registry away and the server restarted: digests with evidence pass, new
// ones are refused with their own reason.
func TestFetchRestart(t *testing.T) {
	t.Parallel()
	s := newSigner()
	child, config := manifest("arm")
	manifests := [][]byte{index(child), child}
	idx := collected(repo, manifests, s.bundle(evidence.DigestOf(manifests[0])))
	old := image("old", s)
	registry := newCollector(old, idx)
	dir := t.TempDir()
	g := newGateIn(t, dir, registry, signedBy(s))
	running := func() *attest.Pod {
		return pod(pinned(old), runs(repo+":v1", old.Subject.String()), runs(idx.Subject.String(), repo+"@"+evidence.DigestOf(child)), runs(idx.Subject.String(), config))
	}
	found, refusal := g.check(t, running())
	wantPass(t, found, refusal)
	g.stop()

	registry.fail(away)
	asked := registry.total()
	g = newGateIn(t, dir, registry, signedBy(s))
	found, refusal = g.check(t, running())
	wantPass(t, found, refusal)
	if n := registry.total(); n != asked {
		t.Errorf("%d questions to the registry", n-asked)
	}
	_, refusal = g.check(t, pod(pinned(image("new", s))))
	wantReason(t, refusal, attest.RegistryAway)
	_, refusal = g.check(t, pod(runs(repo+":v1", "")))
	wantReason(t, refusal, attest.RegistryAway)
	// A policy edit beside it needs no registry either.
	g.set.Store(compile(cip("signed", "ghcr.io/org/**", authorities(byKey("next", newSigner()), byKey("release", s)))))
	found, refusal = g.check(t, running())
	wantPass(t, found, refusal)
}

// So many questions at once, so many of one registry, so many in all; one
// registry that hangs holds up no other.
func TestFetchBounds(t *testing.T) {
	t.Parallel()
	s := newSigner()
	elsewhere := collected("quay.io/org/app", [][]byte{must2(manifest("a"))}, s.bundle(image("a").Subject.Digest))
	registry := newCollector(elsewhere)
	var many []*evidence.Evidence
	for i := range 30 {
		e := image(fmt.Sprint(i), s)
		registry.push(e)
		many = append(many, e)
	}
	release := registry.block(repo)
	g := newGate(t, registry, compile(cip("signed", "**", authorities(byKey("release", s)))), func(c *signing.Config) {
		c.Parallel, c.Queue, c.Wait = 4, 20, 10*time.Millisecond
	})
	reasons := map[attest.Reason]int{}
	for i, e := range many {
		_, refusal := g.check(t, in(fmt.Sprint("ns", i), pod(pinned(e))))
		if refusal == nil {
			t.Fatal("passed without evidence")
		}
		reasons[refusal.Reason]++
	}
	if reasons[attest.EvidencePending] != 20 || reasons[attest.Overloaded] != 10 {
		t.Errorf("%v, want 20 pending and 10 overloaded", reasons)
	}
	release()
	for i := 0; ; i++ {
		_, refusal := g.check(t, pod(pinned(many[i%30])))
		if refusal == nil && i >= 30 {
			break
		}
	}
	if most := registry.mostBusy.Load(); most > 2 {
		t.Errorf("%d questions to one registry at once, want 2", most)
	}

	release = registry.block(repo)
	defer release()
	for i := range 10 {
		fresh := image(fmt.Sprint("fresh", i), s)
		_, refusal := g.check(t, in(fmt.Sprint("ns", i), pod(pinned(fresh))))
		wantReason(t, refusal, attest.EvidencePending)
	}
	found, refusal := g.check(t, pod(pinned(elsewhere)))
	for refusal != nil && refusal.Reason == attest.EvidencePending {
		found, refusal = g.check(t, pod(pinned(elsewhere)))
	}
	wantPass(t, found, refusal)
}

// A disk that takes nothing costs the memory of a restart, and no pod its
// identity.
func TestFetchDiskFull(t *testing.T) {
	t.Parallel()
	s := newSigner()
	e := image("a", s)
	g := newGate(t, newCollector(e), signedBy(s))
	if err := os.RemoveAll(g.dir); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		found, refusal := g.check(t, pod(pinned(e)))
		wantPass(t, found, refusal)
	}
	g.set.Store(compile(cip("other", "**", authorities(byKey("release", s)))))
	found, refusal := g.check(t, pod(pinned(e)))
	wantPass(t, found, refusal)
	if n := g.registry.total(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
}

// Evidence on disk is believed as little as a registry: what was changed there
// is fetched anew.
func TestFetchTamperedDisk(t *testing.T) {
	t.Parallel()
	s := newSigner()
	e := image("a", s)
	dir := t.TempDir()
	registry := newCollector(e)
	g := newGateIn(t, dir, registry, signedBy(s))
	found, refusal := g.check(t, pod(pinned(e)))
	wantPass(t, found, refusal)
	g.stop()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	if err := os.WriteFile(dir+"/"+entries[0].Name(), []byte(`{"version":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	registry.push(image("a")) // and the registry has no signature any more
	g = newGateIn(t, dir, registry, signedBy(s))
	_, refusal = g.check(t, pod(pinned(e)))
	wantReason(t, refusal, attest.ImageUnsigned)
}

// What waits when the gate stops is told so.
func TestFetchStop(t *testing.T) {
	t.Parallel()
	s := newSigner()
	e := image("a", s)
	registry := newCollector(e)
	defer registry.block("")()
	g := newGate(t, registry, signedBy(s))
	answer := make(chan *attest.DenyError, 1)
	go func() {
		_, refusal := g.check(t, pod(pinned(e)))
		answer <- refusal
	}()
	<-registry.arrived
	g.stop()
	if refusal := <-answer; refusal == nil || refusal.Reason.Kind() != attest.KindUnavailable {
		t.Errorf("%v", refusal)
	}
}

// in puts a pod into another namespace.
func in(namespace string, p *attest.Pod) *attest.Pod {
	p.Ref.Namespace = namespace
	return p
}

// One pod named a thousand images at registries that hang, and no new image of
// anybody else was looked for: neither was there room in the queue, nor a turn.
func TestPodOfManyImagesHoldsUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSigner()
		good := collected("ghcr.io/good/app", [][]byte{must2(manifest("good"))}, s.bundle(image("good").Subject.Digest))
		claimed := collected("ghcr.io/claimed/app", [][]byte{must2(manifest("claimed"))}, s.bundle(image("claimed").Subject.Digest))
		registry := newCollector(good, claimed)
		g := newGate(t, registry, compile(cip("signed", "**", authorities(byKey("release", s)))))
		defer registry.block("", good.Subject.Repository, claimed.Subject.Repository)()
		var containers []attest.Container
		for i := range 1100 {
			containers = append(containers, pinned(collected(fmt.Sprintf("r%d.example/app", i%50), [][]byte{must2(manifest(fmt.Sprint(i)))})))
			if i == 100 { // what another is going to run
				containers = append(containers, pinned(claimed))
			}
		}
		_, refusal := g.check(t, in("evil", pod(containers...)))
		wantReason(t, refusal, attest.Overloaded)
		synctest.Wait()
		for _, e := range []*evidence.Evidence{good, claimed} {
			start := time.Now()
			found, refusal := g.check(t, pod(pinned(e)))
			wantPass(t, found, refusal)
			if took := time.Since(start); took > time.Second {
				t.Errorf("%s: it took %s", e.Subject, took)
			}
		}
	})
}

// Evidence that took a second to verify, and that its registry never gave whole,
// was verified anew at each request; and one check of many such images went on
// for minutes after its time.
func TestDearEvidenceIsDecidedOnceInAWhile(t *testing.T) {
	t.Parallel()
	part := image("a", newSigner())
	part.Incomplete = true
	clock := newClock()
	g := newGate(t, newCollector(part), signedBy(newSigner()), clock.use)
	for range 20 {
		_, refusal := g.check(t, pod(pinned(part)))
		wantReason(t, refusal, attest.RegistryAway)
	}
	if n := decided(t, g); n != 2 { // before the fetch, and with what it brought
		t.Errorf("decided %d times, want 2", n)
	}
	clock.advance(3 * time.Second)
	_, refusal := g.check(t, pod(pinned(part)))
	wantReason(t, refusal, attest.RegistryAway)
	if n := decided(t, g); n != 3 {
		t.Errorf("decided %d times, want 3", n)
	}
}

// A caller that has left has nothing verified for it.
func TestNothingIsVerifiedForACallerThatLeft(t *testing.T) {
	t.Parallel()
	s := newSigner()
	e := image("a", s)
	g := newGate(t, newCollector(e), signedBy(s))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := g.Check(ctx, []*attest.Pod{pod(pinned(e))})
	if err == nil || attest.DenialOf(err).Reason != attest.EvidencePending {
		t.Errorf("%v, want EvidencePending", err)
	}
	if n := g.registry.total(); n != 0 {
		t.Errorf("%d questions were asked for it", n)
	}
	found, refusal := g.check(t, pod(pinned(e)))
	wantPass(t, found, refusal)
}

// decided returns how many decisions were made that were not at hand.
func decided(t *testing.T, g *gate) uint64 {
	t.Helper()
	families, err := g.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "hallmark_image_decision_seconds" {
			return f.GetMetric()[0].GetHistogram().GetSampleCount()
		}
	}
	t.Fatal("no such metric")
	return 0
}

// Whoever has much to decide waits for itself, and takes no turn of others.
func TestTurnsAreSharedOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		take := signing.NewTurns(2)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		release, ok := take(short, "greedy")
		if !ok {
			t.Fatal("no turn, and all are free")
		}
		for range 100 {
			go take(short, "greedy")
		}
		synctest.Wait()
		start := time.Now()
		other, ok := take(short, "other")
		if took := time.Since(start); !ok || took > 0 {
			t.Errorf("another waited %s for its turn: %t", took, ok)
		}
		if _, ok := take(short, "third"); ok {
			t.Error("three turns at once, want 2")
		}
		other()
		release()
		if _, ok := take(t.Context(), "greedy"); !ok {
			t.Error("turns that were given up in vain, or given back, are gone")
		}
	})
}

// A panic over what a registry sent would have ended the process, and its keys
// with it.
func TestPanicOfACollectorIsNoVerdict(t *testing.T) {
	t.Parallel()
	e := image("a", newSigner())
	g := newGate(t, newCollector(), signedBy(newSigner()), func(c *signing.Config) { c.Collector = panicking{} })
	for _, c := range []attest.Container{pinned(e), runs(repo+":v1", "")} {
		_, refusal := g.check(t, pod(c))
		wantReason(t, refusal, attest.InternalError)
	}
}

type panicking struct{}

func (panicking) Resolve(context.Context, string) (evidence.Subject, error) { panic("a tag") }
func (panicking) Collect(context.Context, evidence.Subject) (*evidence.Evidence, error) {
	panic("an image")
}
