package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hallmark-ca/hallmark/test/bench/cluster"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
	"github.com/hallmark-ca/hallmark/test/bench/pods"
)

// refusedToken is a token that gets nothing, and why.
type refusedToken struct {
	name     string
	reason   string
	ledgered bool // its bearer was authenticated before it was refused
	// make returns the token; pod is one of its own for each case.
	make func(*scene, *mesh.Pod) string
	// stillReviewed: the API server vouches for it all the same.
	stillReviewed bool
}

var refusedTokens = []refusedToken{
	{name: "none", reason: "TokenMissing", make: func(*scene, *mesh.Pod) string { return "" }},
	{name: "garbage", reason: "TokenMalformed", make: func(*scene, *mesh.Pod) string { return "let-me-in" }},
	{name: "garbage in three parts", reason: "TokenMalformed", make: func(*scene, *mesh.Pod) string { return "bGV0.bWU.aW4" }},
	{name: "forged signature", reason: "TokenSignatureInvalid", make: (*scene).forged},
	{name: "changed claims", reason: "TokenSignatureInvalid", make: (*scene).changed},
	{name: "another cluster's", reason: "TokenKeyUnknown", make: (*scene).anotherClusters},
	{name: "expired", reason: "TokenExpired", make: func(s *scene, p *mesh.Pod) string {
		return s.sign(p.Claims(time.Hour), func(c *cluster.Claims) {
			c.IssuedAt, c.Expires = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		})
	}},
	{name: "not yet valid", reason: "TokenNotYetValid", make: func(s *scene, p *mesh.Pod) string {
		return s.sign(p.Claims(time.Hour), func(c *cluster.Claims) { c.IssuedAt = time.Now().Add(30 * time.Minute) })
	}},
	{name: "wrong audience", reason: "TokenAudienceWrong", make: func(s *scene, p *mesh.Pod) string { return s.forAudience(p, "vault") }},
	{name: "the API server's audience", reason: "TokenAudienceWrong", make: func(s *scene, p *mesh.Pod) string { return s.forAudience(p, cluster.Issuer) }},
	{name: "unbound", reason: "TokenUnbound", make: func(s *scene, p *mesh.Pod) string {
		return s.sign(p.Claims(time.Hour), func(c *cluster.Claims) { c.Pod, c.Node = nil, nil })
	}},
	{name: "of a deleted pod", reason: "PodGone", ledgered: true, stillReviewed: true, make: func(s *scene, p *mesh.Pod) string {
		token := s.used(p)
		must(s.t, pods.ForceDelete(s.ctx, s.Cluster.Client(), p.Pod))
		return token
	}},
	{name: "of a re-created pod", reason: "PodReplaced", ledgered: true, stillReviewed: true, make: func(s *scene, p *mesh.Pod) string {
		token := s.used(p)
		must(s.t, pods.ForceDelete(s.ctx, s.Cluster.Client(), p.Pod))
		s.mustCreate(s.run(p.Name)) // the new pod is known, and gets its own
		return token
	}},
	{name: "of a terminating pod", reason: "PodTerminating", ledgered: true, stillReviewed: true, make: func(s *scene, p *mesh.Pod) string {
		token := s.used(p)
		must(s.t, pods.Delete(s.ctx, s.Cluster.Client(), p.Pod))
		return token
	}},
	{name: "of a finished pod", reason: "PodFinished", ledgered: true, stillReviewed: true, make: func(s *scene, p *mesh.Pod) string {
		token := s.used(p)
		_, err := pods.Report(s.ctx, s.Cluster.Client(), p.Pod, corev1.PodSucceeded)
		must(s.t, err)
		return token
	}},
}

// Every token that proves nothing, or no longer, is refused at both doors: with
// a reason of its own in metrics, log and (where the caller was authenticated)
// ledger, with the code of the contract, and with an answer that is the same for
// all of them.
func TestTokensRefused(t *testing.T) {
	s := newScene(t, 3*time.Minute, mesh.Config{})
	for i, c := range refusedTokens {
		t.Run(c.name, func(t *testing.T) {
			sub := *s
			sub.t = t
			pod := sub.run(fmt.Sprintf("case-%d", i))
			token := c.make(&sub, pod)
			for _, door := range doors {
				before := sub.metrics()
				err := sub.ask(door, pod, token)
				after := sub.metrics()
				id := sub.opaque(err)
				if d := after.Refusals(c.reason) - before.Refusals(c.reason); d != 1 {
					t.Errorf("%s: counted %v times under %s; now %v", door, d, c.reason, after.Reasons())
				}
				sub.logged(id, c.reason, token)
				sub.recorded(id, c.ledgered, c.reason, pod)
			}
			if c.stillReviewed && !sub.reviewed(token) {
				t.Error("the API server no longer vouches for the token: this shows nothing")
			}
		})
	}
}

