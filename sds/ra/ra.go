package ra

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// Defaults of [Config].
const (
	defaultTimeout     = 5 * time.Second
	defaultInFlight    = 256
	defaultQueue       = 4096
	defaultCallerRate  = 1
	defaultCallerBurst = 300
)

// Config is what [New] needs. Limits that are zero take their defaults.
type Config struct {
	Registrar *attest.Registrar
	Authority *ca.Authority
	Refusals  interface{ Refuse(ledger.Refusal) } // the ledger
	// Refused is told of each refusal of an authenticated caller, who may not have
	// what it was given just before; nil tells nobody. It must not block.
	Refused func(door string, caller attest.Caller, identity attest.Identity)
	// Timeout bounds every answer: ztunnel waits for ever, one identity after
	// the other. 5 s; at most as long as a grant lasts.
	Timeout time.Duration
	// InFlight bounds the certificates that are being made at once, 256: enough
	// for the ledger to sync many together, few enough for each to be quick.
	InFlight int
	// Queue bounds who waits to be among them, 4096.
	Queue int
	// CallerRate and CallerBurst bound the certificates of one proxy instance:
	// 1 a second and 300 at once.
	CallerRate  float64
	CallerBurst int
	Registerer  prometheus.Registerer
	Log         *slog.Logger
	Now         func() time.Time
}

// RA is the registration authority.
type RA struct {
	cfg     Config
	queue   *queue
	buckets *buckets
	metrics *metrics
	sampler sampler
	panics  sampler
}

// New checks cfg and returns a registration authority.
func New(cfg Config) (*RA, error) {
	if cfg.Registrar == nil || cfg.Authority == nil || cfg.Refusals == nil || cfg.Registerer == nil || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("making registration authority: registrar, authority, ledger, registerer, log and clock are all required")
	}
	if cfg.Timeout < 0 || cfg.InFlight < 0 || cfg.Queue < 0 || cfg.CallerRate < 0 || cfg.CallerBurst < 0 {
		return nil, errors.New("making registration authority: a limit is negative")
	}
	if cfg.Timeout > attest.GrantLifetime {
		return nil, fmt.Errorf("making registration authority: a bound of %s on answers is longer than a grant lasts, %s", cfg.Timeout, attest.GrantLifetime)
	}
	cfg.Timeout = orDefault(cfg.Timeout, defaultTimeout)
	cfg.InFlight = orDefault(cfg.InFlight, defaultInFlight)
	cfg.Queue = orDefault(cfg.Queue, defaultQueue)
	cfg.CallerRate = orDefault(cfg.CallerRate, defaultCallerRate)
	cfg.CallerBurst = orDefault(cfg.CallerBurst, defaultCallerBurst)
	r := &RA{cfg: cfg, queue: newQueue(cfg.InFlight, cfg.Queue, cfg.Now)}
	var err error
	if r.buckets, err = newBuckets(cfg.CallerRate, cfg.CallerBurst); err != nil {
		return nil, fmt.Errorf("making registration authority: %w", err)
	}
	if r.metrics, err = newMetrics(cfg.Registerer, r.queue); err != nil {
		return nil, fmt.Errorf("making registration authority: %w", err)
	}
	return r, nil
}

func orDefault[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// errAnswerDue is the cause by which our own bound on an answer ends a context.
var errAnswerDue = errors.New("the answer was due")

// Bound returns ctx with the bound on every answer, for a front end whose answer
// takes several steps. The steps bound themselves where it was not called; on a
// [Server], calls that have one answer are bounded already.
func (r *RA) Bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= r.cfg.Timeout {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, r.cfg.Timeout, errAnswerDue)
}

// gone tells whether the caller of ctx is no longer there, which is none of our
// refusals: it left, or its own deadline has passed.
func gone(ctx context.Context) bool {
	return ctx.Err() != nil && !errors.Is(context.Cause(ctx), errAnswerDue)
}

// newID names one request: 80 random bits, in letters and digits.
func newID() string { return rand.Text()[:16] }

