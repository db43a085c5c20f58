// Package registry serves an OCI registry in this process, over plain HTTP on
// 127.0.0.1, with its content in memory, and pushes small images to it.
//
// It can be stopped and brought back at the same address with what it held,
// and its handler wrapped to make it lie, stall or fail. All methods may be
// called concurrently, but for Stop, Restart and Close.
package registry

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/hallmark-ca/hallmark/test/bench/port"
)

// Registry is a registry that runs, but between Stop and Restart.
type Registry struct {
	port    *port.Port
	content http.Handler
	current atomic.Pointer[http.Handler]

	server *http.Server
	done   chan struct{} // closed when the server has ended

	mu       sync.Mutex // guards requests
	requests []string
}

// Start runs an empty registry. Without the referrers API it answers 404 there,
// as many do, and clients fall back to the tag "sha256-<hex>".
func Start(referrers bool) (*Registry, error) {
	p, err := port.Reserve()
	if err != nil {
		return nil, fmt.Errorf("starting a registry: %w", err)
	}
	r := &Registry{
		port:    p,
		content: registry.New(registry.WithReferrersSupport(referrers), registry.Logger(log.New(io.Discard, "", 0))),
	}
	r.Wrap(nil)
	if err := r.Restart(); err != nil {
		p.Close()
		return nil, err
	}
	return r, nil
}

// ForTest starts a registry that ends with the test.
func ForTest(tb testing.TB, referrers bool) *Registry {
	tb.Helper()
	r, err := Start(referrers)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	return r
}

// Restart brings a stopped registry back.
func (r *Registry) Restart() error {
	if r.server != nil {
		return errors.New("starting a registry: it runs already")
	}
	l, err := r.port.Listen()
	if err != nil {
		return fmt.Errorf("starting a registry: %w", err)
	}
	server, done := &http.Server{Handler: http.HandlerFunc(r.serve)}, make(chan struct{})
	r.server, r.done = server, done
	go func() {
		defer close(done)
		_ = server.Serve(l) // ends with ErrServerClosed, by Stop
	}()
	return nil
}

// Stop closes the registry and all its connections; new ones are refused.
func (r *Registry) Stop() {
	if r.server == nil {
		return
	}
	_ = r.server.Close() // of a listener that ends here in any case
	<-r.done
	r.server = nil
}

// Close is Stop for good: the address and the content go too.
func (r *Registry) Close() {
	r.Stop()
	r.port.Close()
}

// Addr is "127.0.0.1:port", as image names begin.
func (r *Registry) Addr() string { return r.port.Addr() }

// Repository is the named one in this registry.
func (r *Registry) Repository(repo string) (name.Repository, error) {
	return name.NewRepository(r.Addr()+"/"+repo, name.Insecure)
}

// Wrap puts a handler around the registry's own, in place of the last one; nil
// takes it away. Requests that are being served are not touched.
func (r *Registry) Wrap(wrap func(http.Handler) http.Handler) {
	h := r.content
	if wrap != nil {
		h = wrap(h)
	}
	r.current.Store(&h)
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	r.mu.Unlock()
	(*r.current.Load()).ServeHTTP(w, req)
}

// Requests counts those since the last [Registry.Forget] whose "METHOD /path"
// contains what is given; "" counts all.
func (r *Registry) Requests(containing string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.requests {
		if strings.Contains(s, containing) {
			n++
		}
	}
	return n
}

// Forget begins the count anew.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}
