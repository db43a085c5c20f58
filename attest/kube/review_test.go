package kube_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/kube"
)

func refused(t testing.TB, what string, err error, want attest.Reason) {
	t.Helper()
	var d *attest.DenyError
	if !errors.As(err, &d) || d.Reason != want {
		t.Errorf("%s: got %v, want %s", what, err, want)
	}
}

func TestReview(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	claims := w.claims(w.pod)
	token := w.key.sign(t, claims)
	want := w.bound(w.pod)
	want.CredentialID, want.Expires = "JTI=jti-pod-uid", time.Unix(claims.Expiry, 0)
	for range 3 {
		got, err := w.cluster.Review(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
	if n := w.count("review"); n != 1 {
		t.Errorf("%d reviews of one token", n)
	}
	if got := w.metric(t, "hallmark_token_reviews_total", "ok", "Kubernetes"); got != 1 {
		t.Errorf("metric of reviews: %v", got)
	}
	if got := w.metric(t, "hallmark_token_review_cache_hits_total", "kept"); got != 2 {
		t.Errorf("metric of hits: %v", got)
	}
	if strings.Contains(w.log.String(), token) {
		t.Error("the token was logged")
	}
}

// TestForgeriesStayHere: each has its reason, and none reaches the API server.
func TestForgeriesStayHere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	good := w.token(t, w.pod)
	parts := strings.Split(good, ".")
	b64 := base64.RawURLEncoding.EncodeToString
	with := func(change func(*tokenClaims)) string {
		c := w.claims(w.pod)
		change(&c)
		return w.key.sign(t, c)
	}
	header := func(h string) string { return b64([]byte(h)) + "." + parts[1] + "." + parts[2] }
	symmetric, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: elliptic.Marshal(elliptic.P256(), w.key.private.X, w.key.private.Y), KeyID: "key-1"}}, nil) //nolint:staticcheck // the attack wants those bytes
	if err != nil {
		t.Fatal(err)
	}
	payload, _ := json.Marshal(w.claims(w.pod))
	jws, err := symmetric.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	confused, _ := jws.CompactSerialize()
	changed, _ := json.Marshal(func() tokenClaims { c := w.claims(w.pod); c.Kubernetes.Namespace = "bank"; return c }())
	past, future := w.now().Add(-time.Second).Unix(), w.now().Add(time.Minute).Unix()
	for name, test := range map[string]struct {
		token string
		want  attest.Reason
	}{
		"empty":              {"", attest.TokenMalformed},
		"garbage":            {"garbage", attest.TokenMalformed},
		"binary":             {"\x00\xff.\x00.\x00", attest.TokenMalformed},
		"two parts":          {parts[0] + "." + parts[1], attest.TokenMalformed},
		"four parts":         {good + ".AAAA", attest.TokenMalformed},
		"empty signature":    {parts[0] + "." + parts[1] + ".", attest.TokenMalformed},
		"newline at the end": {good + "\n", attest.TokenMalformed},
		"newline inside":     {good[:20] + "\n" + good[20:], attest.TokenMalformed},
		"padding":            {good + "==", attest.TokenMalformed},
		"quotes":             {`"` + good + `"`, attest.TokenMalformed},
		"scheme":             {"Bearer " + good, attest.TokenMalformed},
		"stray bits":         {good[:len(good)-1] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", good[len(good)-1])|1]), attest.TokenMalformed},
		"too large":          {strings.Repeat("A", 16<<10+1), attest.TokenMalformed},
		"large garbage":      {strings.Repeat("A", 16<<10), attest.TokenMalformed},
		"no algorithm":       {header(`{"kid":"key-1"}`), attest.TokenMalformed},
		"alg none":           {header(`{"alg":"none","kid":"key-1"}`), attest.TokenMalformed},
		"alg None":           {header(`{"alg":"None","kid":"key-1"}`), attest.TokenMalformed},
		"hmac with our key":  {confused, attest.TokenMalformed},
		"header is no JSON":  {header(`alg`), attest.TokenMalformed},
		"alg twice":          {header(`{"alg":"none","alg":"ES256","kid":"key-1"}`), attest.TokenMalformed},
		"no key id":          {header(`{"alg":"ES256"}`), attest.TokenKeyUnknown},
		"unknown key id":     {header(`{"alg":"ES256","kid":"key-2"}`), attest.TokenKeyUnknown},
		"other key":          {newKey(t, "key-1").sign(t, w.claims(w.pod)), attest.TokenSignatureInvalid},
		"other cluster's":    {newKey(t, "other").sign(t, w.claims(w.pod)), attest.TokenKeyUnknown},
		"claims changed":     {parts[0] + "." + b64(changed) + "." + parts[2], attest.TokenSignatureInvalid},
		"other algorithm":    {header(`{"alg":"ES384","kid":"key-1"}`), attest.TokenSignatureInvalid},
		"rsa algorithm":      {header(`{"alg":"RS256","kid":"key-1"}`), attest.TokenSignatureInvalid},
		"unknown crit":       {header(`{"alg":"ES256","kid":"key-1","crit":["x"],"x":1}`), attest.TokenSignatureInvalid},
		"claims are no JSON": {w.key.sign(t, json.RawMessage(`[1]`)), attest.TokenMalformed},
		"claims twice":       {w.key.sign(t, json.RawMessage(`{"sub":"a","sub":"b"}`)), attest.TokenMalformed},
		"expired":            {with(func(c *tokenClaims) { c.Expiry = past }), attest.TokenExpired},
		"not yet valid":      {with(func(c *tokenClaims) { c.NotBefore = future }), attest.TokenNotYetValid},
		"other audience":     {with(func(c *tokenClaims) { c.Audience = []string{"https://kubernetes.default.svc"} }), attest.TokenAudienceWrong},
		"audience's prefix":  {with(func(c *tokenClaims) { c.Audience = []string{"istio"} }), attest.TokenAudienceWrong},
		"no audience":        {with(func(c *tokenClaims) { c.Audience = nil }), attest.TokenAudienceWrong},
		"no expiry":          {with(func(c *tokenClaims) { c.Expiry = 0 }), attest.TokenUnbound},
		"no pod":             {with(func(c *tokenClaims) { c.Kubernetes.Pod, c.Kubernetes.Node = nil, nil }), attest.TokenUnbound},
		"pod without uid":    {with(func(c *tokenClaims) { c.Kubernetes.Pod.UID = "" }), attest.TokenUnbound},
		"a node's":           {with(func(c *tokenClaims) { c.Kubernetes.Pod = nil }), attest.TokenUnbound},
		"a user's":           {with(func(c *tokenClaims) { c.Subject = "admin" }), attest.TokenNotServiceAccount},
		"other subject":      {with(func(c *tokenClaims) { c.Subject = "system:serviceaccount:bank:cart" }), attest.TokenNotServiceAccount},
		"no account uid":     {with(func(c *tokenClaims) { c.Kubernetes.Account.UID = "" }), attest.TokenNotServiceAccount},
	} {
		_, err := w.cluster.Review(t.Context(), test.token)
		refused(t, name, err, test.want)
		if err != nil && len(err.Error()) > 2000 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
	}
	if n := w.count("review"); n != 0 {
		t.Errorf("%d of them reached the API server", n)
	}
	if _, err := w.cluster.Review(t.Context(), good); err != nil {
		t.Errorf("the good token after all that: %v", err)
	}
}

