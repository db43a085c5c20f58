package e2e_test

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hallmark-ca/hallmark/test/bench/envoy"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
)

// shortLeaves renews every few seconds.
func shortLeaves(life string) map[string]any {
	return map[string]any{"authority.leaf.default": life, "authority.leaf.min": "2s", "authority.leaf.backDate": "0s", "authority.unsafeShortLifetimes": true}
}

// A stream is older than the token in its header: renewal works on live facts,
// without another review; the stream ends at the token's expiry; and the real
// Envoy returns with the new token and drops no request. Both ways of reaching
// us.
func TestStreamOutlivesItsToken(t *testing.T) {
	const tokenLife = 24 * time.Second
	for _, sample := range []string{envoy.EnvoyGRPC, envoy.GoogleGRPC} {
		t.Run(sample, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, 3*time.Minute, mesh.Config{Settings: shortLeaves("10s")})
			client, server := s.run("client"), s.run("server")
			start := time.Now()
			first, err := client.ShortToken(tokenLife)
			must(t, err)
			p := s.newPair(sample, first, "", client, server)
			stop := p.traffic()

			// The stream stays, and renews, while the token in its header grows old.
			before, err := p.client.Identity(s.ctx)
			must(t, err)
			ended, reviews, renewals := s.streamsEnded("CredentialEnding"), s.metrics().Sum("hallmark_token_reviews_total"), 0
			for time.Since(start) < tokenLife*2/3 {
				next, err := p.client.AwaitAnother(s.ctx, before)
				must(t, err)
				if next.ID != client.Identity() {
					t.Fatalf("renewed as %s", next.ID)
				}
				before = next
				renewals++
			}
			if n := s.streamsEnded("CredentialEnding"); n != ended {
				t.Errorf("a stream ended after %s of %s", time.Since(start), tokenLife)
			}
			if n := s.metrics().Sum("hallmark_token_reviews_total") - reviews; n != 0 {
				t.Errorf("renewals had tokens reviewed %v times", n)
			}
			if renewals < 2 {
				t.Errorf("%d renewals on the first token, want 2 or more", renewals)
			}

			// kubelet puts the new one in place, and later the old one ends.
			second, err := client.Token(s.ctx)
			must(t, err)
			must(t, p.client.SetToken(second))
			s.eventually(tokenLife, func() error {
				if s.streamsEnded("CredentialEnding") == ended {
					return errors.New("no stream has ended with its token")
				}
				return nil
			})
			if took := time.Since(start); took < tokenLife*4/5 || took > tokenLife+time.Second {
				t.Errorf("the stream ended after %s, its token lives %s", took, tokenLife)
			}
			// It is back and goes on renewing, long after the first token.
			for range 3 {
				if before, err = p.client.AwaitAnother(s.ctx, before); err != nil {
					t.Fatal(err)
				}
			}
			if time.Since(start) < tokenLife+5*time.Second {
				t.Errorf("only %s have passed: this shows nothing", time.Since(start))
			}
			calls, failed := stop()
			if len(failed) > 0 || calls < 200 {
				t.Errorf("%d of %d requests were dropped: %v", len(failed), calls, failed)
			}
			if n := s.metrics().Refusals("TokenExpired"); n != 0 {
				t.Errorf("it came back %v times with the old token", n)
			}
			wantTold(t, p.client, codes.Unauthenticated, 0)
		})
	}
}

// A token that ends without another in its place ends the stream, and the Envoy
// keeps what it has and gets nothing new.
func TestStreamEndsWithItsTokenAlone(t *testing.T) {
	t.Parallel()
	const tokenLife = 10 * time.Second
	s := newScene(t, 2*time.Minute, mesh.Config{Settings: shortLeaves("8s")})
	pod := s.run("client")
	token, err := pod.ShortToken(tokenLife)
	must(t, err)
	start := time.Now()
	e, err := pod.Envoy(s.ctx, envoy.Config{Token: token, Caller: pod.Identity(), Server: pod.Identity()})
	must(t, err)
	_, err = e.AwaitIdentity(s.ctx)
	must(t, err)
	s.eventually(tokenLife+5*time.Second, func() error { return s.atLeast("TokenExpired", 2) })
	last, err := e.Identity(s.ctx)
	must(t, err)
	if last.Leaf.NotAfter.After(start.Add(tokenLife + 8*time.Second)) {
		t.Errorf("its certificate lives until %s, as if the token had not ended at %s", last.Leaf.NotAfter, start.Add(tokenLife))
	}
	s.pass(3 * time.Second)
	now, err := e.Identity(s.ctx)
	must(t, err)
	if now.Serial() != last.Serial() {
		t.Error("it got another certificate after its token had ended")
	}
}

// streamsEnded counts the SDS streams that the server ended for the reason.
func (s *scene) streamsEnded(reason string) float64 {
	s.t.Helper()
	return s.metrics().Sum("hallmark_sds_streams_ended_total", "reason", reason)
}

// wantTold checks how often an Envoy was told the code.
func wantTold(t *testing.T, e *envoy.Envoy, code codes.Code, want int) {
	t.Helper()
	told, err := e.Refusals(code)
	must(t, err)
	if len(told) != want {
		t.Errorf("the Envoy was told %s %d times, want %d: %v", code, len(told), want, told)
	}
}
