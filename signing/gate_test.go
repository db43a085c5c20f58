package signing_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/policy"
)

var away = attest.Deny(attest.RegistryAway, "ghcr.io", "connection refused")

func signedBy(s *signer) *policy.Set {
	return compile(cip("signed", "ghcr.io/org/**", authorities(byKey("release", s))))
}

func TestGatePasses(t *testing.T) {
	t.Parallel()
	s := newSigner()
	e := image("a", s)
	g := newGate(t, newCollector(e), signedBy(s))
	found, refusal := g.check(t, pod(attest.Container{Name: "app", Image: e.Subject.String(), ImageID: e.Subject.String(), Running: true}))
	wantPass(t, found, refusal)
	want := []attest.ImageEvidence{{
		Container: "app", Image: e.Subject.String(), Digest: e.Subject.Digest, Verdict: attest.VerdictPass,
		Policies: []string{"signed"}, Authority: "signed/release", Signer: s.name(),
	}}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for range 100 {
		found, refusal = g.check(t, pod(pinned(e)))
		wantPass(t, found, refusal)
	}
	if n := g.registry.total(); n != 1 {
		t.Errorf("%d questions to the registry, want 1", n)
	}
}

func TestGateEveryContainerCounts(t *testing.T) {
	t.Parallel()
	s := newSigner()
	good, bad := image("good", s), image("bad")
	bad2 := func(k attest.ContainerKind, running bool) attest.Container {
		c := pinned(bad)
		c.Name, c.Kind, c.Running = "evil", k, running
		return c
	}
	g := newGate(t, newCollector(good, bad), signedBy(s))
	for _, row := range []struct {
		name string
		c    attest.Container
		want attest.Reason
	}{
		{"app", bad2(attest.ContainerApp, true), attest.ImageUnsigned},
		{"init, ended", bad2(attest.ContainerInit, false), attest.ImageUnsigned},
		{"sidecar", bad2(attest.ContainerSidecar, true), attest.ImageUnsigned},
		{"volume", bad2(attest.ContainerVolume, false), attest.ImageUnsigned},
		{"ephemeral, running", bad2(attest.ContainerEphemeral, true), attest.ImageUnsigned},
		{"ephemeral, ended", bad2(attest.ContainerEphemeral, false), 0},
	} {
		found, refusal := g.check(t, pod(pinned(good), row.c, pinned(good)))
		if row.want == 0 {
			wantPass(t, found, refusal)
			if len(found) != 2 {
				t.Errorf("%s: %d entries, want the 2 that count", row.name, len(found))
			}
			continue
		}
		if refusal == nil || refusal.Reason != row.want {
			t.Errorf("%s: %v, want %s", row.name, refusal, row.want)
			continue
		}
		for _, part := range []string{"pod shop/cart", "container evil", bad.Subject.String()} {
			if !strings.Contains(refusal.Object, part) {
				t.Errorf("%s: object %q does not name %q", row.name, refusal.Object, part)
			}
		}
		if strings.Contains(refusal.Object, "a new pod mends it") != (row.c.Kind == attest.ContainerEphemeral) {
			t.Errorf("%s: object %q", row.name, refusal.Object)
		}
	}
	count := newGate(t, newCollector(good, bad), signedBy(s), func(c *signing.Config) { c.CountEphemeral = true })
	_, refusal := count.check(t, pod(pinned(good), bad2(attest.ContainerEphemeral, false)))
	wantReason(t, refusal, attest.ImageUnsigned)
}

