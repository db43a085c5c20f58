package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// guard is the transport below everything, the library's requests included: it
// decides which requests leave at all, and to which addresses.
type guard struct {
	insecure, private map[string]bool
	inner             *http.Transport
	requests          *prometheus.CounterVec
}

// refusedError is a request that was not made.
type refusedError struct{ why string }

func (e *refusedError) Error() string { return e.why }

func newGuard(insecure, private []string, conf *tls.Config, requests *prometheus.CounterVec) *guard {
	g := &guard{insecure: hosts(insecure), private: hosts(private), requests: requests}
	g.inner = &http.Transport{
		Proxy:                  nil,
		DialContext:            g.dial,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  partTimeout,
		MaxResponseHeaderBytes: maxAnswer,
		DisableCompression:     true, // what is hashed is what was sent, and no small answer grows
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    parallel,
		MaxConnsPerHost:        4 * parallel,
		IdleConnTimeout:        time.Minute,
	}
	return g
}

// RoundTrip refuses plain HTTP where it is not configured (and TLS where it is),
// and lets a redirect go on only without what belongs to another host.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	out, err := g.admit(req)
	if err != nil {
		if req.Body != nil {
			err = errors.Join(err, req.Body.Close())
		}
		g.requests.WithLabelValues("refused").Inc()
		return nil, err
	}
	resp, err := g.inner.RoundTrip(out)
	if err != nil {
		g.requests.WithLabelValues("failed").Inc()
		return nil, err
	}
	g.requests.WithLabelValues(strconv.Itoa(resp.StatusCode/100) + "xx").Inc()
	// Whoever reads has a bound of its own; this one is for the library, which
	// drains some answers without.
	resp.Body = &bounded{ReadCloser: resp.Body, left: maxDrain}
	return resp, nil
}

// maxDrain is above every bound of a single answer.
const maxDrain = 5 << 20

func (g *guard) admit(req *http.Request) (*http.Request, error) {
	host := bare(req.URL.Host)
	switch {
	case req.URL.User != nil:
		return nil, &refusedError{"user information in a URL is refused"}
	case req.URL.Scheme == "http" && !g.insecure[host]:
		return nil, &refusedError{fmt.Sprintf("plain http to %s is refused: images.registries.insecure does not name it", host)}
	case req.URL.Scheme == "https" && g.insecure[host]:
		return nil, &refusedError{fmt.Sprintf("%s is spoken to without TLS: images.registries.insecure names it", host)}
	case req.URL.Scheme != "http" && req.URL.Scheme != "https":
		return nil, &refusedError{"only http and https are spoken"}
	}
	out := req.Clone(req.Context())
	out.Header.Set("User-Agent", "hallmark")
	if req.Response == nil {
		return out, nil
	}
	// A redirect: req.Response leads back to the request that began it.
	first, hops := req, 0
	for first.Response != nil && first.Response.Request != nil {
		first, hops = first.Response.Request, hops+1
	}
	if hops > maxRedirects {
		return nil, &refusedError{"too many redirects"}
	}
	if first.URL.Host == req.URL.Host && first.URL.Scheme == req.URL.Scheme {
		return out, nil
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return nil, &refusedError{fmt.Sprintf("a redirect that sends a %s on to %s is refused", req.Method, host)}
	}
	for _, h := range []string{"Authorization", "Proxy-Authorization", "Cookie", "Referer"} {
		out.Header.Del(h)
	}
	return out, nil
}

// dial connects to an address that was checked after it was resolved, and to no
// other: the check runs on the socket that will connect.
func (g *guard) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host := bare(addr)
	private := g.private[host]
	d := net.Dialer{
		Timeout: dialTimeout,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return &refusedError{fmt.Sprintf("%s has no address that can be checked", host)}
			}
			if what := special(ap.Addr(), private); what != "" {
				return &refusedError{fmt.Sprintf("%s is at %s, a %s address, and no connection is made there; images.registries.allowPrivate can name %s", host, ap.Addr(), what, host)}
			}
			return nil
		},
	}
	return d.DialContext(ctx, network, addr)
}

// bounded ends a body that is larger than anything that is asked for.
type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, contentError{errors.New("the answer is larger than any that is asked for")}
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}
