package replica

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/keys"
)

// issuing is an issuing CA whose key is in this memory. It is immutable.
type issuing struct {
	signer crypto.Signer
	cert   *x509.Certificate
	root   string    // journal.Root.ID
	due    time.Time // of its renewal
}

// tainted tells whether the journal says that it must not be used any more.
func (i *issuing) tainted(state *journal.State) bool {
	id := hex.EncodeToString(i.cert.SubjectKeyId)
	return slices.ContainsFunc(state.Issuing, func(known journal.IssuingCA) bool { return known.ID == id && known.Tainted != "" })
}

// issue makes an issuing CA under root and journals it. The turn is held.
func (r *Replica) issue(ctx context.Context, state journal.State, root journal.Root, serving bool) (*issuing, journal.State, error) {
	parent, err := r.open(ctx, root)
	if err != nil {
		return nil, state, err
	}
	// 1. A key and its certificate, used by nobody yet. A cut here leaves
	// nothing but a signature in a dead memory.
	signer, err := keys.Generate()
	if err != nil {
		return nil, state, err
	}
	cert, err := ca.Certify(ca.Issuing, r.cfg.TrustDomain, signer.Public(), parent, r.cfg.Lifetime, r.cfg.Now())
	if err != nil {
		return nil, state, err
	}
	made := &issuing{signer, cert, root.ID, half(r.cfg.Now(), cert.NotAfter)}
	// Whether the mesh could use it is known before the journal grows by it: a
	// fault that stays would add a record at each attempt.
	if _, err := r.snapshot(state, made); err != nil {
		return nil, state, err
	}
	// 2. The journal knows it. A cut here leaves a CA that never signed. If the
	// outcome is unknown, this one is given up: the next attempt makes another.
	if state, err = r.record(ctx, state, made, serving, parent.Signer); err != nil {
		return nil, state, err
	}
	// 3. Memory may use it.
	return made, state, journal.KeepMemo(r.cfg.MemoFS, r.cfg.MemoFile, state)
}

// snapshot verifies as a whole what i and the bundle of state would be.
func (r *Replica) snapshot(state journal.State, i *issuing) (*ca.Snapshot, error) {
	roots, err := state.Certificates()
	if err != nil {
		return nil, err
	}
	return ca.NewSnapshot(ca.SnapshotConfig{
		TrustDomain: r.cfg.TrustDomain, Sequence: state.Sequence, Signer: i.signer,
		Chain: []*x509.Certificate{i.cert}, Roots: roots,
	}, r.cfg.Now())
}

// open returns root, able to sign.
func (r *Replica) open(ctx context.Context, root journal.Root) (ca.Parent, error) {
	cert, err := x509.ParseCertificate(root.Certificate)
	if err != nil {
		return ca.Parent{}, fmt.Errorf("parsing root %s: %w", root.ID, err)
	}
	key, err := r.cfg.OpenKey(ctx, root.KeyURI, cert)
	if err != nil {
		return ca.Parent{}, &keyError{root.KeyURI, err}
	}
	return ca.Parent{Certificate: cert, Signer: key}, nil
}

// record journals made, whose root has key, and folds the history when that is
// due. Records are signed by the active root, whichever one made's is.
func (r *Replica) record(ctx context.Context, state journal.State, made *issuing, serving bool, key crypto.Signer) (journal.State, error) {
	active, ok := state.ActiveRoot()
	if !ok {
		return state, errors.New("journalling issuing CA: the journal has no active root")
	}
	if active.ID != made.root {
		parent, err := r.open(ctx, active)
		if err != nil {
			return state, err
		}
		key = parent.Signer
	}
	bodies := []journal.Body{{
		Time: r.cfg.Now().UTC(), TrustDomain: state.TrustDomain, By: "replica " + r.cfg.ID,
		Issuing: &journal.IssuingCA{
			ID: hex.EncodeToString(made.cert.SubjectKeyId), Certificate: made.cert.Raw,
			Replica: r.cfg.ID, Root: made.root, NotAfter: made.cert.NotAfter.UTC(), Serving: serving,
		},
	}}
	if fold, due := journal.Fold(state, r.cfg.Now()); due {
		bodies = append([]journal.Body{fold}, bodies...)
	}
	for _, body := range bodies {
		rec, err := journal.NewRecord(state, body, journal.Signer{Root: active.ID, Key: key})
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
