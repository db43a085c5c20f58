package state

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/ceremony"
	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/keys"
	"github.com/hallmark-ca/hallmark/ca/publish"
)

// Founding is what [Found] needs.
type Founding struct {
	Dir          Dir
	TrustDomain  attest.TrustDomain
	RootLifetime time.Duration
	// Keys says where the root's key is made. Its passphrase file is made where
	// keys are sealed and there is none.
	Keys       keys.Config
	BundleFile string // absolute
	Config     []byte // content of hallmark.yaml; nil where the configuration lies elsewhere
	Now        time.Time
}

// ExistsError says that the directory is not empty.
type ExistsError struct {
	Founded bool     // an authority is there
	Paths   []string // what is there
}

// Error names everything that is there.
func (e *ExistsError) Error() string {
	what := "an earlier init did not finish, and no authority was founded: remove what it left, then run init again"
	if e.Founded {
		what = "an authority was founded here before: run hallmark serve, or name another --state"
	}
	return "nothing was changed, because this exists:\n  " + strings.Join(e.Paths, "\n  ") + "\n" + what
}

// Found makes the state directory and, in it, the first root of a trust domain.
// It overwrites nothing: an [*ExistsError] says what is there.
func Found(ctx context.Context, f Founding) (*x509.Certificate, error) {
	if err := f.checkEmpty(ctx); err != nil {
		return nil, err
	}
	store, err := keys.New(f.Keys)
	if err != nil {
		return nil, err
	}
	defer func() { _ = store.Close() }() // the key is in the token, open or not
	// A token that does not open is found out before anything is made.
	if err := store.Check(ctx); err != nil {
		return nil, err
	}
	for _, dir := range []string{"", Keys, Ledger, Evidence} {
		if err := os.MkdirAll(f.Dir.Path(dir), 0o700); err != nil {
			return nil, fmt.Errorf("making state directory: %w", err)
		}
	}
	// A directory that was there before, such as a volume's, may be open to
	// others.
	if err := os.Chmod(string(f.Dir), 0o700); err != nil {
		return nil, fmt.Errorf("making state directory: %w", err)
	}
	if f.Keys.URI == "" {
		if err := f.passphrase(); err != nil {
			return nil, err
		}
	}
	if err := f.checkpointKey(); err != nil {
		return nil, err
	}
	// A cut up to here leaves keys that nothing refers to.
	root, err := ceremony.Found(ctx, ceremony.Founding{
		TrustDomain: f.TrustDomain, Lifetime: f.RootLifetime, FS: f.Dir.FS(), JournalDir: Journal,
		Roots: ceremony.Roots{Keys: store}, By: "hallmark init", Now: f.Now,
	})
	if err != nil {
		return nil, err
	}
	// A cut here leaves an authority without a configuration: `serve --config`
	// can use it.
	cert, err := x509.ParseCertificate(root.Certificate)
	if err != nil {
		return nil, fmt.Errorf("parsing the new root: %w", err)
	}
	if err := publish.WriteFile(f.BundleFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})); err != nil {
		return nil, err
	}
	if f.Config != nil {
		if err := durable.WriteNew(f.Dir.FS(), Config, f.Config); err != nil {
			return nil, fmt.Errorf("writing configuration: %w", err)
		}
	}
	return cert, nil
}

func (f Founding) checkEmpty(ctx context.Context) error {
	names := []string{Config, Keys, Journal, Ledger, Evidence}
	found, err := f.Dir.present(names...)
	if err != nil {
		return fmt.Errorf("looking at state directory: %w", err)
	}
	if within, err := filepath.Rel(f.Dir.Path(Keys), f.Keys.PassphraseFile); err == nil && !strings.HasPrefix(within, "..") && len(found) == 1 && found[0] == f.Dir.Path(Keys) {
		// A passphrase that the operator put there beforehand is to be used.
		if entries, err := os.ReadDir(found[0]); err == nil && len(entries) == 1 && entries[0].Name() == within {
			found = nil
		}
	}
	if len(found) == 0 || ctx.Err() != nil {
		return ctx.Err()
	}
	_, err = journal.ReadFile(f.Dir.FS(), Journal)
	return &ExistsError{Founded: !errors.Is(err, journal.ErrNoJournal), Paths: found}
}

// passphrase makes the file where there is none, and reads it.
func (f Founding) passphrase() error {
	file := f.Keys.PassphraseFile
	_, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		err = durable.WriteNew(durable.OS(filepath.Dir(file)), filepath.Base(file), keys.NewPassphrase())
	}
	if err != nil {
		return fmt.Errorf("making passphrase: %w", err)
	}
	_, err = keys.Passphrase(file)
	return err
}

// checkpointKey makes the key that signs the ledger's checkpoints.
func (f Founding) checkpointKey() error {
	private, public, err := note.GenerateKey(rand.Reader, "ledger."+f.TrustDomain.String())
	if err == nil {
		err = durable.WriteNew(f.Dir.FS(), checkpointKey, []byte(private))
	}
	if err == nil {
		err = durable.WriteNew(f.Dir.FS(), checkpointPub, []byte(public+"\n"))
	}
	if err != nil {
		return fmt.Errorf("making the ledger's checkpoint key: %w", err)
	}
	return nil
}
