package registry

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
)

const (
	indexType     = "application/vnd.oci.image.index.v1+json"
	manifestTypes = indexType + ",application/vnd.oci.image.manifest.v1+json," +
		"application/vnd.docker.distribution.manifest.list.v2+json,application/vnd.docker.distribution.manifest.v2+json"
)

// answer is a response of status 200, read.
type answer struct {
	header http.Header
	body   []byte
}

// checkHeader wants the digest in the header, if there is one, to be that of
// the body.
func (a *answer) checkHeader(digest string) error {
	h := a.header.Get("Docker-Content-Digest")
	if h == "" || h == digest {
		return nil
	}
	if hexed, ok := strings.CutPrefix(h, "sha512:"); ok {
		if sum := sha512.Sum512(a.body); hexed == hex.EncodeToString(sum[:]) {
			return nil
		}
	}
	return contentError{fmt.Errorf("the registry contradicts itself: its header names %q, its body is %s", attest.Escape(h), digest)}
}

// contentError says that what the registry gave is wrong in itself: asking
// again would not help.
type contentError struct{ error }

func (e contentError) Unwrap() error { return e.error }

// statusError is an answer other than 200.
type statusError struct {
	what   string // the request, for people
	status int
	text   string // what the registry says
	retry  string // its Retry-After
	auth   bool   // the token service answered, not the registry
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s: %d %s", e.what, e.status, http.StatusText(e.status))
	if e.status == http.StatusUnauthorized || e.status == http.StatusForbidden {
		s += " (wrong or missing credentials, or no such repository)"
	}
	if e.text != "" {
		s += ": " + e.text
	}
	if e.retry != "" {
		s += " (retry after " + e.retry + ")"
	}
	return s
}

// missing tells whether the registry says that it does not have it.
func (e *statusError) missing() bool {
	return !e.auth && (e.status == http.StatusNotFound || e.status == http.StatusGone)
}

// isAway tells whether the registry failed, so that asking again may help.
func isAway(err error) bool {
	var content contentError
	var status *statusError
	return !errors.As(err, &content) && !(errors.As(err, &status) && status.missing())
}

// do makes one request to the repository's registry, and one more where a
// session had ended. limit is the largest body that is read.
func (c *Client) do(ctx context.Context, repo name.Repository, method, path, accept string, limit int64) (*answer, error) {
	for try := 0; ; try++ {
		s, err := c.session(ctx, repo)
		if err != nil {
			return nil, err
		}
		u := url.URL{Scheme: s.scheme, Host: s.host}
		a, err := c.once(ctx, s, method, u.String()+path, accept, limit)
		var status *statusError
		if errors.As(err, &status) && status.status == http.StatusUnauthorized {
			c.forget(repo, s)
			if try == 0 {
				continue
			}
		}
		return a, err
	}
}

func (c *Client) once(ctx context.Context, s *session, method, target, accept string, limit int64) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if s.authorization != "" {
		req.Header.Set("Authorization", s.authorization)
	}
	resp, err := s.client(c.guard).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	what := method + " " + req.URL.Path
	if resp.StatusCode != http.StatusOK {
		e := &statusError{what: what, status: resp.StatusCode, text: errorText(resp.Body)}
		if r := resp.Header.Get("Retry-After"); r != "" {
			e.retry = attest.Escape(r)
		}
		return nil, e
	}
	a := &answer{header: resp.Header}
	if method == http.MethodHead {
		return a, nil
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, contentError{fmt.Errorf("%s: the answer is encoded (%s), which was not asked for", what, attest.Escape(enc))}
	}
	tooLarge := contentError{fmt.Errorf("%s: the answer is larger than %d bytes", what, limit)}
	if resp.ContentLength > limit {
		return nil, tooLarge
	}
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1)); err != nil {
		return nil, fmt.Errorf("%s: reading the answer: %w", what, err)
	}
	if int64(len(a.body)) > limit {
		return nil, tooLarge
	}
	return a, nil
}

// errorText is what a registry's error says, cut and escaped.
func errorText(body io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(body, maxAnswer))
	if err != nil {
		return ""
	}
	var e struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	if json.Unmarshal(b, &e) != nil || len(e.Errors) == 0 {
		return ""
	}
	return attest.Escape(strings.TrimSpace(e.Errors[0].Code + " " + e.Errors[0].Message))
}

// isNetwork tells whether err came from below HTTP.
func isNetwork(err error) bool {
	var u *url.Error
	var n net.Error
	return errors.As(err, &u) || errors.As(err, &n) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// describe is err's text without the query of any URL in it: a presigned one
// is a secret.
func describe(err error) string {
	var refused *refusedError
	if errors.As(err, &refused) {
		return refused.why
	}
	var status *transport.Error
	if errors.As(err, &status) {
		return (&statusError{what: "greeting the registry", status: status.StatusCode}).Error()
	}
	var u *url.Error
	if errors.As(err, &u) {
		shown := "the registry"
		if parsed, perr := url.Parse(u.URL); perr == nil {
			shown = parsed.Scheme + "://" + parsed.Host + parsed.Path
		}
		return fmt.Sprintf("%s %s: %v", strings.ToUpper(u.Op), shown, u.Err)
	}
	return err.Error()
}

// limitOf is how much is read of content whose size a descriptor declares.
func limitOf(d evidence.Descriptor, most int64) (int64, error) {
	if d.Size < 0 || d.Size > most {
		return 0, contentError{fmt.Errorf("%d bytes are declared, at most %d are allowed", d.Size, most)}
	}
	if d.Size == 0 {
		return most, nil
	}
	return d.Size, nil
}