func TestNotBeforeLeeway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c := w.claims(w.pod)
	c.NotBefore = w.now().Add(5 * time.Second).Unix() // the API server's clock is ahead
	if _, err := w.cluster.Review(t.Context(), w.key.sign(t, c)); err != nil {
		t.Error(err)
	}
}

func TestReadsEveryAlgorithm(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	for alg, curve := range map[jose.SignatureAlgorithm]elliptic.Curve{jose.ES384: elliptic.P384(), jose.ES512: elliptic.P521()} {
		private, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		w.publish(t, alg, private, &private.PublicKey)
	}
	private := rsaKey(t)
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512} {
		w.publish(t, alg, private, &private.PublicKey)
	}
}

// publish adds a key without an algorithm of its own, and has a token of it
// reviewed.
func (w *world) publish(t *testing.T, alg jose.SignatureAlgorithm, private, public any) {
	t.Helper()
	w.locked(func() {
		w.published = append(w.published, jose.JSONWebKey{Key: public, KeyID: string(alg)})
	})
	w.pass(time.Minute) // so that the keys may be fetched again
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: private, KeyID: string(alg)}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, _ := json.Marshal(w.claims(w.pod))
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, _ := jws.CompactSerialize()
	if _, err := w.cluster.Review(t.Context(), token); err != nil {
		t.Errorf("%s: %v", alg, err)
	}
}

