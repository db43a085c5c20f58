package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	dialTime  = 5 * time.Second
	keepAlive = 30 * time.Second

	maxAnswer = 4 << 20  // an answer of one object
	maxStatus = 64 << 10 // a refusal
	userAgent = "hallmark"
)

// RESTConfig reads how the API server is reached: from the file kubeconfig, or,
// where that is empty, as the account of the pod that this process runs in.
func RESTConfig(kubeconfig string) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			err = errors.New("this process runs in no pod, and no kubeconfig is named (attest.kubeconfig)")
		}
	} else {
		cfg, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}, &clientcmd.ConfigOverrides{}).ClientConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("finding the Kubernetes API: %w", err)
	}
	bounded(cfg)
	return cfg, nil
}

// bounded limits how long a connection may take to open. Requests have deadlines
// of their own; a watch has none, and client-go's HTTP/2 pings end one whose
// other side is gone.
func bounded(cfg *rest.Config) {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialTime, KeepAlive: keepAlive}).DialContext
	}
}

// api speaks HTTP to one API server. It retries nothing and waits for no bucket:
// each call has its own deadline, and who calls bounds how many there are.
type api struct {
	http *http.Client
	base *url.URL
}

func newAPI(cfg *rest.Config) (*api, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.UserAgent = userAgent
	cfg.Timeout = 0 // a watch has none; calls bring their own
	bounded(cfg)
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("reading the address of the Kubernetes API: %w", err)
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("making a client of the Kubernetes API: %w", err)
	}
	own := *client
	// The API server redirects nobody; whoever does is not it.
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &api{http: &own, base: base}, nil
}

// open sends a request and returns the body of an answer of success. An answer
// of another kind is an [*apierrors.StatusError].
func (a *api) open(ctx context.Context, method, path string, query url.Values, body any) (io.ReadCloser, error) {
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding request: %w", err)
		}
		payload = bytes.NewReader(b)
	}
	at := *a.base.JoinPath(path)
	at.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, at.String(), payload)
	if err != nil {
		return nil, fmt.Errorf("making request: %w", err)
	}
	// The second is the type of /openid/v1/jwks (RFC 7517 section 8.5.2), and the
	// only one that the API server gives it.
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := a.http.Do(req)
	if err != nil {
		return nil, &transportError{err}
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		defer res.Body.Close()
		return nil, refusal(res, method)
	}
	return res.Body, nil
}

// call sends a request and decodes the answer into into.
func (a *api) call(ctx context.Context, method, path string, body, into any) error {
	answer, err := a.open(ctx, method, path, nil, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	raw, err := io.ReadAll(io.LimitReader(answer, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("reading answer: %w", err)
	case len(raw) > maxAnswer:
		return fmt.Errorf("reading answer: it is larger than %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return &decodeError{err}
	}
	return nil
}

// transportError says that no answer came.
type transportError struct{ err error }

// Error leaves out the address with its query: it is different at every try.
func (e *transportError) Error() string {
	var at *url.Error
	if errors.As(e.err, &at) {
		return at.Err.Error()
	}
	return e.err.Error()
}

func (e *transportError) Unwrap() error { return e.err }

// decodeError is an answer that is no answer.
type decodeError struct{ err error }

func (e *decodeError) Error() string { return "decoding answer: " + e.err.Error() }
func (e *decodeError) Unwrap() error { return e.err }

// refusal reads the Status that the API server sends with an error.
func refusal(res *http.Response, method string) error {
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxStatus))
	var status metav1.Status
	if err == nil && json.Unmarshal(raw, &status) == nil && status.Status == metav1.StatusFailure {
		status.Code = int32(res.StatusCode)
		return &apierrors.StatusError{ErrStatus: status}
	}
	return apierrors.NewGenericServerResponse(res.StatusCode, method, schema.GroupResource{}, "", "", 0, false)
}

// errAway says that the API server was not asked, since it has not answered
// others just now.
var errAway = errors.New("the API server has not answered lately")

// away tells whether err means that the API server did not answer: no
// connection, no answer in time, 429 or 5xx. Any other answer is one.
func away(err error) bool {
	if errors.Is(err, errAway) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		code := status.Status().Code
		return code == http.StatusTooManyRequests || code >= http.StatusInternalServerError
	}
	var network net.Error
	var transport *transportError
	return errors.As(err, &transport) || errors.As(err, &network)
}
