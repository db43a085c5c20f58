package attest_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
)

// house is a registrar over one cluster with one pod, and a clock.
type house struct {
	cluster   *attesttest.Cluster
	gate      *attesttest.Gate
	registrar *attest.Registrar
	pod       *attest.Pod
	token     string
	log       *bytes.Buffer

	mu  sync.Mutex // guards at
	at  time.Time
	cfg attest.RegistrarConfig
}

func (h *house) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}

func (h *house) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = h.at.Add(d)
}

func newHouse(t *testing.T, change func(*attest.RegistrarConfig)) *house {
	t.Helper()
	h := &house{at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), gate: &attesttest.Gate{}, log: &bytes.Buffer{}}
	h.cluster = attesttest.NewCluster(attesttest.Domain(t, "cluster.local"), h.now)
	h.pod = attesttest.Pod("shop", "cart-1", "cart", "registry.example/cart@sha256:1")
	h.token = h.cluster.Add(h.pod)
	h.cfg = attest.RegistrarConfig{
		Clusters: map[string]attest.Cluster{"Kubernetes": h.cluster}, Local: "Kubernetes", Gate: h.gate,
		MaxStaleness: 30 * time.Minute, Log: slog.New(slog.NewTextHandler(h.log, nil)), Now: h.now,
	}
	if change != nil {
		change(&h.cfg)
	}
	h.restart(t)
	return h
}

// restart makes a registrar that remembers nothing.
func (h *house) restart(t *testing.T) {
	t.Helper()
	var err error
	if h.registrar, err = attest.NewRegistrar(h.cfg); err != nil {
		t.Fatal(err)
	}
}

// grant attests and is granted, or returns the first refusal.
func (h *house) grant(t *testing.T) (*attest.Grant, error) {
	t.Helper()
	caller, err := h.registrar.Attest(t.Context(), attest.Credential{Token: h.token})
	if err != nil {
		return nil, err
	}
	return h.registrar.Grant(t.Context(), caller, caller.Identity)
}

func refused(t *testing.T, err error, want attest.Reason) {
	t.Helper()
	var d *attest.DenyError
	if !errors.As(err, &d) || d.Reason != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestNewRegistrarRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*attest.RegistrarConfig){
		"no such local cluster": func(c *attest.RegistrarConfig) { c.Local = "other" },
		"no clusters":           func(c *attest.RegistrarConfig) { c.Clusters = nil },
		"no gate":               func(c *attest.RegistrarConfig) { c.Gate = nil },
		"no staleness":          func(c *attest.RegistrarConfig) { c.MaxStaleness = 0 },
		"no log":                func(c *attest.RegistrarConfig) { c.Log = nil },
		"no clock":              func(c *attest.RegistrarConfig) { c.Now = nil },
	} {
		cfg := newHouse(t, nil).cfg
		change(&cfg)
		if _, err := attest.NewRegistrar(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestAttestAndGrant(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.gate.Provisional(h.pod.Containers[0].Image)
	for _, id := range []string{"", "Kubernetes"} {
		caller, err := h.registrar.Attest(t.Context(), attest.Credential{Token: h.token, Cluster: id})
		if err != nil {
			t.Fatal(err)
		}
		if caller.Identity.String() != "spiffe://cluster.local/ns/shop/sa/cart" || caller.Cluster != "Kubernetes" || caller.Node != "node-1" ||
			caller.Method != attest.MethodServiceAccountToken || caller.Pod != h.pod.Ref || !caller.Expires.Equal(h.now().Add(time.Hour)) ||
			caller.Instance() != (attest.Instance{Cluster: "Kubernetes", PodUID: h.pod.Ref.UID}) {
			t.Errorf("caller %+v", caller)
		}
		grant, err := h.registrar.Grant(t.Context(), caller, caller.Identity)
		if err != nil {
			t.Fatal(err)
		}
		facts, err := grant.Spend(h.now())
		if err != nil {
			t.Fatal(err)
		}
		if facts.Identity != caller.Identity || facts.Caller != caller || len(facts.Pods) != 1 || len(facts.Images) != 1 || !facts.Provisional {
			t.Errorf("facts %+v", facts)
		}
	}
}

func TestAttestRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	_, err := h.registrar.Attest(t.Context(), attest.Credential{})
	refused(t, err, attest.TokenMissing)
	_, err = h.registrar.Attest(t.Context(), attest.Credential{Token: h.token, Cluster: "other\n"})
	refused(t, err, attest.ClusterUnknown)
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the cluster id is not escaped: %q", err)
	}
	caller, err := h.registrar.Attest(t.Context(), attest.Credential{Token: "forged"})
	refused(t, err, attest.TokenRejected)
	if caller != (attest.Caller{}) {
		t.Errorf("a caller that did not authenticate is named: %+v", caller)
	}
	// One that did is named, for the record, and can be granted nothing.
	h.cluster.Remove(h.pod.Ref)
	caller, err = h.registrar.Attest(t.Context(), attest.Credential{Token: h.token})
	refused(t, err, attest.PodGone)
	if caller.Pod != h.pod.Ref || caller.Identity.IsZero() {
		t.Errorf("caller %+v", caller)
	}
	h.cluster.Add(h.pod)
	_, err = h.registrar.Grant(t.Context(), caller, caller.Identity)
	refused(t, err, attest.InternalError)
}

func TestGrantRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	caller := attesttest.Caller(t, h.registrar, h.token)
	other, err := attest.ParseIdentity("spiffe://cluster.local/ns/shop/sa/admin")
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.registrar.Grant(t.Context(), caller, other)
	refused(t, err, attest.IdentityNotOwn)
	_, err = h.registrar.Grant(t.Context(), caller, attest.Identity{})
	refused(t, err, attest.IdentityNotOwn)
	forged := attest.Caller{Cluster: caller.Cluster, Identity: caller.Identity, Pod: caller.Pod}
	_, err = h.registrar.Grant(t.Context(), forged, forged.Identity)
	refused(t, err, attest.InternalError)
	foreign := caller
	foreign.Cluster = "other"
	_, err = h.registrar.Grant(t.Context(), foreign, foreign.Identity)
	refused(t, err, attest.InternalError)
	foreign = caller
	foreign.Identity = other // all that a front end could change
	_, err = h.registrar.Grant(t.Context(), foreign, other)
	refused(t, err, attest.InternalError)
	foreign = caller
	foreign.Expires = foreign.Expires.Add(time.Hour)
	_, err = h.registrar.Grant(t.Context(), foreign, foreign.Identity)
	refused(t, err, attest.InternalError)

	h.gate.Deny(h.pod.Containers[0].Image, attest.ImageUnsigned)
	_, err = h.registrar.Grant(t.Context(), caller, caller.Identity)
	refused(t, err, attest.ImageUnsigned)
	h.gate.Pass(h.pod.Containers[0].Image)
	release := h.gate.Block()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = h.registrar.Grant(ctx, caller, caller.Identity)
	if d := attest.DenialOf(err); d.Reason.Kind() != attest.KindUnavailable {
		t.Errorf("no answer in time: %v", err)
	}
	release()

	// Live facts count at every grant, whatever they were at the first.
	h.cluster.Change(h.pod.Ref, func(p *attest.Pod) { p.Terminating = true })
	_, err = h.registrar.Grant(t.Context(), caller, caller.Identity)
	refused(t, err, attest.PodTerminating)
	h.cluster.Change(h.pod.Ref, func(p *attest.Pod) { p.Terminating, p.Ref.UID = false, "another" })
	_, err = h.registrar.Grant(t.Context(), caller, caller.Identity)
	refused(t, err, attest.PodReplaced)
}

// TestAPIServerAway: known pods renew on the last view, nothing new is granted.
func TestAPIServerAway(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	if _, err := h.grant(t); err != nil {
		t.Fatal(err)
	}
	stranger := attesttest.Pod("shop", "new", "cart", "registry.example/cart@sha256:1")
	strangerToken := h.cluster.Add(stranger)
	h.cluster.SetAway(true)
	caller, err := h.registrar.Attest(t.Context(), attest.Credential{Token: h.token})
	if err != nil {
		t.Fatalf("a known pod with a view of now: %v", err)
	}
	for _, age := range []time.Duration{0, 29 * time.Minute, time.Minute} {
		h.pass(age)
		if _, err := h.registrar.Grant(t.Context(), caller, caller.Identity); err != nil {
			t.Errorf("after %s more: %v", age, err)
		}
	}
	_, err = h.registrar.Attest(t.Context(), attest.Credential{Token: strangerToken})
	refused(t, err, attest.APIServerAway)
	h.pass(time.Second)
	_, err = h.registrar.Grant(t.Context(), caller, caller.Identity)
	refused(t, err, attest.APIServerAway)
	_, err = h.registrar.Attest(t.Context(), attest.Credential{Token: h.token})
	refused(t, err, attest.APIServerAway)

	h.cluster.SetAway(false)
	if _, err := h.grant(t); err != nil {
		t.Errorf("after the API server came back: %v", err)
	}
	// A replica that started meanwhile knows nobody.
	h.cluster.SetAway(true)
	h.restart(t)
	_, err = h.grant(t)
	refused(t, err, attest.APIServerAway)
}

// TestHeldIsOneIdentityOfOnePod: what a pod held before says nothing of the pod
// that takes its name.
func TestHeldIsOneIdentityOfOnePod(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	if _, err := h.grant(t); err != nil {
		t.Fatal(err)
	}
	again := *h.pod
	again.Ref.UID = "second"
	h.token = h.cluster.Add(&again)
	h.cluster.SetAway(true)
	_, err := h.grant(t)
	refused(t, err, attest.APIServerAway)
}

