package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/memo"
)

// audiencesFor is how long the API server's own audiences are believed: they are
// flags of its command line.
const audiencesFor = time.Hour

// serverAudiences returns the audiences that the API server takes for its own,
// none where that cannot be known. A review that names no audiences is one for
// the server's own, and answers with those of them that the token has; the token
// is this process's, which by default has them all. A client certificate, or a
// token that only a proxy before the server knows, finds nothing out.
func (c *Cluster) serverAudiences(ctx context.Context) ([]string, error) {
	return c.audiences.Do(ctx, struct{}{}, func(ctx context.Context) memo.Answer[[]string] {
		own, err := ownToken(c.cfg.REST.BearerTokenFile, c.cfg.REST.BearerToken)
		if err != nil {
			return memo.Answer[[]string]{Err: err}
		}
		until := c.now().Add(audiencesFor)
		if own == "" {
			return memo.Answer[[]string]{Until: until}
		}
		request := authv1.TokenReview{
			TypeMeta: metav1.TypeMeta{APIVersion: authv1.SchemeGroupVersion.String(), Kind: "TokenReview"},
			Spec:     authv1.TokenReviewSpec{Token: own},
		}
		var answer authv1.TokenReview
		err = c.api.call(ctx, http.MethodPost, reviewsPath, &request, &answer)
		c.health.report(c.now(), err)
		if err != nil {
			return memo.Answer[[]string]{Err: err}
		}
		if !answer.Status.Authenticated {
			return memo.Answer[[]string]{Until: until}
		}
		return memo.Answer[[]string]{Value: answer.Status.Audiences, Until: until}
	})
}

// ownToken reads the token that this process shows to the API server, as
// client-go does: a file comes before a text. "" is none.
func ownToken(file, text string) (string, error) {
	if file == "" {
		return text, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("reading our own token: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("reading our own token: %w", err)
	case len(raw) > maxToken:
		return "", errors.New("reading our own token: it is too large")
	}
	return strings.TrimSpace(string(raw)), nil
}

// checkAudiences refuses every token where one of the configured audiences is
// the API server's own: what pods send to the API server, and to whoever else
// asks for such tokens, would be good for an identity.
func (c *Cluster) checkAudiences(ctx context.Context) error {
	if c.cfg.ServerAudience {
		return nil
	}
	own, err := c.serverAudiences(ctx)
	if err != nil {
		return err
	}
	for _, a := range own {
		if slices.Contains(c.cfg.Audiences, a) {
			return attest.Deny(attest.TokenAudienceWrong, "", "attest.audiences names %q, which is the API server's own audience", attest.Escape(a))
		}
	}
	return nil
}

func (c *Cluster) probeAudiences(ctx context.Context) Finding {
	f := Finding{What: "audiences of tokens"}
	ctx, cancel := context.WithTimeout(ctx, c.limits.CallTime)
	defer cancel()
	own, err := c.serverAudiences(ctx)
	if err == nil {
		err = c.checkAudiences(ctx)
	}
	switch denied := (*attest.DenyError)(nil); {
	case errors.As(err, &denied):
		f.Err = errors.New(denied.Detail)
		f.Mend = "project a token with an audience of its own and name that, take the audience out of --api-audiences, or set attest.unsafeAPIServerAudience: true"
	case err != nil:
		f.Err, f.Mend = err, "let the account create tokenreviews.authentication.k8s.io"
	case len(own) == 0:
		f.Note = fmt.Sprintf("%s; whether one is the API server's own cannot be known with this account's credentials", strings.Join(c.cfg.Audiences, ", "))
	default:
		f.Note = fmt.Sprintf("%s; the API server's own are %s", strings.Join(c.cfg.Audiences, ", "), attest.Escape(strings.Join(own, ", ")))
	}
	return f
}
