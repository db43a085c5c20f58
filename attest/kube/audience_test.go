package kube_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/kube"
)

// shows has the cluster show a token of its own, whose audiences are the API
// server's, in a file as in a pod.
func shows(t *testing.T, audiences ...string) func(*world, *kube.Config) {
	return func(w *world, c *kube.Config) {
		claims := w.claims(newPod("hallmark-0", "own"))
		claims.Audience = audiences
		c.REST.BearerTokenFile = filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(c.REST.BearerTokenFile, []byte(w.key.sign(t, claims)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// audiences is what Probe says of the audiences.
func (w *world) audiences(t *testing.T) kube.Finding {
	t.Helper()
	for _, f := range w.cluster.Probe(t.Context()) {
		if f.What == "audiences of tokens" {
			return f
		}
	}
	t.Fatal("nothing of audiences")
	return kube.Finding{}
}

// TestAPIServersOwnAudienceUnderAnyName: the API server says itself which
// audiences are its own, whatever they are called.
func TestAPIServersOwnAudienceUnderAnyName(t *testing.T) {
	t.Parallel()
	w := newWorld(t, shows(t, "https://oidc.example/cluster", "istio-ca"))
	for range 20 { // more than one pod's bucket holds
		_, err := w.cluster.Review(t.Context(), w.token(t, w.pod))
		refused(t, "a token for the API server", err, attest.TokenAudienceWrong)
	}
	if n := w.count("review"); n != 1 {
		t.Errorf("%d reviews: that of our own token is remembered, and no other is asked for", n)
	}
	if f := w.audiences(t); f.Err == nil || !strings.Contains(f.Err.Error(), `"istio-ca"`) || f.Mend == "" {
		t.Errorf("found %+v", f)
	}

	good := newWorld(t, shows(t, "https://oidc.example/cluster"))
	if bound, err := good.cluster.Review(t.Context(), good.token(t, good.pod)); err != nil || !bound.Reviewed {
		t.Errorf("another audience: %+v, %v", bound, err)
	}
	if f := good.audiences(t); f.Err != nil || !strings.HasSuffix(f.Note, "the API server's own are https://oidc.example/cluster") {
		t.Errorf("found %+v", f)
	}

	permitted := newWorld(t, func(w *world, c *kube.Config) {
		shows(t, "istio-ca")(w, c)
		c.ServerAudience = true
	})
	if _, err := permitted.cluster.Review(t.Context(), permitted.token(t, permitted.pod)); err != nil {
		t.Errorf("on purpose: %v", err)
	}
}

// TestAPIServersAudiencesUnknown: what cannot be asked is not known, and what
// was not answered is asked again before anybody is reviewed.
func TestAPIServersAudiencesUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, shows(t, "istio-ca"))
	token := w.token(t, w.pod)
	w.set(failWith("review", http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable))
	if bound, err := w.cluster.Review(t.Context(), token); err != nil || bound.Reviewed {
		t.Errorf("while the server is away: %+v, %v", bound, err)
	}
	if f := w.audiences(t); f.Err == nil || f.Mend == "" {
		t.Errorf("found %+v", f)
	}
	w.set(nil)
	w.pass(3 * time.Second)
	_, err := w.cluster.Review(t.Context(), token)
	refused(t, "once it is back", err, attest.TokenAudienceWrong)

	proxied := newWorld(t, shows(t, "istio-ca"))
	proxied.locked(func() { proxied.tweak = func(s *authv1.TokenReviewStatus) { *s = authv1.TokenReviewStatus{} } })
	if f := proxied.audiences(t); f.Err != nil || !strings.Contains(f.Note, "cannot be known") {
		t.Errorf("a token that the server does not know: %+v", f)
	}
	if f := newWorld(t, nil).audiences(t); f.Err != nil || !strings.Contains(f.Note, "cannot be known") {
		t.Errorf("no token: %+v", f)
	}
}
