package signing_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/policy"
)

// turned returns what was announced, once the gate has followed the policies.
func (g *gate) turned() map[attest.Change]int {
	synctest.Wait()
	all := map[attest.Change]int{}
	for {
		select {
		case c := <-g.changes:
			all[c]++
		default:
			return all
		}
	}
}

// A policy change makes the decisions anew, from evidence, and announces the
// digests that turned, each once, and no others.
func TestPolicyChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := newSigner(), newSigner()
		byA, byB, byBoth := image("a", a), image("b", b), image("both", a, b)
		tag := repo + ":v1"
		registry := newCollector(byA, byB, byBoth)
		registry.tag(tag, byA.Subject.Digest)
		g := newGate(t, registry, compile(cip("signed", "ghcr.io/**", authorities(byKey("a", a), byKey("b", b)))))
		all := pod(pinned(byA), pinned(byB), pinned(byBoth), runs(repo+":x", byA.Subject.String()), runs(tag, ""))
		for range 2 {
			found, refusal := g.check(t, all)
			wantPass(t, found, refusal)
		}
		registry.fail(away)
		asked := registry.total()

		expect := func(what string, want ...attest.Change) {
			t.Helper()
			got := g.turned()
			if len(got) != len(want) {
				t.Errorf("%s: announced %v, want %v", what, got, want)
			}
			for _, c := range want {
				if got[c] != 1 {
					t.Errorf("%s: %v was announced %d times", what, c, got[c])
				}
			}
		}
		digest := func(e *evidence.Evidence) attest.Change { return attest.Change{Digest: e.Subject.Digest} }

		g.Reconsider()
		expect("nothing changed")
		g.apply(compile("# a comment\n" + cip("signed", "ghcr.io/**", authorities(byKey("a", a), byKey("b", b)))))
		expect("a comment")
		g.apply(compile(cip("signed", "ghcr.io/**", authorities(byKey("b", b), byKey("a", a))), cip("other", "quay.io/**", authorities(byStatic("f", "fail")))))
		expect("another order, and another name")
		g.apply(compile(cip("signed", "ghcr.io/**", authorities(byKey("b", b)))))
		expect("a signer is withdrawn", digest(byA))
		_, refusal := g.check(t, pod(pinned(byA)))
		wantReason(t, refusal, attest.ImageSignatureInvalid)
		found, refusal := g.check(t, pod(pinned(byB), pinned(byBoth)))
		wantPass(t, found, refusal)
		g.apply(compile(cip("signed", "ghcr.io/**", authorities(byKey("a", a), byKey("b", b)))))
		expect("and is back", digest(byA))
		g.apply(compile(cip("signed", "ghcr.io/**", authorities(byKey("a", a), byKey("b", b)), warn), cip("strict", "**", authorities(byKey("b", b)), warn)))
		expect("a warning", digest(byA))
		g.apply(compile("{"))
		expect("a broken file", digest(byA), digest(byB), digest(byBoth))
		g.apply(compile())
		expect("and no policy: refused before as now")
		if n := registry.total(); n != asked {
			t.Errorf("%d questions to the registry for policy changes", n-asked)
		}
	})
}

// Where it is not known of all that was decided, everybody is asked.
func TestPolicyChangeEverybody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, newCollector(), compile(cip("all", "**", authorities(byStatic("s", "pass")))))
		for i := range 1001 {
			e := image(fmt.Sprint(i))
			found, refusal := g.check(t, pod(pinned(e)))
			wantPass(t, found, refusal)
		}
		g.apply(compile(cip("all", "**", authorities(byStatic("s", "fail")))))
		if got := g.turned(); len(got) != 1 || got[attest.Change{}] != 1 {
			t.Errorf("%d changes, want one that touches everybody", len(got))
		}
		// A decision of which no digest is known.
		g.apply(compile(cip("all", "**", authorities(byStatic("s", "pass")))))
		g.turned()
		found, refusal := g.check(t, pod(runs("quay.io/a/b:v1", "")))
		wantPass(t, found, refusal)
		g.apply(compile(cip("all", "**", authorities(byStatic("s", "pass"))), cip("quay", "quay.io/**", authorities(byStatic("s", "fail")))))
		if got := g.turned(); len(got) != 1 || got[attest.Change{}] != 1 {
			t.Errorf("%v, want one that touches everybody", got)
		}
	})
}

// Pods of one image under policies that look at labels: each has its own
// decision, and a change is announced for all of them.
func TestPolicySelector(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSigner()
		e := image("a", s)
		selected := func(label string) string {
			return "  match:\n  - {version: v1, resource: pods, selector: {matchLabels: {app: " + label + "}}}\n"
		}
		base := cip("base", "**", authorities(byKey("k", s)))
		g := newGate(t, newCollector(e), compile(base, cip("no-web", "**", authorities(byStatic("f", "fail")), selected("web"))))
		cart, web := pod(pinned(e)), pod(pinned(e))
		web.Labels = map[string]string{"app": "web"}
		for range 2 {
			found, refusal := g.check(t, cart)
			wantPass(t, found, refusal)
			_, refusal = g.check(t, web)
			wantReason(t, refusal, attest.ImagePolicyFailed)
		}
		g.apply(compile(base, cip("no-web", "**", authorities(byStatic("f", "fail")), selected("other"))))
		if got := g.turned(); got[attest.Change{Digest: e.Subject.Digest}] != 1 {
			t.Errorf("announced %v", got)
		}
		found, refusal := g.check(t, web)
		wantPass(t, found, refusal)
	})
}

