package kube

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/memo"
)

const reviewsPath = "/apis/authentication.k8s.io/v1/tokenreviews"

// Names of what a review adds about a bound token (KEP-4193).
const (
	extraPodName      = "authentication.kubernetes.io/pod-name"
	extraPodUID       = "authentication.kubernetes.io/pod-uid"
	extraNodeName     = "authentication.kubernetes.io/node-name"
	extraNodeUID      = "authentication.kubernetes.io/node-uid"
	extraCredentialID = "authentication.kubernetes.io/credential-id"
)

// reviewKey names a token in the cache of reviews. Cluster and audiences are the
// cache's own: each Cluster has one.
type reviewKey [sha256.Size]byte

// Review implements [attest.Cluster]: checks 1–4 of the token rules.
//
// What was reviewed before is looked up first, by the token's hash; what comes
// new is checked by the stored keys before anybody is asked. While the API
// server is away, a token that passes those checks gives a Bound that says it
// was not reviewed.
func (c *Cluster) Review(ctx context.Context, token string) (attest.Bound, error) {
	if len(token) > maxToken {
		return attest.Bound{}, attest.Deny(attest.TokenMalformed, "", "%d bytes, at most %d are allowed", len(token), maxToken)
	}
	key := reviewKey(sha256.Sum256([]byte(token)))
	if known, ok := c.reviews.Get(key); ok {
		return known.Value, known.Err
	}
	own, err := c.checkToken(ctx, token)
	if err != nil {
		return attest.Bound{}, err
	}
	bound, err := c.reviews.Do(ctx, key, func(ctx context.Context) memo.Answer[attest.Bound] {
		return c.review(ctx, token, own)
	})
	var denial *attest.DenyError
	switch {
	case err == nil:
		return bound, nil
	case errors.As(err, &denial):
		return attest.Bound{}, denial
	case errors.Is(err, memo.ErrBusy):
		return attest.Bound{}, attest.Deny(attest.ReviewsBusy, "", "%d are under way", c.limits.Reviews)
	case ctx.Err() != nil:
		return attest.Bound{}, attest.Deny(attest.APIServerAway, "", "no review in time: %v", ctx.Err())
	case away(err):
		c.metrics.unreviewed.Inc()
		return own.bound(), nil
	}
	return attest.Bound{}, attest.Deny(attest.InternalError, "", "reviewing token: %v", err)
}

// checkToken does all that needs no API server.
func (c *Cluster) checkToken(ctx context.Context, token string) (claims, error) {
	jws, err := parseToken(token)
	if err != nil {
		return claims{}, err
	}
	keys, err := c.keys.find(ctx, jws.Signatures[0].Header.KeyID)
	if err != nil {
		return claims{}, err
	}
	own, err := verifyToken(jws, keys)
	if err != nil {
		return claims{}, err
	}
	return own, own.check(c.now(), c.cfg.Audiences)
}

// review asks the API server, within what one pod may have us ask. Only the
// server's own word is remembered: an error of the way there is not, and neither
// is a refusal for asking too often.
func (c *Cluster) review(ctx context.Context, token string, own claims) memo.Answer[attest.Bound] {
	leave := c.health.allow(c.now())
	if leave == refused {
		return memo.Answer[attest.Bound]{Err: errAway}
	}
	if err := c.checkAudiences(ctx); err != nil {
		return memo.Answer[attest.Bound]{Err: err}
	}
	// A trial is bounded by health itself and costs the pod nothing: the buckets
	// of the few pods of a small cluster must outlast an outage.
	if pod := own.Kubernetes.Pod.UID; leave == given && !c.buckets.take(pod, c.now()) {
		return memo.Answer[attest.Bound]{Err: attest.Deny(attest.CallerRateExceeded, own.bound().Ref().String(),
			"%d tokens of this pod (%s) were reviewed at once, and one more is each %s", c.buckets.burst, pod, c.buckets.every)}
	}
	begun := time.Now()
	request := authv1.TokenReview{
		TypeMeta: metav1.TypeMeta{APIVersion: authv1.SchemeGroupVersion.String(), Kind: "TokenReview"},
		Spec:     authv1.TokenReviewSpec{Token: token, Audiences: c.cfg.Audiences},
	}
	var answer authv1.TokenReview
	err := c.api.call(ctx, http.MethodPost, reviewsPath, &request, &answer)
	now := c.now()
	c.health.report(now, err)
	var bound attest.Bound
	result := memo.Answer[attest.Bound]{Err: err}
	if err == nil {
		bound, err = readReview(&answer.Status, c.cfg.Audiences, own)
		until := now.Add(c.cfg.ReviewCache)
		if bound.Expires.Before(until) && err == nil {
			until = bound.Expires
		}
		result = memo.Answer[attest.Bound]{Value: bound, Err: err, Until: until, Tags: []string{own.Kubernetes.Pod.UID, own.Kubernetes.Account.UID}}
	}
	c.metrics.reviewed(err, time.Since(begun))
	return result
}

