package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

const (
	// maxAnswer bounds what a client reads: gates name 100 consumers each.
	maxAnswer = 8 << 20
	// askTime bounds a question. A server with 200,000 consumers answers within a
	// second.
	askTime = 30 * time.Second
)

// ErrNoServer says that nobody listens on the socket.
var ErrNoServer = errors.New("no server runs on this state: start hallmark serve")

// Client asks the server behind one socket.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the socket, an absolute path. It connects when it
// is asked something.
func NewClient(socket string) (*Client, error) {
	if err := checkPath(socket); err != nil {
		return nil, fmt.Errorf("finding admin socket: %w", err)
	}
	dialer := &net.Dialer{Timeout: dialTime}
	return &Client{socket: socket, http: &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", socket)
			},
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Status returns everything on one screen.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var answer Status
	err := c.ask(ctx, askTime, http.MethodGet, "/v1/status", nil, &answer)
	return answer, err
}

// Rotation returns how the rotation stands.
func (c *Client) Rotation(ctx context.Context) (RotationStatus, error) {
	var answer RotationStatus
	err := c.ask(ctx, askTime, http.MethodGet, "/v1/rotation", nil, &answer)
	return answer, err
}

// Do carries out a command and returns how the rotation stands after it. What
// the rotation refuses is a [*rotate.RefusedError].
func (c *Client) Do(ctx context.Context, action Action, o Order) (RotationStatus, error) {
	var answer RotationStatus
	body, err := json.Marshal(o)
	if err != nil {
		return answer, fmt.Errorf("writing order: %w", err)
	}
	err = c.ask(ctx, writeTime, http.MethodPost, "/v1/rotation/"+string(action), body, &answer)
	return answer, err
}

func (c *Client) ask(ctx context.Context, limit time.Duration, method, path string, body []byte, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// The host is a matter of form: the socket is the address.
	req, err := http.NewRequestWithContext(ctx, method, "http://hallmark"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("asking the server: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return c.unreachable(err)
	case len(text) > maxAnswer:
		return fmt.Errorf("asking the server: its answer has more than %d bytes", maxAnswer)
	case resp.StatusCode == http.StatusOK:
		if err := json.Unmarshal(text, answer); err != nil {
			return fmt.Errorf("reading the server's answer: %w", err)
		}
		return nil
	}
	var f fault
	if err := json.Unmarshal(text, &f); err != nil || f.Why == "" {
		return fmt.Errorf("asking the server: it answers %s", attest.Escape(resp.Status))
	}
	if resp.StatusCode == http.StatusConflict {
		return &rotate.RefusedError{Why: f.Why, Mend: f.Mend}
	}
	if f.Mend != "" {
		f.Why += ": " + f.Mend
	}
	return errors.New(f.Why)
}

// unreachable says in an operator's words why the server was not reached.
func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w, or name its directory with --state (nobody listens on %s)", ErrNoServer, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("asking the server on %s: only root and the account that it runs as may", c.socket)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted: what the server has begun goes on, and hallmark rotate status shows it: %w", context.Canceled)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the server on %s does not answer in time: what it has begun goes on, and hallmark rotate status shows it", c.socket)
	}
	return fmt.Errorf("asking the server on %s: %w", c.socket, err)
}
