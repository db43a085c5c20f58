package attest_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/hallmark-ca/hallmark/attest"
)

func TestReasonTable(t *testing.T) {
	t.Parallel()
	table := attest.Reasons()
	if len(table) < 50 {
		t.Fatalf("only %d reasons", len(table))
	}
	kinds := map[attest.Kind]int{}
	names := map[string]bool{}
	for i, row := range table {
		r := attest.Reason(i + 1)
		switch {
		case row.Reason != r:
			t.Errorf("row %d is of %s", i+1, row.Name)
		case row.Name == "" || row.Meaning == "" || row.Mend == "":
			t.Errorf("row %d (%s) is not complete", i+1, row.Name)
		case names[row.Name]:
			t.Errorf("%s stands there twice", row.Name)
		case r.String() != row.Name || r.Kind() != row.Kind || r.Mend() != row.Mend:
			t.Errorf("%s: the methods say otherwise", row.Name)
		case !strings.HasSuffix(row.Meaning, ".") || strings.HasSuffix(row.Mend, "."):
			t.Errorf("%s: a meaning is a sentence, a mend is none", row.Name)
		}
		names[row.Name] = true
		kinds[row.Kind]++
	}
	for _, k := range []attest.Kind{attest.KindUnauthenticated, attest.KindForbidden, attest.KindInvalid, attest.KindLimited, attest.KindUnavailable} {
		if kinds[k] == 0 || k.String() == "none" {
			t.Errorf("kind %d has no reason, or no name", k)
		}
		delete(kinds, k)
	}
	if len(kinds) != 0 {
		t.Errorf("reasons of no kind: %v", kinds)
	}
	for _, r := range []attest.Reason{0, attest.Reason(len(table) + 1), 255} {
		if r.String() != "None" || r.Kind() != 0 || r.Kind().String() != "none" {
			t.Errorf("reason %d is %s of %s", r, r, r.Kind())
		}
	}
	table[0].Name = "changed"
	if attest.Reasons()[0].Name == "changed" {
		t.Error("the table can be changed from outside")
	}
}

func TestDenyError(t *testing.T) {
	t.Parallel()
	d := attest.Deny(attest.PodGone, "shop/cart-1", "uid %s", "secret-uid")
	if got := d.Error(); got != "PodGone: shop/cart-1: uid secret-uid" {
		t.Errorf("whole: %s", got)
	}
	if got := d.Public(); got != "PodGone: shop/cart-1: "+attest.PodGone.Mend() {
		t.Errorf("public: %s", got)
	}
	if got := attest.Deny(attest.TokenMissing, "", "").Error(); got != "TokenMissing" {
		t.Errorf("bare: %s", got)
	}
	if got := attest.DenialOf(fmt.Errorf("asking: %w", d)); got != d {
		t.Errorf("wrapped: %v", got)
	}
	if got := attest.DenialOf(errors.New("boom")); got.Reason != attest.InternalError || got.Detail != "boom" || strings.Contains(got.Public(), "boom") {
		t.Errorf("unknown trouble: %v", got)
	}
}

func TestCredentialHidesItsToken(t *testing.T) {
	t.Parallel()
	c := attest.Credential{Token: "top-secret", Cluster: "a\nb", Peer: netip.MustParseAddr("10.0.0.9")}
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("call", "credential", c)
	for _, text := range []string{b.String(), fmt.Sprint(c), fmt.Sprintf("%v %+v %#v %s", c, c, c, c), fmt.Sprintf("%v", struct{ C attest.Credential }{c})} {
		if strings.Contains(text, "top-secret") || !strings.Contains(text, "10.0.0.9") {
			t.Errorf("got %s", text)
		}
	}
}

func TestNamesOfConstants(t *testing.T) {
	t.Parallel()
	got := fmt.Sprint(attest.MethodServiceAccountToken, attest.Method(0),
		attest.VerdictUnchecked, attest.VerdictPass, attest.VerdictWouldDeny,
		attest.ContainerApp, attest.ContainerInit, attest.ContainerSidecar, attest.ContainerEphemeral, attest.ContainerVolume)
	if want := "service-account-token unknown unchecked pass would-deny app init sidecar ephemeral volume"; got != want {
		t.Errorf("got %s", got)
	}
}

func TestFeed(t *testing.T) {
	t.Parallel()
	var feed attest.Feed
	feed.Announce(attest.Change{Digest: "nobody listens"})
	var a, b []attest.Change
	stopA := feed.Subscribe(func(c attest.Change) { a = append(a, c) })
	stopB := feed.Subscribe(func(c attest.Change) { b = append(b, c) })
	one := attest.Change{Instance: attest.Instance{Cluster: "c", PodUID: "u"}}
	feed.Announce(one)
	stopA()
	stopA()
	two := attest.Change{Digest: "sha256:0"}
	feed.Announce(two)
	stopB()
	feed.Announce(one)
	if len(a) != 1 || a[0] != one || len(b) != 2 || b[1] != two {
		t.Errorf("a got %v, b got %v", a, b)
	}
}

// TestFeedConcurrent is for the race detector.
func TestFeedConcurrent(t *testing.T) {
	t.Parallel()
	var feed attest.Feed
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				stop := feed.Subscribe(func(attest.Change) {})
				feed.Announce(attest.Change{})
				stop()
			}
		})
	}
	wg.Wait()
}
