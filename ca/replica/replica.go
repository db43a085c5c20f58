// Package replica makes one replica able to sign: it reads the journal, makes an
// issuing CA whose key never leaves memory, has the root sign it, journals it,
// and only then puts a new Snapshot in force. It renews at half of the issuing
// CA's life.
//
// Whatever fails leaves the last Snapshot in force: a CA that stops or restarts
// because a disk or an HSM is away would be a new way for a mesh to go down.
// The root's key is opened for each signature and let go after it. Run and Renew
// are for one goroutine, Ready is for any.
package replica

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
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
	"github.com/hallmark-ca/hallmark/ca/keys"
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

// Run makes the first issuing CA, renews it at half its life, and ends with
// ctx. It never gives up.
func (r *Replica) Run(ctx context.Context) error {
	for {
		wait, err := r.attempt(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// attempt renews, with back-off until it works, and returns how long the result
// is good for.
func (r *Replica) attempt(ctx context.Context) (time.Duration, error) {
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		issuer, err := r.Renew(ctx)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		r.mu.Lock()
		r.err = err
		r.mu.Unlock()
		if err == nil {
			// Near its root's end an issuing CA is short; the next one would be
			// shorter still, and then the next.
			least := min(lastRetry, r.cfg.Lifetime/4)
			return max(least, issuer.NotAfter.Sub(r.cfg.Now())/2), nil
		}
		r.failed.Inc()
		r.cfg.Log.Error("making an issuing CA failed; the last one stays in force", "error", err, "retryIn", delay.String())
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(delay):
		}
	}
}

// Renew makes a new issuing CA and puts it in force.
func (r *Replica) Renew(ctx context.Context) (*x509.Certificate, error) {
	// 1. What is durable.
	state, err := r.cfg.Store.Load(ctx)
	if err != nil {
		return nil, err
	}
	if state.TrustDomain != r.cfg.TrustDomain.String() {
		return nil, fmt.Errorf("the journal is of trust domain %q, the configuration of %q", state.TrustDomain, r.cfg.TrustDomain)
	}
	if err := journal.CheckMemo(r.cfg.MemoFS, r.cfg.MemoFile, state); err != nil {
		return nil, err
	}
	root, cert, key, err := r.openRoot(ctx, &state)
	if err != nil {
		return nil, err
	}
	// 2. A key and its certificate, used by nobody yet. A cut here leaves
	// nothing but a signature in a dead memory.
	signer, err := keys.Generate()
	if err != nil {
		return nil, err
	}
	issuer, err := ca.Certify(ca.Issuing, r.cfg.TrustDomain, signer.Public(), ca.Parent{Certificate: cert, Signer: key}, r.cfg.Lifetime, r.cfg.Now())
	if err != nil {
		return nil, err
	}
	// Whether the mesh could use it is known before the journal grows by it: a
	// fault that stays would add a record at each attempt.
	if _, err := r.snapshot(state, signer, issuer); err != nil {
		return nil, err
	}
	// 3. The journal knows it. A cut here leaves a CA that never signed. If the
	// outcome is unknown, this one is given up: the next attempt makes another.
	state, err = r.record(ctx, state, root, key, issuer)
	if err != nil {
		return nil, err
	}
	if err := journal.CheckMemo(r.cfg.MemoFS, r.cfg.MemoFile, state); err != nil {
		return nil, err
	}
	// 4. It signs.
	snap, err := r.snapshot(state, signer, issuer)
	if err != nil {
		return nil, err
	}
	if err := r.cfg.Authority.Install(snap); err != nil {
		return nil, err
	}
	r.rootEnd.Set(float64(cert.NotAfter.Unix()))
	r.ownEnd.Set(float64(issuer.NotAfter.Unix()))
	r.cfg.Log.Info("issuing CA in force", "authority", snap.AuthorityID(), "root", root.ID, "notAfter", issuer.NotAfter, "sequence", state.Sequence)
	return issuer, nil
}

func (r *Replica) snapshot(state journal.State, signer crypto.Signer, issuer *x509.Certificate) (*ca.Snapshot, error) {
	roots, err := state.Certificates()
	if err != nil {
		return nil, err
	}
	return ca.NewSnapshot(ca.SnapshotConfig{
		TrustDomain: r.cfg.TrustDomain, Sequence: state.Sequence, Signer: signer,
		Chain: []*x509.Certificate{issuer}, Roots: roots,
	}, r.cfg.Now())
}

func (r *Replica) openRoot(ctx context.Context, state *journal.State) (journal.Root, *x509.Certificate, crypto.Signer, error) {
	root, ok := state.ActiveRoot()
	if !ok {
		return root, nil, nil, errors.New("the journal has no active root")
	}
	cert, err := x509.ParseCertificate(root.Certificate)
	if err != nil {
		return root, nil, nil, fmt.Errorf("parsing root %s: %w", root.ID, err)
	}
	key, err := r.cfg.OpenKey(ctx, root.KeyURI, cert)
	return root, cert, key, err
}

// record journals issuer, and folds the history when that is due.
func (r *Replica) record(ctx context.Context, state journal.State, root journal.Root, key crypto.Signer, issuer *x509.Certificate) (journal.State, error) {
	bodies := []journal.Body{{
		Time: r.cfg.Now().UTC(), TrustDomain: state.TrustDomain, By: "replica " + r.cfg.ID,
		Issuing: &journal.IssuingCA{
			ID: hex.EncodeToString(issuer.SubjectKeyId), Certificate: issuer.Raw,
			Replica: r.cfg.ID, Root: root.ID, NotAfter: issuer.NotAfter.UTC(),
		},
	}}
	if fold, due := journal.Fold(state, r.cfg.Now()); due {
		bodies = append([]journal.Body{fold}, bodies...)
	}
	for _, body := range bodies {
		rec, err := journal.NewRecord(state, body, journal.Signer{Root: root.ID, Key: key})
		if err != nil {
			return state, err
		}
		if err := r.cfg.Store.Append(ctx, rec); err != nil {
			return state, err
		}
		// Read back: only what is durable counts.
		if state, err = r.cfg.Store.Load(ctx); err != nil {
			return state, err
		}
	}
	return state, nil
}
