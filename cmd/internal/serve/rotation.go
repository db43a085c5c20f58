package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/ceremony"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/ca/profile"
	"github.com/hallmark-ca/hallmark/ca/replica"
	"github.com/hallmark-ca/hallmark/ca/rotate"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
	"github.com/hallmark-ca/hallmark/sds/istioca"
	"github.com/hallmark-ca/hallmark/sds/proxies"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

const (
	rotationInterval = 5 * time.Second // between two looks at journal and gates
	// reconnectOver is over how long connections are ended in a rehearsal.
	reconnectOver = 5 * time.Second
	// Where lifetimes are of seconds, for tests, gates are looked at as often.
	shortWindow   = 30 * time.Second
	shortInterval = 200 * time.Millisecond
)

// buildCensus makes the census; gone is asked once the cluster is there.
func buildCensus(b *base, gone func(string, attest.PodRef, time.Time) bool) (*census.Census, error) {
	return census.New(census.Config{
		Doors: map[string]census.Kind{proxies.Door: census.Acked, istioca.Door: census.Carried},
		Gone:  gone, Registerer: b.metrics, Log: b.log.With("part", "census"), Now: b.now,
	})
}

// restoreCensus tells the census who holds leaves that earlier processes have
// given out. Until then no gate opens; where the ledger cannot be read, none
// opens at all, and nothing else suffers.
func restoreCensus(b *base, c *census.Census, l *ledger.Ledger) func(context.Context) error {
	log := b.log.With("part", "census")
	return func(ctx context.Context) error {
		start := b.now()
		restored, err := readCensus(ctx, b, c, l)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was asked to end
		case err != nil:
			log.Error("who holds certificates cannot be read from the ledger: no root is rotated until it can; hallmark ledger verify says what is wrong", "error", err)
		default:
			c.Restored()
			log.Info("who holds certificates is known again", "issuances", restored, "after", b.now().Sub(start).Round(time.Millisecond).String())
		}
		<-ctx.Done()
		return nil
	}
}

func readCensus(ctx context.Context, b *base, c *census.Census, l *ledger.Ledger) (restored int, err error) {
	// Not by the configured maximum: it may have been longer before.
	filter := ledger.Filter{Since: b.now().Add(-profile.LeafCeiling - time.Minute)}
	for entry, err := range ledger.Query(ctx, b.dir.FS(), state.Ledger, filter) {
		switch {
		case errors.Is(err, ledger.ErrRefusals):
			b.log.Warn("records of refusals cannot be read", "part", "ledger", "error", err)
		case err != nil:
			return restored, err
		case entry.Intent != nil && entry.Number <= l.Opened(): // no refusal, and not of this process
			c.Restore(entry)
			restored++
		}
	}
	return restored, nil
}

func buildRotation(b *base, cfg *config.Config, authority *authorityParts, publish *publishParts, r rotate.Rehearsal) (*rotate.Runner, error) {
	interval := rotationInterval
	if cfg.Rotation.RehearsalWindow < shortWindow {
		interval = shortInterval
	}
	return rotate.New(rotate.Config{
		TrustDomain: cfg.TrustDomain, Store: authority.store, Follower: authority.replica, Keys: ceremony.Roots{Keys: authority.keys},
		Census: authority.census, Rehearsal: r, Places: publish.places, Policy: cfg.Rotation, Interval: interval,
		Registerer: b.metrics, Log: b.log.With("part", "rotation"), Now: b.now,
	})
}

// rehearsal shows our own certificate under the active root to everybody, or
// takes that back.
type rehearsal struct {
	replica *replica.Replica
	serving *servingCertificate
	server  *ra.Server
	now     func() time.Time
	log     *slog.Logger
}

var _ rotate.Rehearsal = (*rehearsal)(nil)

// Begin implements [rotate.Rehearsal].
func (r *rehearsal) Begin(ctx context.Context) (time.Time, error) {
	if err := r.present(ctx, true); err != nil {
		return time.Time{}, err
	}
	since := r.now()
	n := r.server.EndConnections(since, reconnectOver)
	r.log.Info("a rehearsal has begun: our own certificate is under the new root", "connectionsEnded", n)
	return since, nil
}

// Revert implements [rotate.Rehearsal].
func (r *rehearsal) Revert(ctx context.Context) error { return r.present(ctx, false) }

// present has the certificate signed as wanted before it returns.
func (r *rehearsal) present(ctx context.Context, active bool) error {
	if err := r.replica.Rehearse(ctx, active); err != nil {
		return fmt.Errorf("changing what our own certificate is under: %w", err)
	}
	if _, err := r.serving.mint(ctx); err != nil {
		return fmt.Errorf("changing our own certificate: %w", err)
	}
	return nil
}
