package ra_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
)

const (
	door  = "test"
	image = "registry.test/app@sha256:1"
)

// caller returns a caller of the world, attested.
func caller(tb testing.TB, w *ratest.World) attest.Caller {
	tb.Helper()
	_, token := w.Pod("shop", "web-1", "default", image)
	c, err := w.RA.Attest(tb.Context(), door, attest.Credential{Token: token})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

var ids = regexp.MustCompile(`id [A-Z2-7]{16}\)$`)

// TestEveryReasonHasItsAnswer goes through the whole table: code and text of
// each, for a caller with proof and for one without.
func TestEveryReasonHasItsAnswer(t *testing.T) {
	t.Parallel()
	told := 0
	w := ratest.New(t, ratest.Config{RA: func(c *ra.Config) {
		c.Refused = func(_ string, c attest.Caller, identity attest.Identity) {
			if told++; c.Pod.Name != "web-1" || identity != c.Identity {
				t.Errorf("told that %v was refused %s", c, identity)
			}
		}
	}})
	proven := caller(t, w)
	want := map[attest.Kind]codes.Code{
		attest.KindUnauthenticated: codes.Unauthenticated, attest.KindForbidden: codes.PermissionDenied,
		attest.KindInvalid: codes.InvalidArgument, attest.KindLimited: codes.ResourceExhausted, attest.KindUnavailable: codes.Unavailable,
	}
	for _, info := range attest.Reasons() {
		for _, who := range []attest.Caller{proven, {}} {
			err := ra.Status(w.RA.Refuse(t.Context(), door, who, attest.Deny(info.Reason, "the-object", "the-detail")))
			text := status.Convert(err).Message()
			known := who != attest.Caller{} && info.Kind != attest.KindUnauthenticated
			if status.Code(err) != want[info.Kind] || !ids.MatchString(text) || strings.Contains(text, "the-detail") {
				t.Errorf("%s: answer is %v", info.Name, err)
			}
			if strings.Contains(text, "the-object") != known || strings.Contains(text, info.Mend) != known {
				t.Errorf("%s, proven %v: text is %q", info.Name, known, text)
			}
			if info.Kind == attest.KindUnauthenticated && !strings.HasPrefix(text, "not authenticated (id ") {
				t.Errorf("%s: text is %q", info.Name, text)
			}
			if strings.Contains(text, "shop/web-1") != (known && info.Kind == attest.KindForbidden) {
				t.Errorf("%s: text is %q", info.Name, text)
			}
		}
		if got := w.Refused(t, info.Reason, door); got != 2 {
			t.Errorf("%s is counted %v times", info.Name, got)
		}
	}
	if got, want := len(w.Authority.Ledger.Refusals()), len(attest.Reasons()); got != want || told != want {
		t.Errorf("the ledger has %d refusals, and %d were told; want those of the proven caller, %d", got, told, want)
	}
}

func TestStatusOfOtherErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{nil, codes.OK, ""},
		{context.Canceled, codes.Canceled, "the caller has gone"},
		{fmt.Errorf("sending: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "the caller's deadline has passed"},
		{errors.New("secret of ours"), codes.Unavailable, "InternalError"},
		{io.EOF, codes.Unavailable, "InternalError"},
		{status.Error(codes.Unknown, "secret of ours"), codes.Unavailable, "InternalError"},
		{status.Error(codes.NotFound, "unknown service"), codes.NotFound, "unknown service"},
		{fmt.Errorf("wrapped: %w", attest.Deny(attest.PodGone, "object", "detail")), codes.Unauthenticated, "not authenticated (id none)"},
		{attest.Deny(attest.ImageUnsigned, "object", "detail"), codes.PermissionDenied, "ImageUnsigned (id none)"},
	} {
		got := ra.Status(c.err)
		if status.Code(got) != c.code || status.Convert(got).Message() != c.text {
			t.Errorf("%v becomes %v", c.err, got)
		}
	}
}

func TestReceived(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]attest.Reason{
		status.Error(codes.ResourceExhausted, "large"): attest.RequestTooLarge,
		status.Error(codes.Internal, "garbled"):        attest.RequestMalformed,
		status.Error(codes.Canceled, "gone"):           0,
		io.EOF:                                         0,
	} {
		var got attest.Reason
		if deny := ra.Received(err); deny != nil {
			got = deny.Reason
		}
		if got != want {
			t.Errorf("%v is %s, want %s", err, got, want)
		}
	}
}

