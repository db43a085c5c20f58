package kube

import (
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/hallmark-ca/hallmark/attest"
)

const (
	maxToken = 16 << 10
	// notBeforeLeeway is what a clock of the API server may be ahead of ours. The
	// end of a token has none: streams end there as well.
	notBeforeLeeway = 10 * time.Second
	// A service account's user name and group (authentication.k8s.io).
	accountPrefix = "system:serviceaccount:"
	accountGroup  = "system:serviceaccounts"
)

// algorithms are those with which an API server, or the key manager behind it,
// signs. None is symmetric: a published key must never do for making tokens.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512,
	jose.ES256, jose.ES384, jose.ES512,
	jose.PS256, jose.PS384, jose.PS512,
}

// claims are what a service account's token says of itself, as the API server
// writes it.
type claims struct {
	Subject    string           `json:"sub"`
	Audience   jwt.Audience     `json:"aud"`
	Expiry     *jwt.NumericDate `json:"exp"`
	NotBefore  *jwt.NumericDate `json:"nbf"`
	ID         string           `json:"jti"`
	Kubernetes struct {
		Namespace string   `json:"namespace"`
		Account   claimRef `json:"serviceaccount"`
		Pod       claimRef `json:"pod"`
		Node      claimRef `json:"node"`
	} `json:"kubernetes.io"`
}

type claimRef struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// parseToken reads a compact JWS without verifying it, and says which key it
// names. Whoever sends garbage is to cost little: the cheapest test is first.
func parseToken(token string) (*jose.JSONWebSignature, error) {
	if len(token) > maxToken {
		return nil, attest.Deny(attest.TokenMalformed, "", "%d bytes, at most %d are allowed", len(token), maxToken)
	}
	if !compact(token) {
		return nil, attest.Deny(attest.TokenMalformed, "", "not three parts of canonical base64url")
	}
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, attest.Deny(attest.TokenMalformed, "", "%s", attest.Escape(err.Error()))
	}
	if len(jws.Signatures) != 1 {
		return nil, attest.Deny(attest.TokenMalformed, "", "%d signatures", len(jws.Signatures))
	}
	return jws, nil
}

// compact tells whether token is three parts of base64url in the one form that
// RFC 7515 section 2 gives them: no line breaks, which Go's decoder would pass
// over, and no stray bits at the end.
func compact(token string) bool {
	parts := 0
	for part := range strings.SplitSeq(token, ".") {
		if parts++; parts > 3 || part == "" {
			return false
		}
		for i := range len(part) {
			c := part[i]
			if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
		var end [3]byte
		if _, err := base64.RawURLEncoding.Strict().Decode(end[:], []byte(part[(len(part)-1)/4*4:])); err != nil {
			return false
		}
	}
	return parts == 3
}

// verifyToken checks the signature with the keys that go by the token's key id,
// and returns the claims.
func verifyToken(jws *jose.JSONWebSignature, keys []jose.JSONWebKey) (claims, error) {
	alg := jws.Signatures[0].Header.Algorithm
	for _, key := range keys {
		if key.Algorithm != "" && key.Algorithm != alg {
			continue
		}
		payload, err := jws.Verify(key.Key)
		if err != nil {
			continue
		}
		var c claims
		if err := json.Unmarshal(payload, &c); err != nil {
			return claims{}, attest.Deny(attest.TokenMalformed, "", "claims: %s", attest.Escape(err.Error()))
		}
		return c, nil
	}
	return claims{}, attest.Deny(attest.TokenSignatureInvalid, "", "key id %q, algorithm %s", attest.Escape(jws.Signatures[0].Header.KeyID), attest.Escape(alg))
}

// check holds the claims against time and audiences, and against the form that
// the token of a pod has.
func (c *claims) check(now time.Time, audiences []string) error {
	switch {
	case c.NotBefore != nil && now.Add(notBeforeLeeway).Before(c.NotBefore.Time()):
		return attest.Deny(attest.TokenNotYetValid, "", "not before %s", c.NotBefore.Time().UTC().Format(time.RFC3339))
	case c.Expiry != nil && !now.Before(c.Expiry.Time()):
		return attest.Deny(attest.TokenExpired, "", "ended at %s", c.Expiry.Time().UTC().Format(time.RFC3339))
	}
	ns, account := c.Kubernetes.Namespace, c.Kubernetes.Account
	if c.Expiry == nil {
		// A token Secret's has neither end nor audience, and names no pod.
		return attest.Deny(attest.TokenUnbound, "", "it has no end (subject %q)", attest.Escape(c.Subject))
	}
	if !slices.ContainsFunc(c.Audience, func(a string) bool { return slices.Contains(audiences, a) }) {
		return attest.Deny(attest.TokenAudienceWrong, "", "it is for %s, and we are %q", attest.Escape(strings.Join(c.Audience, ", ")), audiences)
	}
	if ns == "" || account.Name == "" || account.UID == "" || c.Subject != accountPrefix+ns+":"+account.Name {
		return attest.Deny(attest.TokenNotServiceAccount, "", "subject %q", attest.Escape(c.Subject))
	}
	if c.Kubernetes.Pod.Name == "" || c.Kubernetes.Pod.UID == "" {
		return attest.Deny(attest.TokenUnbound, "", "subject %q", attest.Escape(c.Subject))
	}
	return nil
}

// bound is what the claims say of the bearer, where nobody reviewed them.
func (c *claims) bound() attest.Bound {
	k := &c.Kubernetes
	b := attest.Bound{
		Namespace: k.Namespace, ServiceAccount: k.Account.Name, ServiceAccountUID: k.Account.UID,
		PodName: k.Pod.Name, PodUID: k.Pod.UID, NodeName: k.Node.Name, NodeUID: k.Node.UID,
		Expires: c.Expiry.Time(),
	}
	if c.ID != "" {
		b.CredentialID = "JTI=" + c.ID
	}
	return b
}
