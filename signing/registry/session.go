package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/hallmark-ca/hallmark/attest"
)

// session is how a repository is spoken to: with which scheme, and with which
// authorization. It is immutable.
type session struct {
	scheme        string
	host          string
	authorization string // a header's value; a secret
	until         time.Time
}

// session returns the repository's, from memory where it is still good.
func (c *Client) session(ctx context.Context, repo name.Repository) (*session, error) {
	if s, ok := c.sessions.Get(repo.Name()); ok && c.cfg.Now().Before(s.until) {
		return s, nil
	}
	ch, err := c.challenge(ctx, repo.Registry)
	if err != nil {
		return nil, err
	}
	s := &session{scheme: "https", host: repo.RegistryStr(), until: c.cfg.Now().Add(sessionLife)}
	if ch.Insecure {
		s.scheme = "http"
	}
	if s.authorization, err = c.authorize(ctx, repo, ch); err != nil {
		return nil, err
	}
	c.sessions.Add(repo.Name(), s)
	return s, nil
}

// forget drops a session that the registry no longer takes, and what led to it.
func (c *Client) forget(repo name.Repository, s *session) {
	if current, ok := c.sessions.Peek(repo.Name()); ok && current == s {
		c.sessions.Remove(repo.Name())
		c.challenges.Remove(repo.RegistryStr())
	}
}

// challenge asks a registry how it wants to be spoken to.
func (c *Client) challenge(ctx context.Context, reg name.Registry) (*transport.Challenge, error) {
	if k, ok := c.challenges.Get(reg.RegistryStr()); ok && c.cfg.Now().Before(k.until) {
		return k.value, nil
	}
	only := &oneScheme{guard: c.guard, scheme: "https"}
	if c.guard.insecure[bare(reg.RegistryStr())] {
		only.scheme = "http"
	}
	ch, err := transport.Ping(ctx, reg, only)
	if err != nil {
		if real := only.failure(); real != nil {
			err = real
		}
		return nil, fmt.Errorf("greeting the registry: %w", err)
	}
	c.challenges.Add(reg.RegistryStr(), kept[*transport.Challenge]{ch, c.cfg.Now().Add(challengeLife)})
	return ch, nil
}

// oneScheme lets the library greet a registry in the scheme that is configured:
// by itself it tries the other one too where a name looks local, and then
// reports both failures as one.
type oneScheme struct {
	guard  *guard
	scheme string

	mu  sync.Mutex // guards err
	err error
}

func (o *oneScheme) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Response == nil && req.URL.Scheme != o.scheme {
		return nil, errors.New("not the scheme that is configured")
	}
	resp, err := o.guard.RoundTrip(req)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
	return resp, err
}

func (o *oneScheme) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// authorize makes the Authorization header for the repository, "" for none.
func (c *Client) authorize(ctx context.Context, repo name.Repository, ch *transport.Challenge) (string, error) {
	scheme := strings.ToLower(ch.Scheme)
	if scheme == "" {
		return "", nil // the registry asks for nothing, and is told nothing
	}
	auth, err := c.credentials(ctx, repo)
	if err != nil {
		return "", err
	}
	if scheme != "bearer" {
		return basic(auth), nil
	}
	if auth.RegistryToken != "" {
		return "Bearer " + auth.RegistryToken, nil
	}
	authenticator := authn.Anonymous
	if auth != (authn.AuthConfig{}) {
		authenticator = authn.FromConfig(auth)
	}
	token, err := transport.Exchange(ctx, repo.Registry, authenticator, c.guard, []string{repo.Scope(transport.PullScope)}, ch)
	if err != nil {
		return "", tokenError(err)
	}
	if token.AccessToken != "" {
		return "Bearer " + token.AccessToken, nil
	}
	return "Bearer " + token.Token, nil
}

func basic(auth authn.AuthConfig) string {
	switch {
	case auth.Username != "" && auth.Password != "":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(auth.Username+":"+auth.Password))
	case auth.Auth != "":
		return "Basic " + auth.Auth
	default:
		return ""
	}
}

// tokenError keeps of a failed exchange only what cannot hold a token: some of
// the library's errors quote the answer.
func tokenError(err error) error {
	var status *transport.Error
	if errors.As(err, &status) {
		return &statusError{what: "the token service", status: status.StatusCode, auth: true}
	}
	if isNetwork(err) {
		return fmt.Errorf("asking the token service: %w", err)
	}
	return contentError{errors.New("the registry's token service is refused, or gives no token that can be used")}
}

// credentials reads the repository's from the docker config, in the order of
// the library's own keychain: the repository, then the registry.
func (c *Client) credentials(ctx context.Context, repo name.Repository) (authn.AuthConfig, error) {
	if c.cfg.DockerConfig == "" {
		return authn.AuthConfig{}, nil
	}
	select {
	case c.helper <- struct{}{}:
	case <-ctx.Done():
		return authn.AuthConfig{}, fmt.Errorf("waiting for a credential helper: %w", ctx.Err())
	}
	type result struct {
		auth authn.AuthConfig
		err  error
	}
	done := make(chan result, 1)
	go func() { // a credential helper is a process that knows no deadline
		defer func() { <-c.helper }()
		var r result
		r.err = c.guarded(func() (err error) {
			r.auth, err = readCredentials(c.cfg.DockerConfig, repo)
			return err
		})()
		done <- r
	}()
	select {
	case r := <-done:
		return r.auth, r.err
	case <-ctx.Done():
		return authn.AuthConfig{}, fmt.Errorf("reading the registry's credentials: %w", ctx.Err())
	}
}

func readCredentials(file string, repo name.Repository) (authn.AuthConfig, error) {
	cf, err := readDockerConfig(file)
	if err != nil {
		return authn.AuthConfig{}, err
	}
	for _, key := range []string{repo.Name(), repo.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		found, err := cf.GetAuthConfig(key)
		if err != nil {
			return authn.AuthConfig{}, fmt.Errorf("reading the credentials for %s: %s", key, attest.Escape(err.Error()))
		}
		found.ServerAddress = ""
		if found != (types.AuthConfig{}) {
			return authn.AuthConfig{
				Username: found.Username, Password: found.Password, Auth: found.Auth,
				IdentityToken: found.IdentityToken, RegistryToken: found.RegistryToken,
			}, nil
		}
	}
	return authn.AuthConfig{}, nil
}

func readDockerConfig(file string) (*configfile.ConfigFile, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading the docker config: %w", err)
	}
	defer f.Close()
	cf, err := config.LoadFromReader(io.LimitReader(f, maxConfig))
	if err != nil {
		return nil, fmt.Errorf("reading the docker config %s: it is not in the form of a docker config.json", file)
	}
	return cf, nil
}

// client makes the HTTP client of one request.
func (s *session) client(g *guard) *http.Client {
	return &http.Client{Transport: g, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return &refusedError{"too many redirects"}
		}
		return nil
	}}
}
