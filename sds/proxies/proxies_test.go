package proxies_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/profile"
	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/proxies"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

// image is what the pods of these tests run.
const (
	digest = "sha256:aa"
	image  = "registry.example/web@" + digest
)

// scene is a whole way from a stream to the authority.
type scene struct {
	*ratest.World
	feed    attest.Feed
	proxies *proxies.Proxies
	server  *sds.Server
	pod     *attest.Pod
	token   string
	stop    func() // the proxies alone
}

// leafOf makes leaves of the given life, also of seconds.
func leafOf(t *testing.T, life time.Duration) func(*ca.Config) {
	t.Helper()
	leaf, err := profile.NewLeaf(profile.LeafConfig{Default: life, Max: 24 * time.Hour, Min: min(life, time.Minute), BackDate: 0, UnsafeShort: true})
	if err != nil {
		t.Fatal(err)
	}
	return func(cfg *ca.Config) { cfg.Leaf = leaf }
}

// play runs test in a bubble of time, with leaves of half an hour.
func play(t *testing.T, change func(*proxies.Config), test func(t *testing.T, s *scene)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 30*time.Minute, change)
		synctest.Wait()
		test(t, s)
	})
}

func newScene(t *testing.T, life time.Duration, change func(*proxies.Config)) *scene {
	t.Helper()
	s := assemble(t, life, change)
	s.stop = run(t, s.proxies.Run)
	run(t, s.server.Run)
	return s
}

// assemble makes a scene in which nothing runs.
func assemble(t *testing.T, life time.Duration, change func(*proxies.Config)) *scene {
	t.Helper()
	s := &scene{World: ratest.New(t, ratest.Config{CA: leafOf(t, life)})}
	s.pod, s.token = s.Pod("shop", "web-0", "web", image)
	cfg := proxies.Config{RA: s.RA, Authority: s.Authority.Authority, Feed: &s.feed, Registerer: s.Metrics, Log: s.Logger(), Now: time.Now}
	if change != nil {
		change(&cfg)
	}
	var err error
	if s.proxies, err = proxies.New(cfg); err != nil {
		t.Fatal(err)
	}
	if s.server, err = sds.New(sds.Config{Source: s.proxies, Registerer: s.Metrics, Log: s.Logger(), Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs fn until the test ends, or the returned function is called.
func run(t *testing.T, fn func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		if err := fn(ctx); err != nil {
			t.Error(err)
		}
		close(done)
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

func (s *scene) open(t *testing.T, token string, names ...string) *sdstest.Stream {
	c := sdstest.Open(t, s.server, token, time.Now)
	t.Cleanup(func() {
		c.Cancel()
		<-c.Done()
	})
	c.First(nil, names...)
	synctest.Wait()
	return c
}

// subscribed opens a stream and accepts what comes first.
func (s *scene) subscribed(t *testing.T, token string, names ...string) *sdstest.Stream {
	t.Helper()
	c := s.open(t, token, names...)
	if len(c.Responses()) != 1 {
		t.Fatalf("%d responses, ended %v: %v", len(c.Responses()), c.Ended(), c.Err())
	}
	c.Ack()
	synctest.Wait()
	return c
}

// serial returns the serial of the newest leaf that c has.
func serial(t *testing.T, c *sdstest.Stream) string {
	t.Helper()
	return sdstest.Leaf(t, c.Have()["default"]).SerialNumber.String()
}

func (s *scene) issued() int { return len(s.Authority.Ledger.Intents()) }

func (s *scene) announce(c attest.Change) {
	s.feed.Announce(c)
	synctest.Wait()
}

func (s *scene) instance() attest.Instance {
	return attest.Instance{Cluster: s.pod.Cluster, PodUID: s.pod.Ref.UID}
}

func expectEnd(t *testing.T, c *sdstest.Stream, code codes.Code, reason string) {
	t.Helper()
	synctest.Wait()
	if !c.Ended() {
		t.Errorf("the stream has not ended; it should with %s", reason)
		return
	}
	if err := c.Err(); status.Code(err) != code || !strings.Contains(fmt.Sprint(err), reason) {
		t.Errorf("the stream ended with %v, want %s and %q", err, code, reason)
	}
}

func expectOpen(t *testing.T, streams ...*sdstest.Stream) {
	t.Helper()
	synctest.Wait()
	for _, c := range streams {
		if c.Ended() {
			t.Errorf("the stream ended: %v", c.Err())
		}
	}
}

func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestStreamsShareOneSVID(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		id := s.Identity(t, "shop", "web").String()
		var streams []*sdstest.Stream
		for range 20 {
			for _, name := range []string{"default", "ROOTCA", id} {
				streams = append(streams, s.subscribed(t, s.token, name))
			}
		}
		if s.issued() != 1 {
			t.Errorf("%d certificates were issued, want 1", s.issued())
		}
		leaves := map[string]bool{}
		for _, c := range streams {
			for name, secret := range c.Have() {
				if name != "ROOTCA" {
					leaves[sdstest.Leaf(t, secret).SerialNumber.String()] = true
				}
			}
		}
		if len(leaves) != 1 {
			t.Errorf("the streams have %d leaves", len(leaves))
		}
		if got := s.Count(t, "hallmark_sds_proxies"); got != 1 {
			t.Errorf("%v proxies are counted, want 1", got)
		}
	})
}

// TestStreamsAtOnce opens a proxy's streams before the first has its answer.
func TestStreamsAtOnce(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		release := s.Gate.Block()
		var streams []*sdstest.Stream
		for i := range 30 {
			streams = append(streams, s.open(t, s.token, []string{"default", "ROOTCA"}[i%2]))
		}
		for _, c := range streams {
			if len(c.Responses()) != 0 {
				t.Error("a secret was sent before the images were checked")
			}
		}
		release()
		synctest.Wait()
		for _, c := range streams {
			if len(c.Responses()) != 1 {
				t.Errorf("%d responses, ended: %v", len(c.Responses()), c.Err())
			}
		}
		if s.issued() != 1 || s.Gate.Checks() > 2 {
			t.Errorf("%d certificates and %d image checks, want 1 and at most 2", s.issued(), s.Gate.Checks())
		}
	})
}

