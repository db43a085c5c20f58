// Package ceremony makes roots. It is used by a person's command, once in
// years, and never by a running server. It keeps no state.
package ceremony

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/keys"
)

// Founding is what [Found] needs.
type Founding struct {
	TrustDomain attest.TrustDomain
	Lifetime    time.Duration
	FS          durable.FS // the state directory
	KeyDir      string     // in FS
	JournalDir  string     // in FS
	Passphrase  []byte     // that seals the key
	By          string     // who asked, for the journal
	Now         time.Time
}

// ErrFounded says that the state directory has an authority already.
var ErrFounded = errors.New("an authority was founded here before; nothing was changed")

// Found makes the first root of a trust domain: a P-256 key of its own, sealed
// in a file, and the journal's first record. It never overwrites anything.
func Found(ctx context.Context, f Founding) (journal.Root, error) {
	store, err := journal.OpenFile(f.FS, f.JournalDir)
	if err != nil {
		return journal.Root{}, fmt.Errorf("founding authority: %w", err)
	}
	defer store.Close()
	switch _, err := store.Load(ctx); {
	case err == nil:
		return journal.Root{}, fmt.Errorf("founding authority: %w", ErrFounded)
	case !errors.Is(err, journal.ErrNoJournal):
		return journal.Root{}, fmt.Errorf("founding authority: %w", err)
	}
	root, record, err := makeRoot(f)
	if err != nil {
		return journal.Root{}, fmt.Errorf("founding authority: %w", err)
	}
	// A cut here leaves a sealed key that no journal names: it signs nothing,
	// and the next attempt makes another.
	if err := store.Append(ctx, record); err != nil {
		return journal.Root{}, fmt.Errorf("founding authority: %w", err)
	}
	return root, nil
}

// makeRoot makes the key durable before the record that will name it.
func makeRoot(f Founding) (journal.Root, journal.Record, error) {
	fail := func(err error) (journal.Root, journal.Record, error) { return journal.Root{}, journal.Record{}, err }
	key, err := keys.Generate()
	if err != nil {
		return fail(err)
	}
	cert, err := ca.Certify(ca.Root, f.TrustDomain, key.Public(), ca.Parent{Signer: key}, f.Lifetime, f.Now)
	if err != nil {
		return fail(err)
	}
	id := hex.EncodeToString(cert.SubjectKeyId)
	sealed, err := keys.Seal(key, f.Passphrase)
	if err != nil {
		return fail(err)
	}
	if err := f.FS.MkdirAll(f.KeyDir); err != nil {
		return fail(err)
	}
	file := "root-" + id[:8] + ".pem"
	if err := durable.WriteNew(f.FS, path.Join(f.KeyDir, file), sealed); err != nil {
		return fail(err)
	}
	root := journal.Root{ID: id, Certificate: cert.Raw, KeyURI: keys.URI(file), Phase: journal.Active, Since: f.Now.UTC()}
	record, err := journal.NewRecord(journal.State{},
		journal.Body{Time: f.Now.UTC(), TrustDomain: f.TrustDomain.String(), By: f.By, Founded: &root},
		journal.Signer{Root: id, Key: key})
	return root, record, err
}
