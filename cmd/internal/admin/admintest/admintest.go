// Package admintest serves a real admin socket for tests, before a rotation that
// is told what to answer and notes what it was asked. It decides nothing, and
// has no part in the product. It is safe for concurrent use.
package admintest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/ca/rotate"
	"github.com/hallmark-ca/hallmark/cmd/internal/admin"
)

// Now is what the server's clock shows.
var Now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// Rotation is an admin.Rotation.
type Rotation struct {
	// Hold, where it is set, is what each command waits for, or for its context.
	Hold <-chan struct{}

	mu      sync.Mutex // guards all below
	status  rotate.Status
	broken  error // of Status
	err     error // of each command
	calls   []string
	waiting int // commands, for Hold
}

// Set changes what is answered.
func (r *Rotation) Set(status rotate.Status, broken, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status, r.broken, r.err = status, broken, err
}

// Calls returns what was asked, a command a line.
func (r *Rotation) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.calls...)
}

func (r *Rotation) note(ctx context.Context, format string, args ...any) error {
	if r.Hold != nil {
		r.add(1)
		defer r.add(-1)
		select {
		case <-r.Hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
	return r.err
}

func (r *Rotation) add(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting += n
}

// Waiting returns how many commands wait for Hold.
func (r *Rotation) Waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

// Status implements admin.Rotation.
func (r *Rotation) Status(context.Context) (rotate.Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status, r.broken
}

// Start implements admin.Rotation.
func (r *Rotation) Start(ctx context.Context, who string) error {
	return r.note(ctx, "start by %s", who)
}

// Activate implements admin.Rotation.
func (r *Rotation) Activate(ctx context.Context, who string, force rotate.Force) error {
	return r.note(ctx, "activate by %s, force %v %q", who, force.Pass, force.Reason)
}

// Retire implements admin.Rotation.
func (r *Rotation) Retire(ctx context.Context, who, root string, force rotate.Force) error {
	return r.note(ctx, "retire %q by %s, force %v %q", root, who, force.Pass, force.Reason)
}

// Abort implements admin.Rotation.
func (r *Rotation) Abort(ctx context.Context, who string) error {
	return r.note(ctx, "abort by %s", who)
}

// Trust implements admin.Rotation.
func (r *Rotation) Trust(ctx context.Context, who string, der []byte) error {
	return r.note(ctx, "trust %d bytes by %s", len(der), who)
}

// Untrust implements admin.Rotation.
func (r *Rotation) Untrust(ctx context.Context, who, root string, force rotate.Force) error {
	return r.note(ctx, "untrust %q by %s, force %v %q", root, who, force.Pass, force.Reason)
}

// Pause implements admin.Rotation.
func (r *Rotation) Pause(ctx context.Context, who string) error {
	return r.note(ctx, "pause by %s", who)
}

// Resume implements admin.Rotation.
func (r *Rotation) Resume(ctx context.Context, who string) error {
	return r.note(ctx, "resume by %s", who)
}

// RunAll implements admin.Rotation.
func (r *Rotation) RunAll(ctx context.Context, who string) error {
	return r.note(ctx, "run by %s", who)
}

// Server is a running server.
type Server struct {
	Socket string
	Log    *Log
	cancel context.CancelFunc
	ended  chan error
}

// Log is what a server has logged.
type Log struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns all of it.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Serve serves r in dir until the test ends, or Stop.
func Serve(t testing.TB, dir string, r *Rotation, facts admin.Facts, conditions ...admin.Condition) *Server {
	t.Helper()
	s := &Server{Socket: filepath.Join(dir, admin.SocketName), Log: &Log{}, ended: make(chan error, 1)}
	server, err := admin.New(admin.Config{
		Socket: s.Socket, Rotation: r,
		Facts:      func() admin.Facts { return facts },
		Conditions: func() []admin.Condition { return conditions },
		Log:        slog.New(slog.NewJSONHandler(s.Log, nil)),
		Now:        func() time.Time { return Now },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() { s.ended <- server.Run(ctx) }()
	t.Cleanup(cancel)
	s.await(t)
	return s
}

// await returns when the server answers.
func (s *Server) await(t testing.TB) {
	t.Helper()
	limit := time.After(10 * time.Second)
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for {
		if conn, err := (&net.Dialer{}).DialContext(context.Background(), "unix", s.Socket); err == nil {
			conn.Close()
			return
		}
		select {
		case <-again.C:
		case err := <-s.ended:
			t.Fatalf("the admin server ended: %v", err)
		case <-limit:
			t.Fatal("the admin server does not listen")
		}
	}
}

// Stop stops it and returns what Run returned.
func (s *Server) Stop(t testing.TB) error {
	t.Helper()
	s.cancel()
	select {
	case err := <-s.ended:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the admin server does not end")
		return nil
	}
}
