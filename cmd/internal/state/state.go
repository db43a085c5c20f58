package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// Names within the state directory.
const (
	Config   = "hallmark.yaml"
	Keys     = "keys"
	Journal  = "journal"
	Ledger   = "ledger"
	Evidence = "evidence"
	Bundle   = "bundle.pem"
	Seen     = "journal.seen"

	passphrase    = Keys + "/passphrase"
	checkpointKey = Keys + "/ledger.key"
	checkpointPub = Keys + "/ledger.pub"
)

// maxKey bounds a checkpoint key file, in bytes.
const maxKey = 4096

// Dir is a state directory.
type Dir string

// Path returns where name lies.
func (d Dir) Path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }

// FS returns the directory as journal, ledger and keys use it.
func (d Dir) FS() durable.FS { return durable.OS(string(d)) }

// Signer opens the key that signs the ledger's checkpoints.
func (d Dir) Signer() (note.Signer, error) {
	text, err := durable.Read(d.FS(), checkpointKey, maxKey)
	if err != nil {
		return nil, fmt.Errorf("opening the ledger's checkpoint key: %w", err)
	}
	signer, err := note.NewSigner(string(text))
	if err != nil {
		return nil, fmt.Errorf("opening the ledger's checkpoint key %s: %w", d.Path(checkpointKey), err)
	}
	return signer, nil
}

// Verifier opens the public half of the ledger's checkpoint key.
func (d Dir) Verifier() (note.Verifier, error) {
	text, err := durable.Read(d.FS(), checkpointPub, maxKey)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening the ledger's public key: there is no %s: name the state directory with --state", d.Path(checkpointPub))
	}
	if err != nil {
		return nil, fmt.Errorf("opening the ledger's public key: %w", err)
	}
	verifier, err := note.NewVerifier(string(text))
	if err != nil {
		return nil, fmt.Errorf("opening the ledger's public key %s: %w", d.Path(checkpointPub), err)
	}
	return verifier, nil
}

// present returns which of names exist, as whole paths. An empty folder does
// not count.
func (d Dir) present(names ...string) ([]string, error) {
	var found []string
	for _, name := range names {
		info, err := os.Lstat(d.Path(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			entries, err := os.ReadDir(d.Path(name))
			if err != nil {
				return nil, err
			}
			if len(entries) == 0 {
				continue
			}
		}
		found = append(found, d.Path(name))
	}
	return found, nil
}