// A connection that does not speak TLS is closed without a word, and counted.
func TestPlaintextRefused(t *testing.T) {
	s := newScene(t, time.Minute, mesh.Config{})
	before := s.metrics()
	conn, err := net.Dial("tcp", s.Hallmark.Addr())
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	// What an HTTP/2 client without TLS sends first (RFC 9113 section 3.4).
	_, err = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	must(t, err)
	answer, err := io.ReadAll(conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the connection stays open")
	}
	// A TLS alert is seven bytes; anything more would be an answer.
	if len(answer) > 7 {
		t.Errorf("it answers %q", answer)
	}
	s.eventually(5*time.Second, func() error {
		if d := s.metrics().Refusals("ConnectionNotTLS") - before.Refusals("ConnectionNotTLS"); d != 1 {
			return fmt.Errorf("counted %v times", d)
		}
		return nil
	})
	// TLS 1.1 is no TLS either.
	old, err := tls.Dial("tcp", s.Hallmark.Addr(), &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10, InsecureSkipVerify: true})
	if err == nil {
		old.Close()
		t.Error("TLS 1.1 is served")
	}
}

var opaque = regexp.MustCompile(`^not authenticated \(id ([A-Z0-9]{8,32})\)$`)

// opaque checks what a stranger is told, and returns the id.
func (s *scene) opaque(err error) string {
	s.t.Helper()
	st, _ := status.FromError(err)
	m := opaque.FindStringSubmatch(st.Message())
	if st.Code() != codes.Unauthenticated || m == nil || len(st.Details()) > 0 {
		s.t.Fatalf("the answer is %v %v, want Unauthenticated and an id, nothing else", err, st.Details())
	}
	return m[1]
}

// logged checks that the log knows the id, and no log line the token.
func (s *scene) logged(id, reason, token string) {
	s.t.Helper()
	s.eventually(5*time.Second, func() error {
		lines, err := s.Hallmark.Log(id)
		must(s.t, err)
		if len(lines) != 1 || lines[0]["reason"] != reason {
			return fmt.Errorf("the log says of %s: %v, want reason %s", id, lines, reason)
		}
		return nil
	})
	if len(token) < 20 {
		return
	}
	parts := strings.Split(token, ".")
	lines, err := s.Hallmark.Log(parts[len(parts)-1])
	must(s.t, err)
	if len(lines) > 0 {
		s.t.Errorf("the log holds the token: %v", lines)
	}
}

// recorded checks that the ledger knows the refusal, or nothing of it.
func (s *scene) recorded(id string, want bool, reason string, p *mesh.Pod) {
	s.t.Helper()
	if !want {
		if entries, err := s.Hallmark.Query(s.ctx, "--id", id); err != nil || len(entries) > 0 {
			s.t.Errorf("the ledger has a stranger's refusal: %v (%v)", entries, err)
		}
		return
	}
	s.eventually(10*time.Second, func() error {
		entries, err := s.Hallmark.Query(s.ctx, "--id", id)
		must(s.t, err)
		if len(entries) == 0 {
			return errors.New("the refusal is not in the ledger")
		}
		if r := entries[0].Refusal; r == nil || r.Reason != reason || r.PodUID != string(p.UID) || r.Identity != p.Identity() {
			return fmt.Errorf("the ledger says %+v, want %s of pod %s", entries[0], reason, p.UID)
		}
		return nil
	})
}

// used is the pod's token, after it has been good for a certificate: it is in
// every cache, Hallmark's and the API server's.
func (s *scene) used(p *mesh.Pod) string {
	s.t.Helper()
	token := s.token(p)
	if _, err := s.create(p, token); err != nil {
		s.t.Fatalf("while its pod lives, the token is refused: %v", err)
	}
	return token
}

// reviewed asks the API server what it says of the token.
func (s *scene) reviewed(token string) bool {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	r, err := s.Cluster.Client().AuthenticationV1().TokenReviews().Create(ctx,
		&authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{pods.Audience}}}, metav1.CreateOptions{})
	must(s.t, err)
	return r.Status.Authenticated
}

func (s *scene) sign(c cluster.Claims, change func(*cluster.Claims)) string {
	s.t.Helper()
	change(&c)
	token, err := s.Cluster.Tokens.Sign(c)
	must(s.t, err)
	return token
}

func (s *scene) forAudience(p *mesh.Pod, audience string) string {
	s.t.Helper()
	token, err := pods.Token(s.ctx, s.Cluster.Client(), p.Pod, audience, time.Hour)
	must(s.t, err)
	return token
}

// forged has a real header and real claims, and the signature of another token.
func (s *scene) forged(p *mesh.Pod) string {
	one, two := strings.Split(s.token(p), "."), strings.Split(s.token(p), ".")
	return one[0] + "." + one[1] + "." + two[2]
}

// changed is a real token in which the bearer has made itself another account.
func (s *scene) changed(p *mesh.Pod) string {
	parts := strings.Split(s.token(p), ".")
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	must(s.t, err)
	other := strings.ReplaceAll(string(claims), p.Account.Name, "administrator")
	if other == string(claims) {
		s.t.Fatal("the claims do not name the account")
	}
	return parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(other)) + "." + parts[2]
}

func (s *scene) anotherClusters(p *mesh.Pod) string {
	stranger, err := cluster.NewSigner(cluster.Issuer)
	must(s.t, err)
	token, err := stranger.Sign(p.Claims(time.Hour))
	must(s.t, err)
	return token
}
