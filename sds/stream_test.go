package sds_test

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

// scene is a server, its source, and the authority behind it.
type scene struct {
	*sds.Server
	m        *mint
	source   *source
	registry *prometheus.Registry
	stop     func()
}

// play runs test with a scene in a bubble of time.
func play(t *testing.T, change func(*sds.Config), test func(t *testing.T, s *scene)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMint(t)
		src := newSource(m.identity)
		src.svid, src.bundle = m.svid(), m.bundle()
		server, registry, stop := newServer(t, src, change)
		test(t, &scene{server, m, src, registry, stop})
	})
}

func (s *scene) open(t *testing.T) *sdstest.Stream {
	c := sdstest.Open(t, s, "good", time.Now)
	t.Cleanup(func() {
		c.Cancel()
		<-c.Done()
	})
	return c
}

// subscribed opens a stream for names and accepts the first answer.
func (s *scene) subscribed(t *testing.T, names ...string) *sdstest.Stream {
	t.Helper()
	c := s.open(t)
	c.First(nil, names...)
	synctest.Wait()
	c.Ack()
	synctest.Wait()
	return c
}

// sent returns the names in each response that came, sorted in each.
func sent(c *sdstest.Stream) []string {
	var all []string
	for _, r := range c.Responses() {
		var names []string
		for _, resource := range r.GetResources() {
			m, err := resource.UnmarshalNew()
			if err != nil {
				return append(all, err.Error())
			}
			names = append(names, m.(interface{ GetName() string }).GetName())
		}
		slices.Sort(names)
		all = append(all, strings.Join(names, " "))
	}
	return all
}

// metric returns the value of the metric that has all of labels.
func metric(t *testing.T, registry *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var values []string
			for _, pair := range m.GetLabel() {
				values = append(values, pair.GetValue())
			}
			slices.Sort(values)
			slices.Sort(labels)
			if family.GetName() == name && slices.Equal(values, labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("there is no metric %s with %v", name, labels)
	return 0
}

// pass lets time go by in the bubble.
func pass(d time.Duration) { <-time.After(d) }

func expect(t *testing.T, c *sdstest.Stream, want ...string) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, sent(c)); diff != "" {
		t.Errorf("responses (-want +got):\n%s", diff)
	}
}

func expectEnd(t *testing.T, c *sdstest.Stream, code codes.Code, reason string) {
	t.Helper()
	synctest.Wait()
	if !c.Ended() {
		t.Error("the stream has not ended")
		return
	}
	if err := c.Err(); status.Code(err) != code || !strings.Contains(fmt.Sprint(err), reason) {
		t.Errorf("the stream ended with %v, want %s and %q", err, code, reason)
	}
}

func TestFirstRequestIsAnswered(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.open(t)
		c.First(nil, sds.DefaultName, sds.RootsName)
		expect(t, c, "ROOTCA default")
		have := c.Have()
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(sdstest.Roots(t, have[sds.RootsName]))
		chain := have[sds.DefaultName].GetTlsCertificate().GetCertificateChain().GetInlineBytes()
		others := x509.NewCertPool()
		others.AppendCertsFromPEM(chain)
		leaf := sdstest.Leaf(t, have[sds.DefaultName])
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: time.Now()}); err != nil {
			t.Error(err)
		}
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != s.m.identity.String() {
			t.Errorf("the leaf names %v", leaf.URIs)
		}
		if plain := have[sds.RootsName].GetValidationContext().GetTrustedCa(); plain != nil {
			t.Error("the validation context trusts roots without Envoy's SPIFFE validator")
		}
		if !strings.HasPrefix(string(have[sds.DefaultName].GetTlsCertificate().GetPrivateKey().GetInlineBytes()), "-----BEGIN PRIVATE KEY-----") {
			t.Error("the key is not PKCS #8")
		}
	})
}

// TestAliases asks for everything under each of its names.
func TestAliases(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.open(t)
		c.First(nil, "default", "ROOTCA", "spiffe://cluster.local", s.m.identity.String(), "default")
		expect(t, c, "ROOTCA default spiffe://cluster.local "+s.m.identity.String())
		have := c.Have()
		if !cmp.Equal(have["default"].GetTlsCertificate().GetCertificateChain().GetInlineBytes(), have[s.m.identity.String()].GetTlsCertificate().GetCertificateChain().GetInlineBytes()) {
			t.Error("the aliases of the SVID differ")
		}
		if !cmp.Equal(sdstest.Roots(t, have["ROOTCA"]), sdstest.Roots(t, have["spiffe://cluster.local"])) {
			t.Error("the aliases of the bundle differ")
		}
	})
}

