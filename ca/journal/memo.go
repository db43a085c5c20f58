package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// Memo is the highest state that a replica has seen, kept beside its ledger and
// away from the journal, so that a journal restored from an old copy is found
// out.
type Memo struct {
	Number   uint64 `json:"number"`
	Head     string `json:"head"`
	Sequence uint64 `json:"sequence"`
}

// ErrRolledBack says that the journal does not continue what was seen before, or
// that nobody can tell any more whether it does.
var ErrRolledBack = errors.New("the journal was rolled back or replaced: it does not continue what this replica has seen")

// CheckMemo holds state against the memo in file, and writes nothing. A missing
// memo is one of nothing.
func CheckMemo(fsys durable.FS, file string, state State) error {
	_, err := checkMemo(fsys, file, state)
	return err
}

// KeepMemo is CheckMemo, and then moves the memo up to state.
func KeepMemo(fsys durable.FS, file string, state State) error {
	seen, err := checkMemo(fsys, file, state)
	if err != nil {
		return err
	}
	now := Memo{state.Number, state.Head, state.Sequence}
	if now == seen {
		return nil
	}
	data, err := json.Marshal(now)
	if err != nil {
		return fmt.Errorf("writing journal memo: %w", err)
	}
	if err := durable.Replace(fsys, file, data); err != nil {
		return fmt.Errorf("writing journal memo: %w", err)
	}
	return nil
}

func checkMemo(fsys durable.FS, file string, state State) (Memo, error) {
	var seen Memo
	data, err := durable.Read(fsys, file, 4096)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return seen, fmt.Errorf("checking journal memo: %w", err)
	default:
		if err := json.Unmarshal(data, &seen); err != nil {
			return seen, fmt.Errorf("checking journal memo %s: %w", file, err)
		}
	}
	if !state.Extends(seen.Number, seen.Head) || state.Sequence < seen.Sequence {
		return seen, fmt.Errorf("%w (seen: record %d, sequence %d; the journal has record %d, sequence %d)", ErrRolledBack, seen.Number, seen.Sequence, state.Number, state.Sequence)
	}
	return seen, nil
}
