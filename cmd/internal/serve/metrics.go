package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// metricsServer answers metrics and health: plain HTTP, nothing secret.
type metricsServer struct {
	listen string
	server *http.Server
	log    *slog.Logger
}

// Bounds of a plain HTTP server that anyone may reach.
const (
	metricsReadTimeout  = 5 * time.Second
	metricsWriteTimeout = 30 * time.Second
	metricsIdleTimeout  = 2 * time.Minute
	metricsHeaderBytes  = 16 << 10
	metricsStop         = 2 * time.Second
	maxScrapes          = 4
)

func buildMetrics(b *base, cfg *config.Config, conditions []condition) *metricsServer {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.InstrumentMetricHandler(b.metrics, promhttp.HandlerFor(b.metrics, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes, EnableOpenMetrics: true, ErrorHandling: promhttp.ContinueOnError,
	})))
	// Alive means that the process answers: what is missing outside does not
	// get better by a restart, which would lose the issuing CA.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		text, ready := readiness(conditions)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprint(w, text)
	})
	return &metricsServer{listen: cfg.Metrics, log: b.log.With("part", "metrics"), server: &http.Server{
		Handler:           mux,
		ReadTimeout:       metricsReadTimeout,
		ReadHeaderTimeout: metricsReadTimeout,
		WriteTimeout:      metricsWriteTimeout,
		IdleTimeout:       metricsIdleTimeout,
		MaxHeaderBytes:    metricsHeaderBytes,
		ErrorLog:          slog.NewLogLogger(b.log.With("part", "metrics").Handler(), slog.LevelDebug),
	}}
}

// readiness writes a line for each condition. What is wrong with one stands in
// the log and in hallmark status: errors name addresses, files and accounts, and
// whoever reaches this port may read this.
func readiness(conditions []condition) (text string, ready bool) {
	var b strings.Builder
	ready = true
	for _, c := range conditions {
		if err := c.ready(); err != nil {
			ready = false
			fmt.Fprintf(&b, "not ready: %s (hallmark status says why)\n", c.name)
			continue
		}
		fmt.Fprintf(&b, "ok: %s\n", c.name)
	}
	return b.String(), ready
}

func (m *metricsServer) run(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", m.listen)
	if err != nil {
		return fmt.Errorf("listening for metrics: %w", err)
	}
	return m.serve(ctx, listener)
}

func (m *metricsServer) serve(ctx context.Context, listener net.Listener) error {
	m.log.Info("serving metrics and health", "address", listener.Addr().String())
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), metricsStop)
		defer cancel()
		stopped <- m.server.Shutdown(limit)
	})
	defer stop()
	if err := m.server.Serve(newestFirst(listener, metricsConnections, metricsOfOneAddress)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	if err := <-stopped; err != nil {
		return m.server.Close() // a scrape that does not end is cut
	}
	return nil
}