func TestGateModes(t *testing.T) {
	t.Parallel()
	s := newSigner()
	bad := image("bad")
	g := newGate(t, newCollector(bad), signedBy(s), func(c *signing.Config) {
		c.Namespaces = map[string]signing.Mode{"open": signing.Disabled, "trial": signing.Audit, "istio-system": signing.Enforce}
		c.Accounts = []string{"istio-system/ztunnel"}
	})
	for _, row := range []struct {
		namespace, account string
		verdict            attest.Verdict
		reason             attest.Reason
		refused            bool
	}{
		{"shop", "cart", 0, attest.ImageUnsigned, true},
		{"open", "cart", attest.VerdictUnchecked, 0, false},
		{"trial", "cart", attest.VerdictWouldDeny, attest.ImageUnsigned, false},
		{"istio-system", "ztunnel", attest.VerdictWouldDeny, attest.ImageUnsigned, false},
		{"istio-system", "other", 0, attest.ImageUnsigned, true},
		{"shop", "ztunnel", 0, attest.ImageUnsigned, true},
	} {
		p := pod(pinned(bad))
		p.Ref.Namespace, p.ServiceAccount = row.namespace, row.account
		p.Labels = map[string]string{"hallmark.dev/images": "disabled", "verified": "true"} // believed by nobody
		found, refusal := g.check(t, p)
		if row.refused {
			wantReason(t, refusal, row.reason)
			continue
		}
		if refusal != nil || found[0].Verdict != row.verdict || found[0].Reason != row.reason || found[0].Digest != bad.Subject.Digest {
			t.Errorf("%s/%s: %v %+v", row.namespace, row.account, refusal, found)
		}
	}
}

// A namespace that is stricter than the rest is held to it.
func TestGateNamespaceEnforcesWhereTheRestIsAudited(t *testing.T) {
	t.Parallel()
	bad := image("bad")
	g := newGate(t, newCollector(bad), signedBy(newSigner()), func(c *signing.Config) {
		c.Mode, c.Namespaces = signing.Audit, map[string]signing.Mode{"strict": signing.Enforce}
	})
	if _, refusal := g.check(t, pod(pinned(bad))); refusal != nil {
		t.Errorf("refused under audit: %v", refusal)
	}
	_, refusal := g.check(t, in("strict", pod(pinned(bad))))
	wantReason(t, refusal, attest.ImageUnsigned)
}

// Every way in which the contract refuses a name, and where the name is the
// spec's alone.
func TestGateNames(t *testing.T) {
	t.Parallel()
	s := newSigner()
	e := image("a", s)
	d := e.Subject.Digest
	lax := collected("ghcr.io/lax/app", [][]byte{must2(manifest("a"))}, s.bundle(d))
	registry := newCollector(e, lax)
	g := newGate(t, registry, compile(
		cip("signed", "ghcr.io/org/**", authorities(byKey("release", newSigner()))),
		cip("lax", "ghcr.io/lax/**", authorities(byKey("release", s))),
	))
	for _, row := range []struct {
		image string
		want  attest.Reason
	}{
		{"ghcr.io/lax/app@" + d, 0},
		{"GHCR.io/lax/app@" + d, 0},
		{"ghcr.io/org/app@" + d, attest.ImageSignatureInvalid},
		{"ghcr.io:443/org/app@" + d, attest.ImageNotFound}, // the strict policy matches; this registry is another
		{"ghcr.io.example.net/lax/app@" + d, attest.ImageNoPolicy},
		{"app@" + d, attest.ImageNoPolicy},
		{"user@ghcr.io/lax/app@" + d, attest.ImageReferenceInvalid},
		{"ghcr.io/lax/../org/app@" + d, attest.ImageReferenceInvalid},
		{"ghcr.io/lax/app@sha512:" + strings.Repeat("0", 128), attest.ImageReferenceInvalid},
		{"ghcr.io/lax/app@sha256:00", attest.ImageReferenceInvalid},
		{strings.Repeat("a", 5000), attest.ImageReferenceInvalid},
		{"", attest.ImageReferenceInvalid},
	} {
		_, refusal := g.check(t, pod(runs(row.image, "ghcr.io/lax/app@"+d)))
		switch {
		case row.want == 0 && refusal != nil:
			t.Errorf("%s: %v", row.image, refusal)
		case row.want != 0 && (refusal == nil || refusal.Reason != row.want):
			t.Errorf("%s: %v, want %s", row.image, refusal, row.want)
		case refusal != nil && len(refusal.Object) > 700:
			t.Errorf("%s: an object of %d bytes", attest.Escape(row.image), len(refusal.Object))
		}
	}
}

