package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// Run serves until ctx ends, then stops in order. Logs go to w; version is this
// binary's.
func Run(ctx context.Context, cfg *config.Config, version string, w io.Writer) error {
	log := newLog(w, cfg.LogLevel)
	b := newBase(state.Dir(cfg.State), log, false)
	b.version = version
	start := b.now()
	log.Info("starting", "trustDomain", cfg.TrustDomain.String(), "cluster", cfg.ClusterID, "replica", cfg.ReplicaID, "state", cfg.State, "images", cfg.Images.Issuance.String())
	g, err := build(ctx, b, cfg)
	defer g.close()
	if errors.Is(err, durable.ErrLocked) {
		return fmt.Errorf("another hallmark serve runs on %s: stop it, or name another state directory: %w", cfg.State, err)
	}
	if err != nil {
		return err
	}
	g.remark(ctx)
	// Each start journals an issuing CA. A restart in a loop, for an address that
	// cannot be had, must not.
	if err := tryAddresses(ctx, cfg); err != nil {
		return err
	}
	err = g.run(ctx)
	log.Info("stopped", "after", b.now().Sub(start).Round(time.Second).String())
	return err
}

// tryAddresses binds what the server listens on, and lets go of it: the mesh port
// opens once there is a certificate to show.
func tryAddresses(ctx context.Context, cfg *config.Config) error {
	var errs []error
	for _, f := range []finding{probeListen(ctx, "mesh.listen", cfg.Mesh.Listen), probeListen(ctx, "metrics.listen", cfg.Metrics)} {
		if f.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: %s", f.what, f.err, f.mend))
		}
	}
	return errors.Join(errs...)
}

// run starts every unit and stops them in three steps: doors, workers, ledger.
// The first that fails stops all.
func (g *graph) run(ctx context.Context) error {
	all, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	inner, stopInner := context.WithCancel(context.WithoutCancel(ctx))
	defer stopInner()
	last, stopLast := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLast()

	ledgerDone := start(last, fail, g.ledger)
	innerDone := start(inner, fail, g.workers)
	doorsDone := start(all, fail, g.doors)

	err := <-doorsDone
	g.base.log.Info("stopping: doors are closed")
	stopInner()
	err = errors.Join(err, <-innerDone)
	stopLast()
	return errors.Join(err, <-ledgerDone)
}

// start runs units under ctx and reports when all have ended. One that ends
// early or fails calls fail.
func start(ctx context.Context, fail context.CancelCauseFunc, units []unit) <-chan error {
	var group errgroup.Group
	for _, u := range units {
		group.Go(func() error {
			err := u.run(ctx)
			switch {
			case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
				return nil
			case err == nil:
				err = errors.New("ended by itself")
			}
			err = fmt.Errorf("running %s: %w", u.name, err)
			fail(err)
			return err
		})
	}
	done := make(chan error, 1)
	go func() { done <- group.Wait() }()
	return done
}