// TestNodeSelectsNothing: what a proxy says of itself gives it nothing of
// another's.
func TestNodeSelectsNothing(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		a := s.subscribed(t, s.token, "default")
		other, token := s.Pod("shop", "web-1", "web", image)
		b := sdstest.Open(t, s.server, token, time.Now)
		b.First(&corev3.Node{Id: "sidecar~10.0.0.1~web-0.shop~" + s.pod.Ref.UID, Cluster: s.pod.Cluster}, "default")
		synctest.Wait()
		keyA := a.Have()["default"].GetTlsCertificate().GetPrivateKey().GetInlineBytes()
		keyB := b.Have()["default"].GetTlsCertificate().GetPrivateKey().GetInlineBytes()
		if len(keyB) == 0 || bytes.Equal(keyA, keyB) {
			t.Error("two pods have one key, or none")
		}
		intents := s.Authority.Ledger.Intents()
		if len(intents) != 2 || intents[1].PodUID != other.Ref.UID || intents[1].Door != proxies.Door {
			t.Errorf("the ledger says %+v", intents)
		}
		b.Cancel()
		<-b.Done()
	})
}

func TestAnotherIdentityIsUnknown(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.open(t, s.token, s.Identity(t, "shop", "other").String(), "ROOTCA")
		c.Ack()
		synctest.Wait()
		if have := c.Have(); len(have) != 1 || have["ROOTCA"] == nil {
			t.Errorf("the stream has %v", have)
		}
		if log := s.Log.String(); strings.Count(log, "stands for nothing") != 1 {
			t.Errorf("the unknown name is logged %d times, want once", strings.Count(log, "stands for nothing"))
		}
		s.open(t, s.token, s.Identity(t, "shop", "other").String())
		if log := s.Log.String(); strings.Count(log, "stands for nothing") != 1 {
			t.Error("the unknown name is logged again for the same proxy")
		}
		if s.issued() != 0 {
			t.Error("a certificate was issued that nobody asked for")
		}
	})
}

func TestRefusedAtFirst(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		s.Gate.Deny(image, attest.ImageUnsigned)
		for _, names := range [][]string{{"default"}, {"ROOTCA"}, {"default", "ROOTCA"}} {
			c := s.open(t, s.token, names...)
			expectEnd(t, c, codes.PermissionDenied, "ImageUnsigned")
			if len(c.Responses()) != 0 {
				t.Errorf("%v: a refused pod was sent %v", names, c.Responses())
			}
		}
		bad := s.open(t, "garbage", "default")
		expectEnd(t, bad, codes.Unauthenticated, "not authenticated")
		if got := s.Count(t, "hallmark_sds_proxies"); got != 0 {
			t.Errorf("%v proxies are left", got)
		}
		if got := len(s.Authority.Ledger.Refusals()); got != 3 || s.issued() != 0 {
			t.Errorf("%d refusals and %d certificates are recorded, want 3 and 0", got, s.issued())
		}
	})
}

