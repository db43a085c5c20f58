package serve_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/cmd/internal/serve"
)

// fromMany gives each connection an address of its own, by from.
type fromMany struct {
	net.Listener
	from func(n int) net.Addr

	mu sync.Mutex // guards n
	n  int
}

func (f *fromMany) Accept() (net.Conn, error) {
	conn, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	return remote{conn, f.from(f.n)}, nil
}

type remote struct {
	net.Conn
	at net.Addr
}

func (r remote) RemoteAddr() net.Addr { return r.at }

// ask sends one request for /healthz and returns the status of the answer.
func ask(conn net.Conn) (int, error) {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return 0, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, errors.Join(err, answer.Body.Close())
}

// TestMetricsPortBoundsConnections: only so many stay open, whoever opens them,
// and the newest, a probe of kubelet's, is always answered.
func TestMetricsPortBoundsConnections(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		from func(n int) net.Addr
		want int
	}{
		"one address":    {func(n int) net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: n} }, serve.MetricsOfOneAddress},
		"many addresses": {func(n int) net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, byte(n>>8), byte(n)), Port: 1} }, serve.MetricsConnections},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- serve.ServeMetrics(ctx, &fromMany{Listener: inner, from: test.from}) }()
			const opened = 400
			conns := make([]net.Conn, 0, opened)
			for n := range opened {
				conn, err := net.Dial("tcp", inner.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if code, err := ask(conn); code != http.StatusOK {
					t.Fatalf("connection %d: %d, %v", n, code, err)
				}
				conns = append(conns, conn)
			}
			for n, conn := range conns {
				open := n >= opened-test.want
				if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if !open {
					_, err := conn.Read(make([]byte, 1))
					if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("connection %d was not closed: %v", n, err)
					}
					continue
				}
				if code, err := ask(conn); code != http.StatusOK {
					t.Errorf("connection %d was closed: %d, %v", n, code, err)
				}
			}
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReadinessTellsNoErrors: whoever reaches the port learns which condition
// fails, and nothing of what stands behind it.
func TestReadinessTellsNoErrors(t *testing.T) {
	t.Parallel()
	secret := fmt.Sprintf(`list pods: dial tcp 10.96.0.1:443: refused, with %s, for /var/lib/hallmark/ledger`, token)
	w := httptest.NewRecorder()
	serve.Admin(serve.Condition("view of the cluster", func() error { return errors.New(secret) })).
		ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if w.Code != http.StatusServiceUnavailable || w.Body.String() != "not ready: view of the cluster (hallmark status says why)\n" {
		t.Errorf("%d %q", w.Code, w.Body.String())
	}
	for _, part := range []string{"10.96.0.1", "ledger", token} {
		if strings.Contains(w.Body.String(), part) {
			t.Errorf("it tells %q", part)
		}
	}
}
