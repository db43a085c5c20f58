package serve

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// base is what every part of the graph is built from.
type base struct {
	dir     state.Dir
	log     *slog.Logger
	metrics *prometheus.Registry
	feed    *attest.Feed
	now     func() time.Time
	version string // of this binary; "" while checking
	// checking builds the graph beside a running server: no lock of the state
	// directory is taken, nothing of it is changed.
	checking bool
}

func newBase(dir state.Dir, log *slog.Logger, checking bool) *base {
	b := &base{dir: dir, log: log, metrics: prometheus.NewRegistry(), feed: &attest.Feed{}, now: time.Now, checking: checking}
	b.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector())
	return b
}

// unit is one part that runs until its context ends.
type unit struct {
	name string
	run  func(context.Context) error
}

// condition is one thing that readiness asks.
type condition struct {
	name  string
	ready func() error
}