// TestChanges: whatever was announced, the authority is asked again, and its
// refusal ends the streams with their reason at once.
func TestChanges(t *testing.T) {
	tests := []struct {
		name   string
		change func(s *scene) attest.Change
		within time.Duration
	}{
		{"pod", func(s *scene) attest.Change { return attest.Change{Instance: s.instance()} }, 0},
		{"image", func(*scene) attest.Change { return attest.Change{Digest: digest} }, 0},
		{"everybody", func(*scene) attest.Change { return attest.Change{} }, 10 * time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			play(t, nil, func(t *testing.T, s *scene) {
				pass(11 * time.Second) // what Run itself announces
				a, b := s.subscribed(t, s.token, "default"), s.subscribed(t, s.token, "ROOTCA")
				checks := s.Gate.Checks()
				s.announce(attest.Change{Digest: "sha256:other"})
				s.announce(attest.Change{Instance: attest.Instance{Cluster: "Kubernetes", PodUID: "other"}})
				if s.Gate.Checks() != checks {
					t.Error("a change of others had the proxy asked about")
				}
				s.announce(test.change(s))
				pass(test.within)
				expectOpen(t, a, b)
				if got := s.Gate.Checks(); got != checks+1 || s.issued() != 1 {
					t.Errorf("%d checks and %d certificates, want 1 and 1", got-checks, s.issued())
				}
				s.Gate.Deny(image, attest.ImageSignatureInvalid)
				s.announce(test.change(s))
				pass(test.within)
				expectEnd(t, a, codes.PermissionDenied, "ImageSignatureInvalid")
				expectEnd(t, b, codes.PermissionDenied, "ImageSignatureInvalid")
				// Its key is gone with it.
				s.Gate.Pass(image)
				old := serial(t, a)
				if serial(t, s.subscribed(t, s.token, "default")) == old {
					t.Error("a proxy that was refused has its SVID again")
				}
			})
		})
	}
}

// TestImageSwapped: after its pod changed, a proxy answers to every digest,
// because a check does not tell what it saw.
func TestImageSwapped(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "default")
		const swapped = "registry.example/web@sha256:bb"
		s.Cluster.Change(s.pod.Ref, func(p *attest.Pod) {
			p.Containers = []attest.Container{{Name: "app", Image: swapped, ImageID: swapped, Running: true}}
		})
		s.announce(attest.Change{Instance: s.instance()})
		expectOpen(t, c)
		s.Gate.Deny(swapped, attest.ImageUnsigned)
		s.announce(attest.Change{Digest: "sha256:bb"})
		expectEnd(t, c, codes.PermissionDenied, "ImageUnsigned")
	})
}

func TestPodGone(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "default")
		s.Cluster.Remove(s.pod.Ref)
		s.announce(attest.Change{Instance: s.instance()})
		expectEnd(t, c, codes.Unauthenticated, "not authenticated")
		if got := s.Count(t, "hallmark_sds_proxies"); got != 0 {
			t.Errorf("%v proxies are left", got)
		}
	})
}

// TestPodGoneWithoutStream: the key of a pod that is gone does not stay.
func TestPodGoneWithoutStream(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "default")
		c.Cancel()
		synctest.Wait()
		if got := s.Count(t, "hallmark_sds_proxies"); got != 1 {
			t.Errorf("%v proxies are kept, want 1", got)
		}
		s.Cluster.Remove(s.pod.Ref)
		s.announce(attest.Change{Instance: s.instance()})
		if got := s.Count(t, "hallmark_sds_proxies"); got != 0 {
			t.Errorf("%v proxies are left", got)
		}
	})
}

// TestReconnect: a proxy that comes back has the same SVID without a new
// issuance, but only after it was looked at again.
func TestReconnect(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "default")
		first := serial(t, c)
		c.Cancel()
		pass(time.Minute)
		checks := s.Gate.Checks()
		if again := serial(t, s.subscribed(t, s.token, "default")); again != first || s.issued() != 1 {
			t.Errorf("serial %s after %s, %d certificates", again, first, s.issued())
		}
		if s.Gate.Checks() == checks {
			t.Error("the images were not looked at again")
		}
		s.Gate.Deny(image, attest.ImageUnsigned)
		d := s.open(t, s.token, "default")
		expectEnd(t, d, codes.PermissionDenied, "ImageUnsigned")
		if len(d.Responses()) != 0 {
			t.Error("a proxy that came back was sent what it may not have any more")
		}
	})
}