func TestVersions(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		a, b := s.subscribed(t, "ROOTCA"), s.subscribed(t, "default")
		if got, want := a.Responses()[0].GetVersionInfo(), s.source.bundle.Version(); got != want {
			t.Errorf("ROOTCA's version is %s, want %s", got, want)
		}
		if got, want := b.Responses()[0].GetVersionInfo(), s.source.svid.Version(); got != want {
			t.Errorf("default's version is %s, want %s", got, want)
		}
		if a.Responses()[0].GetNonce() == b.Responses()[0].GetNonce() {
			t.Error("two streams share a nonce")
		}
	})
}

// TestOneUnansweredResponse renews and rotates while the client is late: it gets
// the last state of both at once.
func TestOneUnansweredResponse(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.open(t)
		c.First(nil, "default", "ROOTCA")
		expect(t, c, "ROOTCA default")
		for range 3 {
			s.source.set(func(src *source) { src.svid = s.m.svid() })
			synctest.Wait()
		}
		s.m.AddRoot(t)
		s.source.set(func(src *source) { src.bundle = s.m.bundle() })
		expect(t, c, "ROOTCA default")
		c.Ack()
		expect(t, c, "ROOTCA default", "ROOTCA default")
		if got := sdstest.Leaf(t, c.Have()["default"]); !got.NotAfter.Equal(s.source.svid.Ends()) {
			t.Error("it is not the newest SVID")
		}
		c.Ack()
		c.Ack() // twice
		expect(t, c, "ROOTCA default", "ROOTCA default")
	})
}

func TestOnlyWhatChangedIsSent(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, "default", "ROOTCA")
		s.m.AddRoot(t)
		s.source.set(func(src *source) { src.bundle = s.m.bundle() })
		expect(t, c, "ROOTCA default", "ROOTCA")
		c.Ack()
		s.source.set(func(src *source) { src.svid = s.m.svid() })
		expect(t, c, "ROOTCA default", "ROOTCA", "default")
		c.Ack()
		s.source.set(func(src *source) { src.bundle = s.m.bundle() }) // the same roots
		expect(t, c, "ROOTCA default", "ROOTCA", "default")
	})
}

func TestNack(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.open(t)
		c.First(nil, "default")
		synctest.Wait()
		first := s.source.svid.Version()
		c.Nack()
		c.Nack() // twice, with the same nonce
		s.source.set(func(*source) {})
		expect(t, c, "default")
		// Names that change with a refusal count, and the refused bytes stay away
		// even from a new subscription.
		c.Refuse("ROOTCA")
		expect(t, c, "default", "ROOTCA")
		c.Ask("ROOTCA", "default")
		expect(t, c, "default", "ROOTCA")
		s.source.set(func(src *source) { src.svid = s.m.svid() })
		expect(t, c, "default", "ROOTCA", "default")
		c.Ack()
		synctest.Wait()
		want := []answered{
			{"default", first, `code 13: no\nthanks`},
			{"ROOTCA", s.source.bundle.Version(), ""},
			{"default", s.source.svid.Version(), ""},
		}
		if diff := cmp.Diff(want, s.source.answers, cmp.AllowUnexported(answered{})); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		if got := metric(t, s.registry, "hallmark_sds_answers_total", "svid", "nack"); got != 1 {
			t.Errorf("%v refusals are counted, want 1", got)
		}
	})
}

// TestNackWithNewNames is one request that refuses and asks for more.
func TestNackWithNewNames(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.open(t)
		c.First(nil, "default")
		synctest.Wait()
		c.Refuse("default", "ROOTCA")
		expect(t, c, "default", "ROOTCA")
	})
}

func TestStaleNonceIsIgnored(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.open(t)
		c.First(nil, "default")
		synctest.Wait()
		for _, nonce := range []string{"", "guess", strings.ToLower(c.Responses()[0].GetNonce())} {
			c.Put(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default", "ROOTCA"}, ResponseNonce: nonce})
		}
		s.source.set(func(src *source) { src.svid = s.m.svid() })
		expect(t, c, "default") // nothing was answered
		c.Ask("default", "ROOTCA")
		expect(t, c, "default", "ROOTCA default")
		if got := metric(t, s.registry, "hallmark_sds_stale_requests_total"); got != 3 {
			t.Errorf("%v stale requests are counted, want 3", got)
		}
	})
}

func TestNamesChangeBeforeTheFirstResponse(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		s.source.set(func(src *source) { src.svid = nil })
		c := s.open(t)
		c.First(nil, "default")
		synctest.Wait()
		c.Ask("default", "ROOTCA")
		expect(t, c, "ROOTCA")
		c.Ack()
		s.source.set(func(src *source) { src.svid = s.m.svid() })
		expect(t, c, "ROOTCA", "default")
	})
}

func TestUnsubscribe(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, "default", "ROOTCA")
		c.Ask()
		synctest.Wait()
		s.source.set(func(src *source) { src.svid = s.m.svid() })
		expect(t, c, "ROOTCA default")
		c.Ask("default")
		expect(t, c, "ROOTCA default", "default")
		c.Ask("default", "ROOTCA")
		expect(t, c, "ROOTCA default", "default", "ROOTCA")
	})
}

