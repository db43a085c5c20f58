package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"

	"github.com/hallmark-ca/hallmark/attest"
)

// Bounds.
const (
	maxConnections = 32
	maxRequests    = 8 // at once; one more is refused, and not queued
	maxHeader      = 8 << 10
	maxBody        = 64 << 10
	readTime       = 5 * time.Second
	idleTime       = 30 * time.Second
	// orderTime is how long a step may take. A rehearsal ends every connection
	// of the mesh, spread over seconds.
	orderTime = 2 * time.Minute
	writeTime = orderTime + 30*time.Second
	stopTime  = 2 * time.Second
)

// Config is what [New] needs. All fields are required.
type Config struct {
	// Socket is the absolute path of the socket: SocketName in the state
	// directory.
	Socket     string
	Rotation   Rotation
	Conditions func() []Condition
	Facts      func() Facts
	Log        *slog.Logger
	Now        func() time.Time
}

// Server answers on the socket.
type Server struct {
	cfg  Config
	own  uint32 // our account
	name string // of it
	// places is how many requests may be worked on, views how many of them may
	// ask for a status: each asks the census of all consumers.
	places, views chan struct{}
	ids           atomic.Uint64
	born          string // makes ids differ between starts
}

// New returns a Server that touches no file until Run.
func New(cfg Config) (*Server, error) {
	if cfg.Rotation == nil || cfg.Conditions == nil || cfg.Facts == nil || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("making admin socket: rotation, conditions, facts, log and clock are all required")
	}
	if err := checkPath(cfg.Socket); err != nil {
		return nil, fmt.Errorf("making admin socket: %w", err)
	}
	s := &Server{
		cfg: cfg, own: uint32(os.Geteuid()), name: "the server's own account",
		places: make(chan struct{}, maxRequests), views: make(chan struct{}, 1),
		born: strconv.FormatInt(cfg.Now().Unix(), 36),
	}
	// Asked once: only this account and root are ever answered.
	if account, err := user.LookupId(strconv.FormatUint(uint64(s.own), 10)); err == nil {
		s.name = attest.Escape(account.Username)
	}
	return s, nil
}

// Run answers until ctx ends. Requests that are worked on then get a moment to
// end; the steps that they asked for end with ctx.
func (s *Server) Run(ctx context.Context) error {
	listener, err := listen(ctx, s.cfg.Socket)
	if err != nil {
		return fmt.Errorf("listening on admin socket: %w", err)
	}
	defer listener.remove()
	s.cfg.Log.Info("serving the admin socket", "path", s.cfg.Socket)
	server := &http.Server{
		Handler:           s.routes(ctx),
		ReadTimeout:       readTime,
		ReadHeaderTimeout: readTime,
		WriteTimeout:      writeTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withPeer,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		stopped <- server.Shutdown(limit)
	})
	defer stop()
	if err := server.Serve(netutil.LimitListener(listener, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving admin socket: %w", err)
	}
	if err := <-stopped; err != nil {
		return server.Close() // one that does not end is cut
	}
	return nil
}

type peerKey struct{}

// withPeer puts who has connected into the context of the connection's requests.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, conn.RemoteAddr())
}

// who names the peer for the journal, or returns an error for one that may not
// ask.
func (s *Server) who(ctx context.Context) (string, error) {
	p, ok := ctx.Value(peerKey{}).(peer)
	switch {
	case !ok:
		return "", errors.New("who asks is not known")
	case p.err != nil:
		return "", fmt.Errorf("who asks is not known: %w", p.err)
	case p.uid == 0:
		return "uid 0 (root)", nil
	case p.uid == s.own:
		return fmt.Sprintf("uid %d (%s)", p.uid, s.name), nil
	}
	return "", fmt.Errorf("uid %d may not ask: only root and the account that the server runs as may", p.uid)
}
