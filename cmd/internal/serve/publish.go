package serve

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// bundleFile writes the bundle out whenever it changes.
type bundleFile struct {
	authority *ca.Authority
	path      string
	log       *slog.Logger
	failing   prometheus.Gauge
	changed   chan struct{} // one token
}

// publishRetry is the pause after a failed write.
const publishRetry = 5 * time.Second

func buildPublish(b *base, cfg *config.Config, authority *ca.Authority) (*bundleFile, error) {
	p := &bundleFile{
		authority: authority, path: cfg.Bundle, log: b.log.With("part", "publish"), changed: make(chan struct{}, 1),
		failing: prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_bundle_file_failing", Help: "1 while the bundle file could not be written, else 0."}),
	}
	if err := b.metrics.Register(p.failing); err != nil {
		return nil, fmt.Errorf("making bundle publisher: %w", err)
	}
	return p, nil
}

func (p *bundleFile) run(ctx context.Context) error {
	p.authority.Subscribe(func(*ca.Snapshot) {
		select {
		case p.changed <- struct{}{}:
		default: // the newest is read anyway
		}
	})
	var retry <-chan time.Time
	var written string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.changed:
		case <-retry:
		}
		retry = nil
		bundle := p.authority.Current().BundlePEM()
		if string(bundle) == written {
			continue // a new issuing CA under the same roots
		}
		if err := state.WriteBundle(p.path, bundle); err != nil {
			p.failing.Set(1)
			p.log.Error("writing the bundle file failed", "error", err, "retryIn", publishRetry.String())
			retry = time.After(publishRetry)
			continue
		}
		written = string(bundle)
		p.failing.Set(0)
		p.log.Info("bundle file written", "file", p.path, "sequence", p.authority.Current().Sequence())
	}
}
