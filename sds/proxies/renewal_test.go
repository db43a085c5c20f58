package proxies_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/sds/proxies"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

// errLedger is a disk that is full.
var errLedger = errors.New("no space left on device")

// next passes time until c has a newer leaf than it had, and accepts it.
func next(t *testing.T, c *sdstest.Stream, step, limit time.Duration) time.Duration {
	t.Helper()
	for synctest.Wait(); c.Waiting(); synctest.Wait() {
		c.Ack()
	}
	start, old := time.Now(), serial(t, c)
	for time.Since(start) < limit {
		pass(step)
		if c.Ended() {
			t.Fatalf("the stream ended: %v", c.Err())
		}
		if serial(t, c) != old {
			c.Ack()
			synctest.Wait()
			return time.Since(start)
		}
	}
	t.Fatalf("nothing was renewed within %s", limit)
	return 0
}

// TestRenewal: at half of the life, 10 % of it earlier or later, on all streams,
// with a new key each time; the old one stays until then.
func TestRenewal(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		a, b := s.subscribed(t, s.token, "default"), s.subscribed(t, s.token, "default")
		roots := s.subscribed(t, s.token, "ROOTCA")
		key := a.Have()["default"].GetTlsCertificate().GetPrivateKey().GetInlineBytes()
		for n := range 3 {
			leaf := sdstest.Leaf(t, a.Have()["default"])
			half := time.Until(leaf.NotAfter) / 2
			after := next(t, a, time.Second, time.Hour)
			b.Ack()
			synctest.Wait()
			if after < half*9/10-time.Second || after > half*11/10+2*time.Second {
				t.Errorf("renewed after %s, half of the life is %s", after, half)
			}
			if serial(t, a) != serial(t, b) || s.issued() != n+2 {
				t.Errorf("serials %s and %s, %d certificates", serial(t, a), serial(t, b), s.issued())
			}
			newKey := a.Have()["default"].GetTlsCertificate().GetPrivateKey().GetInlineBytes()
			if bytes.Equal(newKey, key) {
				t.Error("the key was used again")
			}
			key = newKey
		}
		if got := len(roots.Responses()); got != 1 {
			t.Errorf("a renewal sent the roots again: %d responses", got)
		}
		expectOpen(t, a, b, roots)
	})
}

// TestLivesOfSeconds renews twenty times.
func TestLivesOfSeconds(t *testing.T) {
	t.Parallel()
	for _, life := range []time.Duration{2 * time.Second, 3 * time.Second, 10 * time.Second} {
		t.Run(life.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, life, nil)
				pass(300 * time.Millisecond) // certificates count in whole seconds
				c := s.subscribed(t, s.token, "default")
				for range 20 {
					next(t, c, 50*time.Millisecond, life)
				}
				// Whole seconds and jitter can make two of one where lives are that short.
				if s.issued() < 21 || s.issued() > 42 {
					t.Errorf("%d certificates were issued, want about 21", s.issued())
				}
			})
		})
	}
}

// TestRenewalsAreSpread: a burst of issues does not become one of renewals.
func TestRenewalsAreSpread(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		for i := range 100 {
			_, token := s.Pod("shop", fmt.Sprint("pod-", i), "web", image)
			s.subscribed(t, token, "default")
		}
		most, before := 0, s.issued()
		for range 18 * 60 {
			pass(time.Second)
			most, before = max(most, s.issued()-before), s.issued()
		}
		if s.issued() != 200 {
			t.Errorf("%d certificates were issued, want 200", s.issued())
		}
		if most > 10 {
			t.Errorf("%d renewals fell into one second", most)
		}
	})
}

// TestRenewalRefused: any refusal but an unavailable one ends the streams.
func TestRenewalRefused(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		a, b := s.subscribed(t, s.token, "default"), s.subscribed(t, s.token, "ROOTCA")
		s.Gate.Deny(image, attest.ImagePolicyFailed) // and nobody says so
		pass(12 * time.Minute)
		expectOpen(t, a, b)
		pass(6 * time.Minute)
		expectEnd(t, a, codes.PermissionDenied, "ImagePolicyFailed")
		expectEnd(t, b, codes.PermissionDenied, "ImagePolicyFailed")
	})
}