// Attest finds out who is calling, once for a credential. An error is a
// [*Refusal], or ctx's own where the caller has gone.
func (r *RA) Attest(ctx context.Context, door string, cred attest.Credential) (attest.Caller, error) {
	start := r.cfg.Now()
	ctx, cancel := r.Bound(ctx)
	defer cancel()
	caller, err := r.cfg.Registrar.Attest(ctx, cred)
	r.metrics.attest.Observe(r.cfg.Now().Sub(start).Seconds())
	if !caller.Identity.IsZero() { // also where its pod is refused
		proved(ctx)
	}
	if err != nil {
		if gone(ctx) {
			return attest.Caller{}, ctx.Err()
		}
		return attest.Caller{}, r.refuse(ctx, refusalOf{door: door, caller: caller, peer: cred.Peer, deny: dueOrDenial(ctx, err)})
	}
	return caller, nil
}

// Issue asks for leave to name identity, on live facts and images, and then for
// the certificate. It sets the request's ID and Door. An error is a [*Refusal],
// or ctx's own where the caller has gone.
func (r *RA) Issue(ctx context.Context, door string, caller attest.Caller, identity attest.Identity, req ca.Request) (*ca.Issued, error) {
	start := r.cfg.Now()
	ctx, cancel := r.Bound(ctx)
	defer cancel()
	req.ID, req.Door = newID(), door
	issued, err := r.issue(ctx, caller, identity, req)
	if err != nil {
		if gone(ctx) {
			return nil, ctx.Err()
		}
		return nil, r.refuse(ctx, refusalOf{id: req.ID, door: door, caller: caller, proven: true, deny: dueOrDenial(ctx, err)})
	}
	m := r.metrics.door(door)
	m.issued.Inc()
	m.seconds.Observe(r.cfg.Now().Sub(start).Seconds())
	if r.cfg.Log.Enabled(ctx, slog.LevelDebug) {
		r.cfg.Log.Debug("issued", "id", req.ID, "door", door, "identity", identity.String(), "pod", caller.Pod.String(), "podUID", caller.Pod.UID, "serial", issued.Serial, "notAfter", issued.NotAfter)
	}
	return issued, nil
}

// issue does the steps of Issue. Leave comes before the queue: it may wait for a
// registry, and those who wait there must not hold up others.
func (r *RA) issue(ctx context.Context, caller attest.Caller, identity attest.Identity, req ca.Request) (*ca.Issued, error) {
	if !r.buckets.take(caller.Instance(), r.cfg.Now()) {
		return nil, attest.Deny(attest.CallerRateExceeded, caller.Pod.String(), "more than %g a second and %d at once", r.cfg.CallerRate, r.cfg.CallerBurst)
	}
	grant, err := r.cfg.Registrar.Grant(ctx, caller, identity)
	if err != nil {
		return nil, err
	}
	if err := r.queue.enter(ctx); err != nil {
		return nil, err
	}
	defer r.queue.leave(r.cfg.Now())
	return r.cfg.Authority.Issue(ctx, grant, req)
}

// dueOrDenial is the refusal that err is; where our own bound ended the work, it
// is that this replica was too slow.
func dueOrDenial(ctx context.Context, err error) *attest.DenyError {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return attest.Deny(attest.Overloaded, "", "not done within the bound on answers: %v", err)
	}
	return attest.DenialOf(err)
}

// Check tells whether identity would be granted to caller now: the live facts
// and the images, no certificate. A refusal is counted and recorded as one of
// [RA.Issue]; no bucket is emptied, because it is we who ask.
func (r *RA) Check(ctx context.Context, door string, caller attest.Caller, identity attest.Identity) error {
	ctx, cancel := r.Bound(ctx)
	defer cancel()
	if _, err := r.cfg.Registrar.Grant(ctx, caller, identity); err != nil {
		if gone(ctx) {
			return ctx.Err()
		}
		return r.refuse(ctx, refusalOf{door: door, caller: caller, proven: true, deny: dueOrDenial(ctx, err)})
	}
	return nil
}

// Refuse counts and records a refusal of a front end's own (a bad request, too
// many names) and returns it as a [*Refusal]. The zero caller is one that did
// not prove who it is.
func (r *RA) Refuse(ctx context.Context, door string, caller attest.Caller, deny *attest.DenyError) error {
	return r.refuse(ctx, refusalOf{door: door, caller: caller, proven: caller != attest.Caller{}, deny: deny})
}