// TestReconnectWhileUnavailable: a new stream gets nothing without an answer;
// the old one keeps what it has.
func TestReconnectWhileUnavailable(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "default")
		s.Gate.Deny(image, attest.RegistryAway)
		d := s.open(t, s.token, "default")
		expectEnd(t, d, codes.Unavailable, "RegistryAway")
		if len(d.Responses()) != 0 {
			t.Error("a stream was answered without an answer")
		}
		expectOpen(t, c)
	})
}

func TestBounds(t *testing.T) {
	play(t, func(cfg *proxies.Config) { cfg.MaxStreams, cfg.MaxProxies = 3, 2 }, func(t *testing.T, s *scene) {
		for range 3 {
			s.subscribed(t, s.token, "default")
		}
		expectEnd(t, s.open(t, s.token, "default"), codes.ResourceExhausted, "CallerStreamsExceeded")
		_, second := s.Pod("shop", "web-1", "web", image)
		c := s.subscribed(t, second, "default")
		_, third := s.Pod("shop", "web-2", "web", image)
		expectEnd(t, s.open(t, third, "default"), codes.Unavailable, "Overloaded")
		c.Cancel() // one without a stream makes room
		synctest.Wait()
		s.subscribed(t, third, "default")
		if got := s.Count(t, "hallmark_sds_proxies"); got != 2 {
			t.Errorf("%v proxies are kept, want 2", got)
		}
	})
}

func TestShutDown(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "default")
		release := s.Gate.Block()
		waiting := s.open(t, s.token, "default")
		s.stop()
		release()
		expectEnd(t, c, codes.Unavailable, "ShuttingDown")
		expectEnd(t, waiting, codes.Unavailable, "ShuttingDown")
		expectEnd(t, s.open(t, s.token, "default"), codes.Unavailable, "ShuttingDown")
		if refusals := s.Authority.Ledger.Refusals(); len(refusals) != 0 {
			t.Errorf("a stop is recorded as %v", refusals)
		}
	})
}

// TestAnswers: an acknowledgement of what the same proxy has refused proves
// nothing.
func TestAnswers(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.open(t, s.token, "default")
		c.Nack()
		synctest.Wait()
		if got := s.Count(t, "hallmark_sds_proxies_refusing"); got != 1 {
			t.Errorf("%v proxies refuse something, want 1", got)
		}
		d := s.subscribed(t, s.token, "default") // the same bytes, accepted
		if got := s.Count(t, "hallmark_sds_unproven_acks_total"); got != 1 {
			t.Errorf("%v answers prove nothing, want 1", got)
		}
		if got := s.Count(t, "hallmark_sds_proxies_refusing"); got != 1 {
			t.Errorf("%v proxies refuse something, want 1", got)
		}
		pass(20 * time.Minute) // renewed
		c.Ack()
		d.Ack()
		synctest.Wait()
		if got := s.Count(t, "hallmark_sds_proxies_refusing"); got != 0 {
			t.Errorf("%v proxies refuse something, want none", got)
		}
		log := s.Log.String()
		if !strings.Contains(log, `"a proxy refused a secret`) || strings.Contains(log, "PRIVATE") || strings.Contains(log, s.token) {
			t.Error("the refusal is not logged, or a secret is")
		}
	})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	if _, err := proxies.New(proxies.Config{}); err == nil {
		t.Error("proxies were made of nothing")
	}
}

// TestPodsAreApart refuses one of several pods.
func TestPodsAreApart(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		var others []*sdstest.Stream
		for i := range 10 {
			_, token := s.Pod("shop", fmt.Sprint("other-", i), "web", "registry.example/other@sha256:cc")
			others = append(others, s.subscribed(t, token, "default"), s.subscribed(t, token, "ROOTCA"))
		}
		c := s.subscribed(t, s.token, "default")
		s.Gate.Deny(image, attest.ImageUnsigned)
		s.announce(attest.Change{Digest: digest})
		expectEnd(t, c, codes.PermissionDenied, "ImageUnsigned")
		expectOpen(t, others...)
	})
}
