package serve

import (
	"context"
	"errors"
	"io"

	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/keys"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/ca/lint/zlint"
	"github.com/hallmark-ca/hallmark/ca/profile"
	"github.com/hallmark-ca/hallmark/ca/replica"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// authorityParts is what signs and records.
type authorityParts struct {
	authority *ca.Authority
	census    *census.Census
	store     journal.Store
	ledger    *ledger.Ledger // nil while checking
	replica   *replica.Replica
	keys      *keys.Store
	close     []io.Closer
}

func buildAuthority(ctx context.Context, b *base, cfg *config.Config, c *census.Census) (*authorityParts, error) {
	p := &authorityParts{census: c}
	keyConfig := cfg.Authority.Keys(b.dir.Path(state.Keys))
	keyConfig.Registerer, keyConfig.Log = b.metrics, b.log.With("part", "keys")
	var err error
	if p.keys, err = keys.New(keyConfig); err != nil {
		return p, err
	}
	p.close = append(p.close, p.keys)
	p.store = readOnlyJournal{b}
	var records ca.Ledger = noLedger{}
	if !b.checking {
		file, err := journal.OpenFile(b.dir.FS(), state.Journal)
		if err != nil {
			return nil, err
		}
		p.store, p.close = file, append(p.close, file)
		if p.ledger, err = openLedger(ctx, b, cfg); err != nil {
			return p, err
		}
		records = p.ledger
	}
	if p.authority, err = ca.New(ca.Config{
		Leaf: cfg.Authority.Leaf, Ledger: records, LintShape: zlint.Check, Issued: c.Issued,
		Registerer: b.metrics, Log: b.log.With("part", "ca"), Now: b.now,
	}); err != nil {
		return p, err
	}
	p.replica, err = replica.New(replica.Config{
		ID: cfg.ReplicaID, TrustDomain: cfg.TrustDomain, Store: p.store, OpenKey: p.keys.Open,
		Authority: p.authority, Lifetime: cfg.Authority.IssuingLifetime,
		MemoFS: b.dir.FS(), MemoFile: state.Seen,
		Registerer: b.metrics, Log: b.log.With("part", "replica"), Now: b.now,
	})
	return p, err
}

func openLedger(ctx context.Context, b *base, cfg *config.Config) (*ledger.Ledger, error) {
	signer, err := b.dir.Signer()
	if err != nil {
		return nil, err
	}
	verifier, err := b.dir.Verifier()
	if err != nil {
		return nil, err
	}
	return ledger.Open(ctx, ledger.Config{
		FS: b.dir.FS(), Dir: state.Ledger, MaxBytes: cfg.Ledger.MaxBytes, Retention: cfg.Ledger.Retention,
		MaxLeaf: profile.LeafCeiling, Signer: signer, Verifier: verifier,
		Registerer: b.metrics, Log: b.log.With("part", "ledger"), Now: b.now,
	})
}

// readOnlyJournal reads beside a running server.
type readOnlyJournal struct{ b *base }

func (j readOnlyJournal) Load(context.Context) (journal.State, error) {
	return journal.ReadFile(j.b.dir.FS(), state.Journal)
}

func (readOnlyJournal) Append(context.Context, journal.Record) error {
	return errors.New("appending to journal: a check changes nothing")
}

// noLedger takes the ledger's place while checking: nothing is issued then.
type noLedger struct{}

func (noLedger) Append(context.Context, *ledger.Intent) error {
	return errors.New("appending to ledger: a check issues nothing")
}

func (noLedger) Finish(ledger.Outcome) {}

func (noLedger) Refuse(ledger.Refusal) {}