// TestRenewalUnavailable: what cannot be answered is asked again while the
// certificate lives, and ends the stream when it does not any more.
func TestRenewalUnavailable(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "default")
		first := sdstest.Leaf(t, c.Have()["default"])
		s.Authority.Ledger.Fail(errLedger)
		pass(20 * time.Minute)
		expectOpen(t, c)
		s.Authority.Ledger.Fail(nil)
		pass(90 * time.Second)
		if serial(t, c) == first.SerialNumber.String() {
			t.Error("nothing was renewed within 90 s of the ledger's return")
		}
		c.Ack()
		leaf := sdstest.Leaf(t, c.Have()["default"])
		s.Authority.Ledger.Fail(errLedger)
		pass(time.Until(leaf.NotAfter) - time.Second)
		expectOpen(t, c)
		tries := s.Count(t, "hallmark_sds_asks_total", "what", "renewal", "result", "unavailable")
		if tries < 10 || tries > 100 {
			t.Errorf("it was asked %v times", tries)
		}
		pass(3 * time.Second)
		expectEnd(t, c, codes.Unavailable, "LedgerUnwritable")
		if got := s.Count(t, "hallmark_sds_proxies"); got != 0 {
			t.Errorf("%v proxies are kept with a certificate that has ended", got)
		}
		if len(c.Responses()) != 2 {
			t.Errorf("%d responses", len(c.Responses()))
		}
	})
}

// TestUnavailableChange: a change that nothing can be said about is asked about
// until there is an answer.
func TestUnavailableChange(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "default")
		s.Gate.Deny(image, attest.EvidencePending)
		s.announce(attest.Change{Digest: digest})
		expectOpen(t, c)
		s.Gate.Deny(image, attest.ImageUnsigned)
		pass(3 * time.Second)
		expectEnd(t, c, codes.PermissionDenied, "ImageUnsigned")

		// However long the pauses have become, news are acted on at once.
		s.Gate.Pass(image)
		c = s.subscribed(t, s.token, "default")
		s.Gate.Deny(image, attest.RegistryAway)
		s.announce(attest.Change{Digest: digest})
		pass(5 * time.Minute)
		expectOpen(t, c)
		s.Gate.Deny(image, attest.ImageUnsigned)
		s.announce(attest.Change{Instance: s.instance()})
		expectEnd(t, c, codes.PermissionDenied, "ImageUnsigned")
	})
}

// TestNobodyStarves: questions that nobody waits for take turns, but not those
// of certificates that end soon.
func TestNobodyStarves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2*time.Minute, func(cfg *proxies.Config) { cfg.Parallel = 1 })
		var stuck atomic.Bool
		s.Authority.Ledger.OnAppend = func(ctx context.Context, i *ledger.Intent) error {
			if stuck.Load() && i.Pod != s.pod.Ref.Name {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		c := s.subscribed(t, s.token, "default")
		for i := range 60 {
			_, token := s.Pod("shop", fmt.Sprint("stuck-", i), "web", image)
			s.subscribed(t, token, "default")
		}
		stuck.Store(true)
		for range 5 {
			next(t, c, time.Second, 95*time.Second)
		}
	})
}

// TestAPIServerAway: known proxies renew from the last view, new ones wait.
func TestAPIServerAway(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "default")
		s.Cluster.SetAway(true)
		next(t, c, time.Minute, 20*time.Minute)
		_, token := s.Pod("shop", "new", "web", image)
		expectEnd(t, s.open(t, token, "default"), codes.Unavailable, "APIServerAway")
		expectOpen(t, c)
	})
}

// TestTokenEnds: the stream ends before its token does, the proxy comes back and
// has what it had.
func TestTokenEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 6*time.Hour, nil)
		c := s.subscribed(t, s.token, "default")
		start := time.Now()
		<-c.Done()
		expectEnd(t, c, codes.Unavailable, "CredentialEnding")
		if age := time.Since(start); age < 54*time.Minute || age > time.Hour {
			t.Errorf("the stream ended after %s", age)
		}
		s.Cluster.Add(s.pod) // a new token
		if d := s.subscribed(t, s.token, "default"); serial(t, d) != serial(t, c) || s.issued() != 1 {
			t.Error("the proxy that came back has another SVID")
		}
	})
}

// TestNobodyRenewsForNobody: with no stream open, the key goes when a renewal
// would be due.
func TestNobodyRenewsForNobody(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		s.subscribed(t, s.token, "default").Cancel()
		pass(13 * time.Minute)
		if got := s.Count(t, "hallmark_sds_proxies"); got != 1 {
			t.Errorf("%v proxies are kept, want 1", got)
		}
		pass(4 * time.Minute)
		if got := s.Count(t, "hallmark_sds_proxies"); got != 0 || s.issued() != 1 {
			t.Errorf("%v proxies are kept and %d certificates issued, want 0 and 1", got, s.issued())
		}
		roots := s.subscribed(t, s.token, "default", "ROOTCA")
		roots.Ask("ROOTCA") // it does not ask for the SVID any more
		pass(20 * time.Minute)
		if s.issued() != 2 {
			t.Errorf("%d certificates, want 2", s.issued())
		}
		roots.Ask("ROOTCA", "default")
		synctest.Wait()
		if s.issued() != 3 || len(roots.Responses()) != 2 {
			t.Errorf("%d certificates and %d responses, want 3 and 2", s.issued(), len(roots.Responses()))
		}
		if got := s.Count(t, "hallmark_sds_asks_total", "what", "renewal"); got != 0 {
			t.Errorf("%v renewals, want none: an SVID that nobody wants does not wait to be renewed", got)
		}
	})
}