func TestUnknownNames(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		others := []string{"kubernetes://x", "file-root:/etc/x", "spiffe://other.example", "spiffe://cluster.local/ns/shop/sa/other", "", "Default", "ALL", strings.Repeat("x", 5000)}
		c := s.open(t)
		c.First(nil, append(slices.Clone(others), "ROOTCA", "ALL")...)
		expect(t, c, "ROOTCA")
		c.Ack()
		c.Ack()
		d := s.open(t)
		d.First(nil, others...)
		expect(t, d)
		if d.Ended() {
			t.Error("names that stand for nothing ended a stream")
		}
		if got, want := metric(t, s.registry, "hallmark_sds_unknown_names_total"), float64(2*len(others)); got != want {
			t.Errorf("%v unknown names are counted, want %v", got, want)
		}
	})
}

func TestTooManyNames(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		names := []string{"default"}
		for i := range 100 {
			names = append(names, fmt.Sprint("x", i))
		}
		c := s.open(t)
		c.First(nil, names[:100]...)
		expect(t, c, "default")
		c.Ask(names...)
		expectEnd(t, c, codes.ResourceExhausted, "NamesExceeded")
		expect(t, c, "default")
	})
}

func TestTypeURL(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		for _, url := range []string{"", "type.googleapis.com/envoy.config.cluster.v3.Cluster"} {
			c := s.open(t)
			c.Put(&discoveryv3.DiscoveryRequest{TypeUrl: url, ResourceNames: []string{"default"}})
			expectEnd(t, c, codes.InvalidArgument, "RequestMalformed")
			expect(t, c)
		}
		c := s.subscribed(t, "default")
		c.Put(&discoveryv3.DiscoveryRequest{TypeUrl: "type.googleapis.com/other", ResponseNonce: c.Responses()[0].GetNonce(), ResourceNames: []string{"default"}})
		expectEnd(t, c, codes.InvalidArgument, "RequestMalformed")
	})
}

func TestPlainRoots(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		for _, test := range []struct {
			value *structpb.Value
			plain bool
		}{
			{structpb.NewBoolValue(true), true}, {structpb.NewStringValue("true"), true},
			{structpb.NewBoolValue(false), false}, {structpb.NewStringValue("false"), false},
			{structpb.NewStringValue("perhaps"), false}, {structpb.NewNumberValue(1), false}, {nil, false},
		} {
			node := &corev3.Node{Id: "sidecar~10.0.0.1~web-0\x1b[2J", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"disable_spiffe_cert_validation": test.value}}}
			c := s.open(t)
			c.First(node, "ROOTCA")
			expect(t, c, "ROOTCA")
			c.Ack()
			// The Node is not sent again.
			s.m.AddRoot(t)
			s.source.set(func(src *source) { src.bundle = s.m.bundle() })
			expect(t, c, "ROOTCA", "ROOTCA")
			if got := c.Have()["ROOTCA"].GetValidationContext().GetTrustedCa() != nil; got != test.plain {
				t.Errorf("%v: plain roots %v, want %v", test.value, got, test.plain)
			}
			c.Cancel()
		}
	})
}

// TestNotAuthenticated: who proves nothing is sent nothing, and not even read.
func TestNotAuthenticated(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := sdstest.Open(t, s, "bad", time.Now)
		expectEnd(t, c, codes.Unauthenticated, "not authenticated")
		expect(t, c)
	})
}

func TestTooManyStreams(t *testing.T) {
	play(t, func(cfg *sds.Config) { cfg.MaxStreams = 2 }, func(t *testing.T, s *scene) {
		a := s.subscribed(t, "default")
		s.subscribed(t, "default")
		c := s.open(t)
		expectEnd(t, c, codes.Unavailable, "Overloaded")
		if s.source.opened != 2 {
			t.Errorf("%d streams reached the source, want 2", s.source.opened)
		}
		a.CloseSend()
		expectEnd(t, a, codes.OK, "")
		s.subscribed(t, "default")
	})
}

// TestExpiredIsNeverSent: a leaf that ends while the client is late is not sent
// any more, and neither is one that a source holds on to.
func TestExpiredIsNeverSent(t *testing.T) {
	play(t, func(cfg *sds.Config) { cfg.SlowReader = 48 * time.Hour }, func(t *testing.T, s *scene) {
		c := s.subscribed(t, "default")
		s.source.set(func(src *source) { src.svid = s.m.svid() })
		expect(t, c, "default", "default")
		s.source.set(func(src *source) { src.svid = s.m.svid() })
		pass(7 * time.Hour)
		c.Ack()
		expect(t, c, "default", "default")
		d := s.open(t)
		d.First(nil, "default")
		pass(4 * time.Second)
		expect(t, d)
		pass(2 * time.Second)
		expectEnd(t, d, codes.Unavailable, "Overloaded")
	})
}