// readReview is checks 1–4, and that the review speaks of the same bearer as the
// token. It is pure.
func readReview(status *authv1.TokenReviewStatus, audiences []string, own claims) (attest.Bound, error) {
	user := &status.User
	if !status.Authenticated || status.Error != "" {
		return attest.Bound{}, attest.Deny(attest.TokenRejected, "", "authenticated %t: %s", status.Authenticated, attest.Escape(status.Error))
	}
	if !slices.ContainsFunc(status.Audiences, func(a string) bool { return slices.Contains(audiences, a) }) {
		return attest.Bound{}, attest.Deny(attest.TokenAudienceWrong, "", "the review names %s", attest.Escape(strings.Join(status.Audiences, ", ")))
	}
	parts := strings.Split(user.Username, ":")
	if len(parts) != 4 || parts[0]+":"+parts[1]+":" != accountPrefix || parts[2] == "" || parts[3] == "" ||
		user.UID == "" || !slices.Contains(user.Groups, accountGroup) {
		return attest.Bound{}, attest.Deny(attest.TokenNotServiceAccount, "", "user %q", attest.Escape(user.Username))
	}
	pod, ok := extraRef(user.Extra, extraPodName, extraPodUID)
	if !ok || pod == (claimRef{}) {
		return attest.Bound{}, attest.Deny(attest.TokenUnbound, "", "user %q", attest.Escape(user.Username))
	}
	node, ok := extraRef(user.Extra, extraNodeName, extraNodeUID)
	if !ok {
		return attest.Bound{}, attest.Deny(attest.TokenRejected, "", "the review names no single node")
	}
	if node == (claimRef{}) {
		node = own.Kubernetes.Node // an API server that does not repeat them
	}
	bound := own.bound()
	bound.CredentialID, bound.Reviewed = "", true
	if id := user.Extra[extraCredentialID]; len(id) == 1 {
		bound.CredentialID = id[0]
	}
	reviewed := bound
	reviewed.Namespace, reviewed.ServiceAccount, reviewed.ServiceAccountUID = parts[2], parts[3], user.UID
	reviewed.PodName, reviewed.PodUID, reviewed.NodeName, reviewed.NodeUID = pod.Name, pod.UID, node.Name, node.UID
	if reviewed != bound {
		return attest.Bound{}, attest.Deny(attest.TokenRejected, "", "the review speaks of %s (%s) of %s on %q, the token of %s (%s) of %s on %q",
			reviewed.Ref(), reviewed.PodUID, reviewed.ServiceAccount, reviewed.NodeName, bound.Ref(), bound.PodUID, bound.ServiceAccount, bound.NodeName)
	}
	return reviewed, nil
}

// extraRef reads a name and UID that stand there once each, or not at all.
func extraRef(extra map[string]authv1.ExtraValue, name, uid string) (claimRef, bool) {
	n, u := extra[name], extra[uid]
	if len(n) == 0 && len(u) == 0 {
		return claimRef{}, true
	}
	if len(n) != 1 || len(u) != 1 || n[0] == "" || u[0] == "" {
		return claimRef{}, false
	}
	return claimRef{n[0], u[0]}, true
}
