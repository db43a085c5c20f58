package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sync"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

const (
	fileName = "journal.jsonl"
	lockName = "lock"
	// maxFile bounds the journal: 20 replicas and their folded history fit in
	// 256 KiB.
	maxFile = 4 << 20
)

// File is the store of a single replica: one file, a record a line, replaced as
// a whole at each append, so that no cut leaves half a record.
type File struct {
	fsys durable.FS
	dir  string
	lock io.Closer

	mu      sync.Mutex // one reader or writer at a time; guards settled
	settled bool       // what the file shows is durable
}

// OpenFile opens the store in dir for this process alone; [durable.ErrLocked]
// if another has it.
func OpenFile(fsys durable.FS, dir string) (*File, error) {
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("opening journal: %w", err)
	}
	lock, err := fsys.Lock(path.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("opening journal: %w", err)
	}
	return &File{fsys: fsys, dir: dir, lock: lock}, nil
}

// Close gives the store up.
func (f *File) Close() error { return f.lock.Close() }

// ReadFile returns the verified state of the store in dir, beside a process
// that has it open.
func ReadFile(fsys durable.FS, dir string) (State, error) {
	records, err := ReadRecords(fsys, dir)
	if err != nil {
		return State{}, err
	}
	return Replay(records)
}

// ReadRecords returns the records of the store in dir as they stand there, beside
// a process that has it open: [Replay] says whether they are to be believed.
func ReadRecords(fsys durable.FS, dir string) ([]Record, error) {
	data, err := durable.Read(fsys, path.Join(dir, fileName), maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoJournal
	}
	if err != nil {
		return nil, fmt.Errorf("reading journal: %w", err)
	}
	var records []Record
	for line := range bytes.Lines(data) {
		var rec Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return nil, fmt.Errorf("reading journal: line %d: %w", len(records)+1, err)
		}
		records = append(records, rec)
	}
	if len(records) == 0 {
		return nil, errors.New("reading journal: the file is empty")
	}
	return records, nil
}

// Load implements [Store].
func (f *File) Load(context.Context) (State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	state, _, err := f.load()
	return state, err
}

// load reads the records, after it has made sure that they are durable: an
// earlier process may have died in the middle of a write, and a write of ours
// may have failed behind its rename. What is visible then is written once more,
// so that what others base on it cannot vanish.
func (f *File) load() (State, []Record, error) {
	records, err := ReadRecords(f.fsys, f.dir)
	if err != nil {
		return State{}, nil, err
	}
	state, err := Replay(records)
	if err != nil {
		return State{}, nil, err
	}
	if !f.settled {
		if err := f.write(records); err != nil {
			return State{}, nil, fmt.Errorf("settling journal: %w: %w", ErrStateUnknown, err)
		}
	}
	return state, records, nil
}

// write replaces the file.
func (f *File) write(records []Record) error {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	for _, r := range records {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	if out.Len() > maxFile { // nobody could read it
		return fmt.Errorf("the journal would have %d bytes, at most %d", out.Len(), maxFile)
	}
	err := durable.Replace(f.fsys, path.Join(f.dir, fileName), out.Bytes())
	var unknown *durable.UnknownError
	switch {
	case err == nil:
		f.settled = true
	case errors.As(err, &unknown):
		f.settled = false
		return fmt.Errorf("%w: %w", ErrStateUnknown, err)
	}
	return err
}

// Append implements [Store]: compare and swap on the number and hash that rec
// follows.
func (f *File) Append(_ context.Context, rec Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	state, records, err := f.load()
	if err != nil && !errors.Is(err, ErrNoJournal) {
		return err
	}
	b, err := decode(rec.Body)
	if err != nil {
		return fmt.Errorf("appending to journal: %w", err)
	}
	if b.Number != state.Number+1 || b.Previous != state.Head {
		return fmt.Errorf("appending to journal: record %d does not follow %d: %w", b.Number, state.Number, ErrConflict)
	}
	if _, err := apply(state, rec); err != nil {
		return fmt.Errorf("appending to journal: %w", err)
	}
	if b.Folded != nil { // it stands for all before it
		records = nil
	}
	if err := f.write(append(records, rec)); err != nil {
		return fmt.Errorf("appending to journal: %w", err)
	}
	return nil
}