func TestCredentialFrom(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		headers []string
		want    attest.Credential
	}{
		{"nothing", nil, attest.Credential{}},
		{"token", []string{"authorization", "Bearer a.b.c"}, attest.Credential{Token: "a.b.c"}},
		{"scheme in any case", []string{"authorization", "bEARER a.b.c"}, attest.Credential{Token: "a.b.c"}},
		{"cluster", []string{"authorization", "Bearer a", "clusterid", "east"}, attest.Credential{Token: "a", Cluster: "east"}},
		{"two tokens are none", []string{"authorization", "Bearer a", "authorization", "Bearer b"}, attest.Credential{Token: "a,Bearer b"}},
		{"two clusters are none", []string{"clusterid", "east", "clusterid", "west"}, attest.Credential{Cluster: "east,west"}},
		{"other scheme", []string{"authorization", "Basic YTpiOmM="}, attest.Credential{}},
		{"scheme alone", []string{"authorization", "Bearer "}, attest.Credential{}},
		{"no space", []string{"authorization", "Bearera.b.c"}, attest.Credential{}},
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(c.headers...))
		ctx = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP("::ffff:10.0.0.7"), Port: 4}})
		c.want.Peer = netip.MustParseAddr("10.0.0.7")
		if diff := cmp.Diff(c.want, ra.CredentialFrom(ctx), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	if got := ra.CredentialFrom(t.Context()); got != (attest.Credential{}) {
		t.Errorf("a call from nowhere presents %v", got)
	}
}

// TestAttestRecordsWhomTheClusterKnows: a pod that is gone is recorded, and
// opaque all the same; one that cannot be known now is told to come back.
func TestAttestRecordsWhomTheClusterKnows(t *testing.T) {
	t.Parallel()
	w := ratest.New(t, ratest.Config{})
	pod, token := w.Pod("shop", "web-1", "default", image)
	w.Cluster.SetAway(true)
	_, err := w.RA.Attest(t.Context(), door, attest.Credential{Token: token})
	if text := status.Convert(ra.Status(err)).Message(); status.Code(ra.Status(err)) != codes.Unavailable || !strings.HasPrefix(text, "APIServerAway (id ") {
		t.Errorf("answer is %v", ra.Status(err))
	}
	w.Cluster.SetAway(false)
	w.Cluster.Remove(pod.Ref)
	got, err := w.RA.Attest(t.Context(), door, attest.Credential{Token: token})
	if got != (attest.Caller{}) || status.Code(ra.Status(err)) != codes.Unauthenticated {
		t.Errorf("answer is %v, caller %v", ra.Status(err), got)
	}
	var refusal *ra.Refusal
	if !errors.As(err, &refusal) || refusal.Deny.Reason != attest.PodGone {
		t.Fatalf("error is %v", err)
	}
	records := w.Authority.Ledger.Refusals()
	if len(records) != 2 || records[1].ID != refusal.ID || records[1].Reason != "PodGone" || records[1].Pod != "web-1" {
		t.Errorf("the ledger has %+v", records)
	}
}

// TestCheck asks without issuing.
func TestCheck(t *testing.T) {
	t.Parallel()
	w := ratest.New(t, ratest.Config{})
	c := caller(t, w)
	if err := w.RA.Check(t.Context(), door, c, c.Identity); err != nil {
		t.Fatal(err)
	}
	w.Gate.Deny(image, attest.ImageUnsigned)
	err := w.RA.Check(t.Context(), door, c, c.Identity)
	if attest.DenialOf(err).Reason != attest.ImageUnsigned || w.Refused(t, attest.ImageUnsigned, door) != 1 || len(w.Authority.Ledger.Refusals()) != 1 {
		t.Errorf("error is %v", err)
	}
	if n := len(w.Authority.Ledger.Intents()); n != 0 {
		t.Errorf("%d intents", n)
	}
}

// TestFloodIsSampled: many refusals, few lines, each reason and side with a
// budget of its own, and the count of what was left out.
func TestFloodIsSampled(t *testing.T) {
	t.Parallel()
	w := ratest.New(t, ratest.Config{})
	for range 5000 {
		w.RA.Attest(t.Context(), door, attest.Credential{Token: "a-token-of-nobody"})
	}
	w.RA.Refuse(t.Context(), door, caller(t, w), attest.Deny(attest.TokenRejected, "", ""))
	log := w.Log.String()
	if n := strings.Count(log, `"reason":"TokenRejected"`); n < 21 || n > 60 {
		t.Errorf("%d lines", n)
	}
	if !strings.Contains(log, `"identity":"spiffe://cluster.local/ns/shop/sa/default"`) || strings.Contains(log, "a-token-of-nobody") {
		t.Errorf("the log is %s", log)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	if _, err := ra.New(ra.Config{}); err == nil {
		t.Error("an empty configuration is taken")
	}
	w := ratest.New(t, ratest.Config{})
	cfg := ra.Config{Registrar: attesttest.NewRegistrar(t, w.Cluster, w.Gate, time.Now), Authority: w.Authority.Authority, Refusals: w.Authority.Ledger, Registerer: w.Metrics, Log: w.Logger(), Now: time.Now}
	if _, err := ra.New(cfg); err == nil || !strings.Contains(err.Error(), "making registration authority") {
		t.Errorf("metrics registered twice: %v", err)
	}
	for name, change := range map[string]func(*ra.Config){
		"negative":           func(c *ra.Config) { c.InFlight = -1 },
		"longer than grants": func(c *ra.Config) { c.Timeout = time.Minute },
	} {
		cfg := cfg
		cfg.Registerer = prometheus.NewRegistry()
		change(&cfg)
		if _, err := ra.New(cfg); err == nil {
			t.Errorf("a limit is taken that is %s", name)
		}
	}
}