func TestGateTags(t *testing.T) {
	t.Parallel()
	s := newSigner()
	one, two, bad := image("one", s), image("two", s), image("bad")
	tag := repo + ":v1"
	registry := newCollector(one, two, bad)
	registry.tag(tag, one.Subject.Digest)
	clock := newClock()
	g := newGate(t, registry, signedBy(s), clock.use)

	found, refusal := g.check(t, pod(runs(tag, "")))
	wantPass(t, found, refusal)
	if !found[0].Provisional || found[0].Digest != one.Subject.Digest {
		t.Errorf("before it runs: %+v", found[0])
	}
	found, refusal = g.check(t, pod(runs(tag, one.Subject.String())))
	wantPass(t, found, refusal)
	if found[0].Provisional {
		t.Error("it runs, and is provisional")
	}
	// Another one runs than was resolved: it counts if it is verified by itself.
	found, refusal = g.check(t, pod(runs(tag, two.Subject.String())))
	wantPass(t, found, refusal)
	_, refusal = g.check(t, pod(runs(tag, bad.Subject.String())))
	wantReason(t, refusal, attest.ImageUnsigned)
	// The tag moved after signing.
	registry.tag(tag, bad.Subject.Digest)
	clock.advance(11 * time.Second)
	_, refusal = g.check(t, pod(runs(tag, "")))
	wantReason(t, refusal, attest.ImageUnsigned)
	found, refusal = g.check(t, pod(runs(tag, one.Subject.String())))
	wantPass(t, found, refusal)

	_, refusal = g.check(t, pod(runs(repo+":none", "")))
	wantReason(t, refusal, attest.ImageNotFound)
	volume := runs(tag, one.Subject.String())
	volume.Kind = attest.ContainerVolume
	_, refusal = g.check(t, pod(volume))
	wantReason(t, refusal, attest.ImageTagRefused)

	deny := newGate(t, registry, signedBy(s), func(c *signing.Config) { c.ResolveTags = false })
	_, refusal = deny.check(t, pod(runs(tag, "")))
	wantReason(t, refusal, attest.ImageTagRefused)
	found, refusal = deny.check(t, pod(runs(tag, one.Subject.String())))
	wantPass(t, found, refusal)
	if n := registry.count(tag); n != 2 {
		t.Errorf("the tag was resolved %d times, want 2", n)
	}
}

// A verdict is said before a fault: it will not pass.
func TestGateVerdictBeforeFault(t *testing.T) {
	t.Parallel()
	s := newSigner()
	bad := image("bad")
	g := newGate(t, newCollector(bad), signedBy(s))
	_, refusal := g.check(t, pod(pinned(bad)))
	wantReason(t, refusal, attest.ImageUnsigned)
	g.registry.fail(away)
	_, refusal = g.check(t, pod(pinned(image("new", s)), pinned(bad)))
	wantReason(t, refusal, attest.ImageUnsigned)
	_, refusal = g.check(t, pod(pinned(image("new", s))))
	wantReason(t, refusal, attest.RegistryAway)
	if refusal.Reason.Kind() != attest.KindUnavailable {
		t.Error("a registry's fault became a verdict")
	}
}

// Whatever a collector says beyond what a registry can say is a fault.
func TestGateFaultsAreNoVerdicts(t *testing.T) {
	t.Parallel()
	s := newSigner()
	e := image("a", s)
	for name, err := range map[string]error{
		"an error":         errors.New("boom"),
		"another's reason": attest.Deny(attest.ImagePolicyFailed, "", ""),
		"limited":          attest.Deny(attest.CallerRateExceeded, "", ""),
		"away":             away,
		"ended":            context.DeadlineExceeded,
	} {
		registry := newCollector(e)
		registry.fail(err)
		g := newGate(t, registry, signedBy(s))
		if _, refusal := g.check(t, pod(pinned(e))); refusal == nil || refusal.Reason.Kind() != attest.KindUnavailable {
			t.Errorf("%s: %v", name, refusal)
		}
	}
	// Evidence that does not hold, or of another image.
	other := image("other", s)
	broken := *e
	broken.Manifests = map[string][]byte{e.Subject.Digest: []byte("{}")}
	for name, given := range map[string]*evidence.Evidence{"of another image": other, "that does not hold": &broken} {
		registry := newCollector()
		registry.evidence[e.Subject] = given
		g := newGate(t, registry, signedBy(s))
		_, refusal := g.check(t, pod(pinned(e)))
		if refusal == nil || refusal.Reason != attest.InternalError {
			t.Errorf("evidence %s: %v", name, refusal)
		}
		if _, ok := g.store.Get(e.Subject); ok {
			t.Errorf("evidence %s was kept", name)
		}
	}
}