// An answer that a change of the policies overtakes is given under the new
// ones.
func TestPolicyChangeOvertakes(t *testing.T) {
	t.Parallel()
	s := newSigner()
	e := image("a", s)
	registry := newCollector(e)
	release := registry.block("")
	g := newGate(t, registry, signedBy(s))
	answer := make(chan *attest.DenyError, 1)
	go func() {
		_, refusal := g.check(t, pod(pinned(e)))
		answer <- refusal
	}()
	<-registry.arrived
	g.apply(compile(cip("stop", "**", authorities(byStatic("f", "fail")))))
	release()
	wantReason(t, <-answer, attest.ImagePolicyFailed)
}

// Once a day, at a time of its own, the registry is asked for newer signatures;
// and what it hides takes nothing back.
func TestDailyRefresh(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := newSigner(), newSigner()
		e := image("a", a)
		registry := newCollector(e)
		g := newGate(t, registry, signedBy(a))
		renew := func() {
			t.Helper()
			found, refusal := g.check(t, pod(pinned(e)))
			wantPass(t, found, refusal)
		}
		renew()
		hours := func(n int) {
			t.Helper()
			for range n {
				<-time.After(time.Hour)
				renew()
			}
		}
		hours(21)
		if n := registry.total(); n != 1 {
			t.Fatalf("%d fetches within 21 h, want 1", n)
		}
		registry.push(image("a", b)) // signed anew, and the old signature deleted
		hours(6)
		if n := registry.total(); n != 2 {
			t.Fatalf("%d fetches within 27 h, want 2", n)
		}
		// Both signatures count now.
		g.apply(compile(cip("both", "**", authorities(byKey("a", a))), cip("new", "**", authorities(byKey("b", b)))))
		renew()
		registry.fail(away)
		hours(24)
		if n := registry.total(); n < 3 || n > 8 {
			t.Errorf("%d fetches, want a few: once an hour while it fails", n)
		}
		// Nobody runs it any more: nothing is asked.
		registry.fail(nil)
		<-time.After(48 * time.Hour)
		before := registry.total()
		<-time.After(72 * time.Hour)
		if n := registry.total(); n != before {
			t.Errorf("%d fetches for what nobody runs", n-before)
		}
	})
}

// As many signatures as are kept, that nobody wants, push out none that somebody
// does, whichever came first.
func TestRefreshKeepsWanted(t *testing.T) {
	t.Parallel()
	a, stranger := newSigner(), newSigner()
	wanted, junk := image("a", a), image("a")
	for range evidence.MaxBundles {
		junk.Signatures = append(junk.Signatures, stranger.bundle(junk.Subject.Digest))
	}
	signed := cip("signed", "**", authorities(byKey("a", a)))
	strict := cip("strict", "**", authorities(byKey("nobody", newSigner())))
	for name, order := range map[string][2]*evidence.Evidence{"junk first": {junk, wanted}, "junk last": {wanted, junk}} {
		registry := newCollector(order[0])
		clock := newClock()
		g := newGate(t, registry, compile(signed), clock.use)
		if _, refusal := g.check(t, pod(pinned(wanted))); (refusal == nil) != (order[0] == wanted) {
			t.Fatalf("%s: %v", name, refusal)
		}
		// A refusal makes the gate look again.
		registry.push(order[1])
		g.set.Store(compile(signed, strict))
		clock.advance(time.Minute)
		_, refusal := g.check(t, pod(pinned(wanted)))
		wantReason(t, refusal, attest.ImageSignatureInvalid)
		if n := registry.total(); n != 2 {
			t.Fatalf("%s: %d fetches, want 2", name, n)
		}
		g.set.Store(compile(signed))
		found, refusal := g.check(t, pod(pinned(wanted)))
		wantPass(t, found, refusal)
	}
}

// BenchmarkCheck is a renewal: five containers whose decisions are at hand.
func BenchmarkCheck(b *testing.B) {
	s := newSigner()
	var containers []attest.Container
	registry := newCollector()
	for i := range 5 {
		e := image(fmt.Sprint(i), s)
		registry.push(e)
		containers = append(containers, pinned(e))
	}
	g := newGate(b, registry, compile(cip("one", "ghcr.io/**", authorities(byKey("k", s))), cip("two", "**", authorities(byKey("k", s)))))
	p := pod(containers...)
	found, refusal := g.check(b, p)
	wantPass(b, found, refusal)
	pods := []*attest.Pod{p}
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Check(ctx, pods); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecide is one image with one signature, decided anew.
func BenchmarkDecide(b *testing.B) {
	s := newSigner()
	e := image("a", s)
	img := must(policy.ParseImage(e.Subject.String()))
	q := signing.Question{Image: img, Named: have(e), Policies: signedBy(s).Match(img, policy.Facts{})}
	b.ReportAllocs()
	for b.Loop() {
		if d := signing.Decide(q); d.Outcome != signing.Allow {
			b.Fatal(d)
		}
	}
}