// TestRefusedGrantHoldsNothing: only what was granted can be renewed.
func TestRefusedGrantHoldsNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.gate.Deny(h.pod.Containers[0].Image, attest.ImageUnsigned)
	_, err := h.grant(t)
	refused(t, err, attest.ImageUnsigned)
	h.gate.Pass(h.pod.Containers[0].Image)
	h.cluster.SetAway(true)
	_, err = h.grant(t)
	refused(t, err, attest.APIServerAway)
}

func TestSourceAddress(t *testing.T) {
	t.Parallel()
	own, foreign := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.66")
	mapped := netip.MustParseAddr("::ffff:10.0.0.1")
	for name, test := range map[string]struct {
		mode   attest.SourceAddressMode
		peer   netip.Addr
		denied bool
		logged bool
	}{
		"disabled":         {attest.SourceAddressDisabled, foreign, false, false},
		"log, own":         {attest.SourceAddressLog, own, false, false},
		"log, foreign":     {attest.SourceAddressLog, foreign, false, true},
		"enforce, own":     {attest.SourceAddressEnforce, own, false, false},
		"enforce, mapped":  {attest.SourceAddressEnforce, mapped, false, false},
		"enforce, foreign": {attest.SourceAddressEnforce, foreign, true, false},
		"enforce, no peer": {attest.SourceAddressEnforce, netip.Addr{}, false, false},
	} {
		h := newHouse(t, func(c *attest.RegistrarConfig) { c.SourceAddress = test.mode })
		caller, err := h.registrar.Attest(t.Context(), attest.Credential{Token: h.token, Peer: test.peer})
		switch {
		case test.denied:
			refused(t, err, attest.SourceAddressForeign)
			if caller.Pod != h.pod.Ref {
				t.Errorf("%s: the caller is not named: %+v", name, caller)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		}
		if got := strings.Contains(h.log.String(), "peer=10.0.0.66"); got != test.logged {
			t.Errorf("%s: logged %q", name, h.log)
		}
		if strings.Contains(h.log.String(), h.token) {
			t.Errorf("%s: the token was logged", name)
		}
	}
}

func TestGrantIsSpentOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	at := func(d time.Duration) time.Time { return h.now().Add(d) }
	for name, test := range map[string]struct {
		after time.Duration
		want  error
	}{
		"at once":         {0, nil},
		"at the limit":    {attest.GrantLifetime, nil},
		"too late":        {attest.GrantLifetime + 1, attest.ErrGrantStale},
		"clock back":      {-attest.GrantLifetime, nil},
		"clock far back":  {-attest.GrantLifetime - 1, attest.ErrGrantStale},
		"a year too late": {365 * 24 * time.Hour, attest.ErrGrantStale},
	} {
		if _, err := attesttest.Grant(t, h.registrar, h.token).Spend(at(test.after)); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, empty := range []*attest.Grant{nil, {}} {
		if _, err := empty.Spend(h.now()); !errors.Is(err, attest.ErrGrantEmpty) {
			t.Errorf("an empty grant: %v", err)
		}
	}
	grant := attesttest.Grant(t, h.registrar, h.token)
	results := make(chan error, 16)
	for range cap(results) {
		go func() { _, err := grant.Spend(h.now()); results <- err }()
	}
	got := map[bool]int{}
	for range cap(results) {
		err := <-results
		if err != nil && !errors.Is(err, attest.ErrGrantSpent) {
			t.Error(err)
		}
		got[err == nil]++
	}
	if diff := cmp.Diff(map[bool]int{true: 1, false: 15}, got); diff != "" {
		t.Error(diff)
	}
}

// Each call from a foreign address wrote a line: whoever holds a token could fill
// the disk of the log.
func TestForeignAddressIsLoggedOnceInAWhile(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *attest.RegistrarConfig) { c.SourceAddress = attest.SourceAddressLog })
	for range 2 {
		for range 50 {
			if _, err := h.registrar.Attest(t.Context(), attest.Credential{Token: h.token, Peer: netip.MustParseAddr("10.0.0.66")}); err != nil {
				t.Fatal(err)
			}
		}
		h.pass(time.Minute)
	}
	if n := strings.Count(h.log.String(), "peer=10.0.0.66"); n != 2 {
		t.Errorf("%d lines in two minutes, want 2", n)
	}
}

// unreviewed is a cluster whose watches work while its reviews fail.
type unreviewed struct{ *attesttest.Cluster }

func (u unreviewed) Review(ctx context.Context, token string) (attest.Bound, error) {
	bound, err := u.Cluster.Review(ctx, token)
	bound.Reviewed = false
	return bound, err
}

// What only the stored keys vouch for gets no first identity, however new the
// view of the pods is.
func TestUnreviewedTokenGetsNothingNew(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.cfg.Clusters = map[string]attest.Cluster{"Kubernetes": unreviewed{h.cluster}}
	h.restart(t)
	_, err := h.grant(t)
	refused(t, err, attest.APIServerAway)
}
