// Package replica makes one replica able to sign: it follows the journal, makes
// an issuing CA whose key never leaves memory, has the root sign it, journals
// it, and only then puts a new Snapshot in force. It renews at half of the
// issuing CA's life, and makes another one when the journal has another active
// root or has tainted the one at hand.
//
// Our own serving certificate is apart: while an old root is trusted, clients may
// know no other, so it stays under the oldest root of ours that is trusted. Until
// that root is retired its last issuing CA is kept for this, and one is made
// anew, for serving alone, where there is none.
//
// Whatever fails leaves the last Snapshot in force: a CA that stops or restarts
// because a disk or an HSM is away would be a new way for a mesh to go down.
// The root's key is opened for each signature and let go after it.
package replica

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

// OpenKey opens the key of an authority and checks that it is cert's.
type OpenKey func(ctx context.Context, uri string, cert *x509.Certificate) (crypto.Signer, error)

// Config is what [New] needs. All fields are required.
type Config struct {
	ID          string // of this replica, for the journal
	TrustDomain attest.TrustDomain
	Store       journal.Store
	OpenKey     OpenKey
	Authority   *ca.Authority
	Lifetime    time.Duration // of an issuing CA
	MemoFS      durable.FS    // where the highest state seen is kept,
	MemoFile    string        // apart from the journal
	Registerer  prometheus.Registerer
	Log         *slog.Logger
	Now         func() time.Time
}

// Replica is one replica's issuing CA.
type Replica struct {
	cfg     Config
	rootEnd prometheus.Gauge
	ownEnd  prometheus.Gauge
	failed  prometheus.Counter

	turn chan struct{} // holds one: whose turn it is. It guards the four below.
	main *issuing      // signs leaves; nil before the first
	old  *issuing      // signs our own serving certificate; nil where main does
	// rehearsing: our serving certificate is to be under the active root, although
	// an older one is trusted.
	rehearsing bool
	served     *issuing // that was installed for serving

	mu  sync.Mutex // guards err
	err error      // why the last attempt failed
}

// Back-off between failed attempts.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// New returns a replica that signs nothing until Run.
func New(cfg Config) (*Replica, error) {
	r := &Replica{
		cfg:     cfg,
		rootEnd: prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_root_expiry_timestamp_seconds", Help: "When the active root ends, in seconds since 1970."}),
		ownEnd:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_issuing_ca_expiry_timestamp_seconds", Help: "When this replica's issuing CA ends, in seconds since 1970."}),
		failed:  prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_issuing_ca_failures_total", Help: "Failed attempts to make an issuing CA."}),
		err:     errors.New("no issuing CA has been made yet"),
		turn:    make(chan struct{}, 1),
	}
	// Istio's name for the same fact, so that dashboards keep working.
	citadel := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "citadel_server_root_cert_expiry_timestamp", Help: "When the active root ends, in seconds since 1970."}, func() float64 {
		snap := cfg.Authority.Current()
		if snap == nil {
			return 0
		}
		return float64(snap.Root().NotAfter.Unix())
	})
	for _, c := range []prometheus.Collector{r.rootEnd, r.ownEnd, r.failed, citadel} {
		if err := cfg.Registerer.Register(c); err != nil {
			return nil, fmt.Errorf("making replica: %w", err)
		}
	}
	return r, nil
}

// Ready tells whether the issuing CA can sign, and if not, why.
func (r *Replica) Ready() error {
	snap := r.cfg.Authority.Current()
	switch {
	case snap == nil:
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.err
	case !snap.Issuer().NotAfter.After(r.cfg.Now()):
		return fmt.Errorf("the issuing CA ended at %s", snap.Issuer().NotAfter)
	}
	return nil
}

// Run makes the first issuing CA, renews what it has at half of its life, and
// ends with ctx. It never gives up.
func (r *Replica) Run(ctx context.Context) error {
	renew := func(ctx context.Context) error {
		_, err := r.Renew(ctx)
		return err
	}
	for {
		wait, err := r.attempt(ctx, renew)
		if err != nil {
			return nil //nolint:nilerr // ctx has ended, and that is no failure
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		renew = r.renewDue
	}
}

// attempt renews, with back-off until it works, and returns how long the result
// is good for.
func (r *Replica) attempt(ctx context.Context, renew func(context.Context) error) (time.Duration, error) {
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		err := renew(ctx)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		r.mu.Lock()
		r.err = err
		r.mu.Unlock()
		if err == nil {
			return r.next(ctx)
		}
		r.failed.Inc()
		r.report(err, delay)
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(delay):
		}
	}
}

// report logs a failed attempt, and what mends it.
func (r *Replica) report(err error, delay time.Duration) {
	what := "making an issuing CA failed; the last one stays in force"
	if snap := r.cfg.Authority.Current(); snap == nil {
		what = "making the first issuing CA failed; nothing is issued until it works"
	} else if !snap.Issuer().NotAfter.After(r.cfg.Now()) {
		what = "making an issuing CA failed, and the last one has ended; nothing is issued until it works"
	}
	r.cfg.Log.Error(what, "error", err, "mend", Mend(err), "retryIn", delay.String())
}

// next returns how long what is at hand is good for.
func (r *Replica) next(ctx context.Context) (time.Duration, error) {
	done, err := r.take(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	wait := r.main.due.Sub(r.cfg.Now())
	if r.old != nil {
		wait = min(wait, r.old.due.Sub(r.cfg.Now()))
	}
	// Near its root's end an issuing CA is short; the next one would be shorter
	// still, and then the next.
	return max(min(lastRetry, r.cfg.Lifetime/4), wait), nil
}

// take waits for the turn.
func (r *Replica) take(ctx context.Context) (done func(), err error) {
	select {
	case r.turn <- struct{}{}:
		return func() { <-r.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
