// Package echo is the plain HTTP service behind a sidecar: it answers each
// request with who called, as the proxy in front of it says in the header
// x-forwarded-client-cert, and remembers what it served.
package echo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// Answer is what a request is answered with, as JSON.
type Answer struct {
	Service string `json:"service"` // the name that the service was started with
	// Peer is the SPIFFE ID of the caller, empty if the proxy named none.
	Peer string `json:"peer"`
	// Self is the SPIFFE ID under which the proxy took the call.
	Self string `json:"self"`
}

// Server is a service that runs.
type Server struct {
	name   string
	addr   string
	server *http.Server
	done   chan struct{} // closed when it has ended
	served atomic.Int64
}

// Start runs a service on 127.0.0.1, on a port that the kernel chooses.
func Start(name string) (*Server, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting service %s: %w", name, err)
	}
	s := &Server{name: name, addr: l.Addr().String(), done: make(chan struct{})}
	s.server = &http.Server{Handler: http.HandlerFunc(s.answer), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(s.done)
		_ = s.server.Serve(l) // ends with ErrServerClosed, by Close
	}()
	return s, nil
}

// Addr is "127.0.0.1:port".
func (s *Server) Addr() string { return s.addr }

// Served counts the requests that arrived.
func (s *Server) Served() int64 { return s.served.Load() }

// Close ends the service and all its connections.
func (s *Server) Close() {
	_ = s.server.Close() // of a listener that ends here in any case
	<-s.done
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	s.served.Add(1)
	a := Answer{Service: s.name}
	if h := r.Header.Get("x-forwarded-client-cert"); h != "" {
		var err error
		if a.Peer, a.Self, err = Peer(h); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // the caller has gone: nobody to tell
}

// Peer reads the two SPIFFE IDs of an x-forwarded-client-cert header: the
// caller's, and that of the proxy which took the call. More than one caller is
// an error: a proxy that sets the header names its own peer alone.
func Peer(header string) (peer, self string, err error) {
	if strings.Contains(header, ",") {
		return "", "", errors.New("reading x-forwarded-client-cert: more than one caller")
	}
	for field := range strings.SplitSeq(header, ";") {
		name, value, _ := strings.Cut(field, "=")
		switch strings.ToLower(name) {
		case "uri":
			if peer != "" {
				return "", "", errors.New("reading x-forwarded-client-cert: the caller has two URIs")
			}
			peer = strings.Trim(value, `"`)
		case "by":
			self = strings.Trim(value, `"`)
		}
	}
	return peer, self, nil
}