// TestLyingReview: what a review says must be well formed, and be of the same
// bearer as the token.
func TestLyingReview(t *testing.T) {
	t.Parallel()
	extra := func(name string, values ...string) func(*authv1.TokenReviewStatus) {
		return func(s *authv1.TokenReviewStatus) {
			s.User.Extra["authentication.kubernetes.io/"+name] = values
		}
	}
	for name, test := range map[string]struct {
		tweak func(*authv1.TokenReviewStatus)
		want  attest.Reason
	}{
		"not authenticated":       {func(s *authv1.TokenReviewStatus) { *s = authv1.TokenReviewStatus{Error: "no\n"} }, attest.TokenRejected},
		"authenticated and error": {func(s *authv1.TokenReviewStatus) { s.Error = "but" }, attest.TokenRejected},
		"nothing at all":          {func(s *authv1.TokenReviewStatus) { *s = authv1.TokenReviewStatus{} }, attest.TokenRejected},
		"no audiences":            {func(s *authv1.TokenReviewStatus) { s.Audiences = nil }, attest.TokenAudienceWrong},
		"other audience":          {func(s *authv1.TokenReviewStatus) { s.Audiences = []string{"api"} }, attest.TokenAudienceWrong},
		"a user":                  {func(s *authv1.TokenReviewStatus) { s.User.Username = "admin" }, attest.TokenNotServiceAccount},
		"five parts":              {func(s *authv1.TokenReviewStatus) { s.User.Username += ":x" }, attest.TokenNotServiceAccount},
		"three parts":             {func(s *authv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop" }, attest.TokenNotServiceAccount},
		"other prefix":            {func(s *authv1.TokenReviewStatus) { s.User.Username = "system:node:shop:cart" }, attest.TokenNotServiceAccount},
		"empty name":              {func(s *authv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop:" }, attest.TokenNotServiceAccount},
		"not in the group":        {func(s *authv1.TokenReviewStatus) { s.User.Groups = []string{"system:authenticated"} }, attest.TokenNotServiceAccount},
		"no uid":                  {func(s *authv1.TokenReviewStatus) { s.User.UID = "" }, attest.TokenNotServiceAccount},
		"no extras":               {func(s *authv1.TokenReviewStatus) { s.User.Extra = nil }, attest.TokenUnbound},
		"no pod uid":              {extra("pod-uid"), attest.TokenUnbound},
		"two pods":                {extra("pod-name", "cart-1", "cart-2"), attest.TokenUnbound},
		"two pod uids":            {extra("pod-uid", "pod-uid", "pod-uid"), attest.TokenUnbound},
		"empty pod name":          {extra("pod-name", ""), attest.TokenUnbound},
		"two nodes":               {extra("node-name", "node-1", "node-2"), attest.TokenRejected},
		"other pod":               {extra("pod-name", "cart-2"), attest.TokenRejected},
		"other pod uid":           {extra("pod-uid", "pod-uid-2"), attest.TokenRejected},
		"other node":              {extra("node-name", "node-2"), attest.TokenRejected},
		"other node uid":          {extra("node-uid", "node-uid-2"), attest.TokenRejected},
		"other namespace":         {func(s *authv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:bank:cart" }, attest.TokenRejected},
		"other account":           {func(s *authv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop:admin" }, attest.TokenRejected},
		"other account uid":       {func(s *authv1.TokenReviewStatus) { s.User.UID = "sa-uid-2" }, attest.TokenRejected},
		"no node, as old servers": {func(s *authv1.TokenReviewStatus) {
			delete(s.User.Extra, "authentication.kubernetes.io/node-name")
			delete(s.User.Extra, "authentication.kubernetes.io/node-uid")
		}, 0},
		"no credential id": {extra("credential-id"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			w.tweak = test.tweak
			token := w.token(t, w.pod)
			for range 2 {
				bound, err := w.cluster.Review(t.Context(), token)
				if test.want != 0 {
					refused(t, name, err, test.want)
					continue
				}
				if err != nil || bound.NodeUID != "node-uid" {
					t.Errorf("got %+v, %v", bound, err)
				}
			}
			if n := w.count("review"); n != 1 {
				t.Errorf("%d reviews: a refusal is remembered, too", n)
			}
			if test.want == 0 {
				return
			}
			w.locked(func() { w.tweak = nil })
			w.pass(10 * time.Second)
			if _, err := w.cluster.Review(t.Context(), token); err != nil {
				t.Errorf("the refusal outlived 10 s: %v", err)
			}
		})
	}
}

func TestReviewCacheEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil).run(t)
	token := w.token(t, w.pod)
	review := func(what string, want int) {
		t.Helper()
		if _, err := w.cluster.Review(t.Context(), token); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if n := w.count("review"); n != want {
			t.Errorf("%s: %d reviews, want %d", what, n, want)
		}
	}
	review("first", 1)
	w.pass(10*time.Minute - time.Second)
	review("within the time", 1)
	w.pass(2 * time.Second)
	review("after the time", 2)

	// A pod or account that goes, or is made anew, takes its reviews along.
	changed := w.changes()
	w.remove(w.pod, false)
	changed.wait(t, "pod-uid")
	review("pod deleted", 3)
	w.put(w.pod)
	again := newPod("cart-1", "pod-uid-2")
	w.put(again)
	changed.wait(t, "pod-uid")
	review("pod made anew", 4)
	account := w.account.DeepCopy()
	account.UID = "sa-uid-2"
	w.put(account)
	changed.wait(t, "pod-uid-2")
	review("account made anew", 5)

	// What has ended is not vouched for by a review.
	w.pass(51 * time.Minute)
	_, err := w.cluster.Review(t.Context(), token)
	refused(t, "after the end", err, attest.TokenExpired)
	if n := w.count("review"); n != 5 {
		t.Errorf("%d reviews", n)
	}
}

func TestReviewsAreJoinedAndBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *kube.Config) { c.Limits.Reviews, c.Limits.CallTime = 2, 10*time.Second })
	if _, err := w.cluster.Review(t.Context(), w.token(t, newPod("known", "known"))); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	w.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-What") == "review" {
			<-release
		}
		return false
	})
	before := w.count("review")
	var wg sync.WaitGroup
	tokens := []string{w.token(t, w.pod), w.token(t, newPod("cart-2", "two"))}
	for i := range 20 {
		wg.Go(func() {
			if _, err := w.cluster.Review(t.Context(), tokens[i%2]); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "both are asked for", func() bool { return w.count("review") == before+2 })
	third := w.token(t, newPod("cart-3", "three"))
	_, err := w.cluster.Review(t.Context(), third)
	refused(t, "a third", err, attest.ReviewsBusy)
	// A waiter leaves at its own deadline; the call goes on.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = w.cluster.Review(ctx, tokens[0])
	refused(t, "an impatient waiter", err, attest.APIServerAway)
	close(release)
	wg.Wait()
	if n := w.count("review"); n != before+2 {
		t.Errorf("%d reviews of 2 tokens", n-before)
	}
	if _, err := w.cluster.Review(t.Context(), third); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

func TestAPIServerAwayForReviews(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"500":  failWith("review", http.StatusInternalServerError, metav1.StatusReasonInternalError),
		"503":  failWith("review", http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable),
		"429":  failWith("review", http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests),
		"hang": hang("review"),
		"cut": func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("X-What") == "review" {
				panic(http.ErrAbortHandler)
			}
			return false
		},
		"half an answer": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("X-What") != "review" {
				return false
			}
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"status":{"authenticated":`)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			known, fresh := w.token(t, w.pod), w.token(t, newPod("cart-2", "two"))
			if _, err := w.cluster.Review(t.Context(), known); err != nil {
				t.Fatal(err)
			}
			w.set(fault)
			if bound, err := w.cluster.Review(t.Context(), known); err != nil || !bound.Reviewed {
				t.Errorf("a review that is kept: %+v, %v", bound, err)
			}
			for range 10 {
				bound, err := w.cluster.Review(t.Context(), fresh)
				if err != nil || bound.Reviewed || bound.PodUID != "two" || bound.CredentialID != "JTI=jti-two" || bound.NodeUID != "node-uid" {
					t.Fatalf("a token that the keys vouch for: %+v, %v", bound, err)
				}
			}
			_, err := w.cluster.Review(t.Context(), newKey(t, "key-1").sign(t, w.claims(w.pod)))
			refused(t, "a forgery", err, attest.TokenSignatureInvalid)
			if n := w.count("review"); n > 7 {
				t.Errorf("%d reviews asked of a server that does not answer", n)
			}
			w.set(nil)
			w.pass(3 * time.Second)
			if bound, err := w.cluster.Review(t.Context(), fresh); err != nil || !bound.Reviewed {
				t.Errorf("once it is back: %+v, %v", bound, err)
			}
		})
	}
}

// TestAnswersThatAreNone: an API server that answers otherwise is not away, and
// nothing is granted on the keys alone.
func TestAnswersThatAreNone(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(http.ResponseWriter){
		"401":      func(w http.ResponseWriter) { write(w, 401, status(401, metav1.StatusReasonUnauthorized, "")) },
		"403":      func(w http.ResponseWriter) { write(w, 403, status(403, metav1.StatusReasonForbidden, "")) },
		"404":      func(w http.ResponseWriter) { http.Error(w, "no such page", http.StatusNotFound) },
		"redirect": func(w http.ResponseWriter) { w.Header().Set("Location", "/elsewhere"); w.WriteHeader(http.StatusFound) },
		"web page": func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") },
		"huge": func(w http.ResponseWriter) {
			_, _ = w.Write(bytes.Repeat([]byte(" "), 5<<20))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(_ *world, c *kube.Config) { c.Limits.CallTime = 20 * time.Second })
			w.set(func(rw http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("X-What") != "review" {
					return false
				}
				fault(rw)
				return true
			})
			token := w.token(t, w.pod)
			for range 6 {
				_, err := w.cluster.Review(t.Context(), token)
				refused(t, name, err, attest.InternalError)
			}
			w.set(nil)
			if _, err := w.cluster.Review(t.Context(), token); err != nil {
				t.Errorf("it was remembered: %v", err)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *kube.Config) { c.Limits.PodReviews = 100 }) // one pod comes with 50 tokens at once
	w.set(failWith("jwks", http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable))
	token := w.token(t, w.pod)
	for range 10 {
		_, err := w.cluster.Review(t.Context(), token)
		refused(t, "no keys at all", err, attest.APIServerAway)
	}
	if n := w.count("jwks"); n != 1 {
		t.Errorf("%d fetches within 10 s", n)
	}
	w.set(nil)
	w.pass(10 * time.Second)
	if _, err := w.cluster.Review(t.Context(), token); err != nil {
		t.Fatal(err)
	}

	// A new key is found, but not at once after another was looked for.
	next := newKey(t, "key-2")
	w.locked(func() { w.published = append(w.published, next.public()) })
	other := newPod("cart-2", "two")
	_, err := w.cluster.Review(t.Context(), next.sign(t, w.claims(other)))
	refused(t, "within 10 s of the last fetch", err, attest.TokenKeyUnknown)
	w.pass(10 * time.Second)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := w.cluster.Review(t.Context(), next.sign(t, w.claims(other))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := w.count("jwks"); n != 3 {
		t.Errorf("%d fetches, want 3: they are joined", n)
	}

	// Unknown ids cause one fetch in 10 s, however many there are.
	for i := range 200 {
		_, err := w.cluster.Review(t.Context(), newKey(t, fmt.Sprint("no", i)).sign(t, w.claims(other)))
		refused(t, "unknown", err, attest.TokenKeyUnknown)
	}
	if n := w.count("jwks"); n != 3 {
		t.Errorf("%d fetches after strangers asked", n)
	}

	// Stored keys stay while the server is away; what is not stored is not known.
	w.set(failWith("jwks", http.StatusInternalServerError, metav1.StatusReasonInternalError))
	w.pass(10 * time.Second)
	_, err = w.cluster.Review(t.Context(), newKey(t, "key-3").sign(t, w.claims(other)))
	refused(t, "unknown while away", err, attest.APIServerAway)
	if _, err := w.cluster.Review(t.Context(), w.key.sign(t, w.claims(newPod("cart-4", "four")))); err != nil {
		t.Errorf("a stored key while away: %v", err)
	}

	// A key that is no longer published is of no use.
	w.set(nil)
	w.pass(10 * time.Second)
	w.locked(func() { w.published = []jose.JSONWebKey{next.public()} })
	_, err = w.cluster.Review(t.Context(), newKey(t, "key-4").sign(t, w.claims(other)))
	refused(t, "unknown", err, attest.TokenKeyUnknown)
	_, err = w.cluster.Review(t.Context(), w.key.sign(t, w.claims(newPod("cart-5", "five"))))
	refused(t, "withdrawn key", err, attest.TokenKeyUnknown)
}

func TestKeySetsThatAreNone(t *testing.T) {
	t.Parallel()
	private := rsaKey(t)
	secret, _ := json.Marshal(jose.JSONWebKey{Key: private, KeyID: "key-1"})
	symmetric, _ := json.Marshal(jose.JSONWebKey{Key: []byte("0123456789abcdef0123456789abcdef"), KeyID: "key-1"})
	for name, text := range map[string]string{
		"no JSON":        "<html>",
		"no keys":        `{}`,
		"private key":    `{"keys":[` + string(secret) + `]}`,
		"symmetric key":  `{"keys":[` + string(symmetric) + `]}`,
		"unknown kind":   `{"keys":[{"kty":"XYZ","kid":"key-1"}]}`,
		"too many":       `{"keys":[` + strings.Repeat(`{"kty":"XYZ"},`, 64) + `{"kty":"XYZ"}]}`,
		"huge":           `{"keys":["` + strings.Repeat("x", 5<<20) + `"]}`,
		"for encryption": `{"keys":[{"kty":"EC","use":"enc","kid":"key-1","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`,
	} {
		w := newWorld(t, nil)
		w.set(func(rw http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("X-What") == "jwks" {
				fmt.Fprint(rw, text)
			}
			return r.Header.Get("X-What") == "jwks"
		})
		_, err := w.cluster.Review(t.Context(), w.token(t, w.pod))
		refused(t, name, err, attest.APIServerAway)
	}
}

// TestGarbageIsCheap: 100,000 tokens that are none cost no memory that lasts, no
// request, and little time; a real caller is served among them.
func TestGarbageIsCheap(t *testing.T) {
	w := newWorld(t, nil)
	good := w.token(t, w.pod)
	if _, err := w.cluster.Review(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	forged := strings.Split(newKey(t, "key-1").sign(t, w.claims(w.pod)), ".")
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	reviews, keys, before := w.count("review"), w.count("jwks"), heap()
	random := make([]byte, 48)
	for i := range 100_000 {
		_, _ = rand.Read(random)
		noise := base64.RawURLEncoding.EncodeToString(random)
		token := noise
		switch i % 4 {
		case 1:
			token = noise + "." + noise + "." + noise
		case 2:
			token = base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":"ES256","kid":%q}`, noise)) + "." + forged[1] + "." + forged[2]
		case 3:
			if i%100 == 3 { // the only one that costs a signature's check
				token = forged[0] + "." + noise + "." + forged[2]
			}
		}
		if _, err := w.cluster.Review(t.Context(), token); err == nil {
			t.Fatal("it was taken")
		}
		if i%1000 == 0 {
			if _, err := w.cluster.Review(t.Context(), good); err != nil {
				t.Fatal(err)
			}
		}
	}
	if r, k := w.count("review")-reviews, w.count("jwks")-keys; r != 0 || k > 6 {
		t.Errorf("%d reviews and %d fetches of keys", r, k)
	}
	if after := heap(); after > before+4<<20 {
		t.Errorf("the heap grew from %d to %d", before, after)
	}
}