// TestProvisional: a pod whose digest is not known for certain gets a minute,
// and the rest as soon as it is.
func TestProvisional(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 30*time.Minute, nil)
		s.Gate.Provisional(image)
		c := s.subscribed(t, s.token, "default")
		if life := time.Until(sdstest.Leaf(t, c.Have()["default"]).NotAfter); life > time.Minute {
			t.Errorf("a provisional certificate lives %s", life)
		}
		next(t, c, time.Second, time.Minute)
		s.Gate.Pass(image)
		s.announce(attest.Change{Instance: s.instance()})
		c.Ack()
		if life := time.Until(sdstest.Leaf(t, c.Have()["default"]).NotAfter); life < 20*time.Minute {
			t.Errorf("the certificate lives %s after the digest became known", life)
		}
		issued := s.issued()
		s.announce(attest.Change{Instance: s.instance()})
		if s.issued() != issued {
			t.Error("a certificate that is not provisional was replaced")
		}
	})
}

// TestRotation: a new root is sent at once to those who have the roots and to
// nobody else; a new issuing CA under the same roots is nothing that is sent.
func TestRotation(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		roots, svid, both := s.subscribed(t, s.token, "ROOTCA"), s.subscribed(t, s.token, "default"), s.subscribed(t, s.token, "ROOTCA", "default")
		s.Authority.Renew(t)
		synctest.Wait()
		for _, c := range []*sdstest.Stream{roots, svid, both} {
			if len(c.Responses()) != 1 {
				t.Error("a new issuing CA under the same roots was sent")
			}
		}
		s.Authority.AddRoot(t)
		synctest.Wait()
		if len(roots.Responses()) != 2 || len(svid.Responses()) != 1 || len(both.Responses()) != 2 {
			t.Errorf("%d, %d and %d responses, want 2, 1 and 2", len(roots.Responses()), len(svid.Responses()), len(both.Responses()))
		}
		if n := len(both.Responses()[1].GetResources()); n != 1 {
			t.Errorf("a new root was sent with %d other secrets", n-1)
		}
		if !bytes.Equal(sdstest.Roots(t, roots.Have()["ROOTCA"]), s.Authority.Current().BundlePEM()) {
			t.Error("what was sent is not the bundle")
		}
		if s.issued() != 1 {
			t.Errorf("%d certificates, want 1", s.issued())
		}
	})
}

// TestRootRemoved: what leads to a root that is trusted no more is replaced at
// once.
func TestRootRemoved(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "ROOTCA", "default")
		now := time.Now()
		rootKey, key := catest.Key(t), catest.Key(t)
		root := catest.Certify(t, ca.Root, s.Domain, rootKey, ca.Parent{}, catest.RootLifetime, now)
		issuing := catest.Certify(t, ca.Issuing, s.Domain, key, ca.Parent{Certificate: root, Signer: rootKey}, catest.IssuingLifetime, now)
		snap, err := ca.NewSnapshot(ca.SnapshotConfig{
			TrustDomain: s.Domain, Sequence: s.Authority.Current().Sequence() + 1, Signer: crypto.Signer(key),
			Chain: []*x509.Certificate{issuing}, Roots: []*x509.Certificate{root},
		}, now)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Authority.Install(snap); err != nil {
			t.Fatal(err)
		}
		for synctest.Wait(); c.Waiting(); synctest.Wait() {
			c.Ack()
		}
		pool, others := x509.NewCertPool(), x509.NewCertPool()
		pool.AppendCertsFromPEM(sdstest.Roots(t, c.Have()["ROOTCA"]))
		others.AppendCertsFromPEM(c.Have()["default"].GetTlsCertificate().GetCertificateChain().GetInlineBytes())
		if _, err := sdstest.Leaf(t, c.Have()["default"]).Verify(x509.VerifyOptions{Roots: pool, Intermediates: others, CurrentTime: time.Now()}); err != nil {
			t.Error(err)
		}
		if s.issued() != 2 {
			t.Errorf("%d certificates, want 2", s.issued())
		}
	})
}
