package kube_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/kube"
)

// another is one more token of the pod.
func (w *world) another(t *testing.T, pod *corev1.Pod, n int) string {
	t.Helper()
	claims := w.claims(pod)
	claims.ID = fmt.Sprint("jti-", n)
	return w.key.sign(t, claims)
}

// TestHoardedTokensOfOnePod: whoever may make tokens of one pod can have only so
// many reviewed. What the API server allows us stays for other pods.
func TestHoardedTokensOfOnePod(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	// The server allows 50 reviews, which any 50 tokens would spend.
	w.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-What") != "review" || w.count("review") <= 50 {
			return false
		}
		write(rw, http.StatusTooManyRequests, status(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests, "enough"))
		return true
	})
	taken := 0
	first := w.another(t, w.pod, 0)
	for n := range 200 {
		token := first
		if n > 0 {
			token = w.another(t, w.pod, n)
		}
		_, err := w.cluster.Review(t.Context(), token)
		if err == nil {
			taken++
			continue
		}
		refused(t, "hoarded", err, attest.CallerRateExceeded)
	}
	if n := w.count("review"); n < 16 || n > 17 || taken != n { // 17: the test may take half a minute
		t.Errorf("%d reviews, %d taken", n, taken)
	}
	// What was reviewed is known, and other pods come in.
	if _, err := w.cluster.Review(t.Context(), first); err != nil {
		t.Errorf("a token that was reviewed: %v", err)
	}
	if bound, err := w.cluster.Review(t.Context(), w.token(t, newPod("cart-2", "two"))); err != nil || !bound.Reviewed {
		t.Errorf("another pod: %+v, %v", bound, err)
	}
	// The bucket fills slowly.
	before := w.count("review")
	w.pass(time.Minute)
	for n := range 20 {
		_, _ = w.cluster.Review(t.Context(), w.another(t, w.pod, 1000+n))
	}
	if n := w.count("review") - before; n != 2 && n != 3 {
		t.Errorf("%d reviews after a minute", n)
	}
}

// TestOutageEmptiesNoBucket: a lone pod that tries all through an outage is
// refused for nothing but the outage, and is reviewed as soon as it is over.
func TestOutageEmptiesNoBucket(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	token := w.token(t, w.pod)
	if _, err := w.cluster.Review(t.Context(), w.another(t, w.pod, 1)); err != nil {
		t.Fatal(err)
	}
	w.set(failWith("review", http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable))
	for range 100 {
		if bound, err := w.cluster.Review(t.Context(), token); err != nil || bound.Reviewed {
			t.Fatalf("while the server is away: %+v, %v", bound, err)
		}
		w.pass(3 * time.Second) // each is a trial
	}
	if n := w.count("review"); n < 90 {
		t.Errorf("%d trials", n)
	}
	w.set(nil)
	if bound, err := w.cluster.Review(t.Context(), token); err != nil || !bound.Reviewed {
		t.Errorf("once it is back: %+v, %v", bound, err)
	}
}

// TestBriefReviewCacheRefillsSooner: who wants tokens reviewed again and again
// gets it.
func TestBriefReviewCacheRefillsSooner(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *kube.Config) { c.ReviewCache = 4 * time.Second })
	tokens := []string{w.another(t, w.pod, 1), w.another(t, w.pod, 2), w.another(t, w.pod, 3)}
	for range 40 {
		for _, token := range tokens {
			if _, err := w.cluster.Review(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		}
		w.pass(5 * time.Second)
	}
	if n := w.count("review"); n != 120 {
		t.Errorf("%d reviews", n)
	}
}