// Under audit nothing is refused, and a registry that hangs delays little.
func TestGateAudit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSigner()
		bad, slow := image("bad"), image("slow", s)
		registry := newCollector(bad, slow)
		g := newGate(t, registry, signedBy(s), func(c *signing.Config) { c.Mode = signing.Audit })
		expect := func(image string, want attest.Reason) {
			t.Helper()
			found, refusal := g.check(t, pod(runs(image, "")))
			if refusal != nil || len(found) != 1 || found[0].Verdict != attest.VerdictWouldDeny || found[0].Reason != want {
				t.Errorf("%s: %v %+v, want would-deny %s", image, refusal, found, want)
			}
		}
		expect(bad.Subject.String(), attest.ImageUnsigned)
		expect("quay.io/x/y@"+bad.Subject.Digest, attest.ImageNoPolicy)
		expect("ghcr.io/org/none:v1", attest.ImageNotFound)
		expect("..", attest.ImageReferenceInvalid)
		registry.fail(away)
		expect(image("unseen", s).Subject.String(), attest.RegistryAway)
		registry.fail(nil)
		release := registry.block("")
		start := time.Now()
		expect(slow.Subject.String(), attest.EvidencePending)
		if took := time.Since(start); took != 500*time.Millisecond {
			t.Errorf("it took %s", took)
		}
		// What is decided already is not waited for either.
		<-time.After(time.Minute)
		start = time.Now()
		expect(bad.Subject.String(), attest.ImageUnsigned)
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %s", took)
		}
		release()
		<-time.After(time.Minute)
		found, refusal := g.check(t, pod(pinned(slow)))
		wantPass(t, found, refusal)
	})
}

// A policy that only warns delays and refuses as little.
func TestGateWarnPolicy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSigner()
		registry := newCollector()
		registry.fail(away)
		g := newGate(t, registry, compile(cip("trial", "**", authorities(byKey("k", s)), warn)))
		found, refusal := g.check(t, pod(pinned(image("a", s))))
		if refusal != nil || found[0].Verdict != attest.VerdictWouldDeny || found[0].Reason != attest.RegistryAway {
			t.Errorf("%v %+v", refusal, found)
		}
		registry.fail(nil)
		defer registry.block("")()
		start := time.Now()
		_, refusal = g.check(t, pod(pinned(image("b", s))))
		if took := time.Since(start); refusal != nil || took != 500*time.Millisecond {
			t.Errorf("%v after %s", refusal, took)
		}
	})
}

func TestGateConfig(t *testing.T) {
	t.Parallel()
	if _, err := signing.NewGate(signing.Config{}); err == nil {
		t.Error("a gate of nothing")
	}
	for name, spoil := range map[string]func(*signing.Config){
		"no mode":           func(c *signing.Config) { c.Mode = 0 },
		"no infrastructure": func(c *signing.Config) { c.Infrastructure = 0 },
		"a namespace's":     func(c *signing.Config) { c.Namespaces = map[string]signing.Mode{"x": 9} },
		"an account":        func(c *signing.Config) { c.Accounts = []string{"ztunnel"} },
		"no policies":       func(c *signing.Config) { c.Policies = nil },
	} {
		cfg := newGateConfig(t)
		spoil(&cfg)
		if _, err := signing.NewGate(cfg); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}

// FuzzImageID: what is read of an imageID is a digest or nothing, and the
// repository in it never counts.
func FuzzImageID(f *testing.F) {
	hex := strings.Repeat("0", 64)
	for _, s := range []string{"", "sha256:" + hex, hex, "ghcr.io/a/b@sha256:" + hex, "docker-pullable://a@sha256:" + hex, "docker://sha256:" + hex, "@sha256:" + hex, "a@b@sha256:" + hex, "sha512:" + hex + hex, "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		r := signing.ParseImageID(id)
		switch {
		case r.Digest == "":
			if r.Unreadable != (id != "") || r.Config {
				t.Fatalf("%q: %+v", id, r)
			}
		case r.Unreadable || !evidence.ValidDigest(r.Digest) || !strings.HasSuffix(id, strings.TrimPrefix(r.Digest, "sha256:")):
			t.Fatalf("%q: %+v", id, r)
		case r.Config == strings.Contains(id, "@"):
			t.Fatalf("%q: %+v", id, r)
		}
	})
}
