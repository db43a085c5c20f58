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
	// foldAt is how many expired issuing CAs are kept before they are folded.
	foldAt = 32
)

// File is the store of a single replica: one file, a record a line, replaced as
// a whole at each append, so that no cut leaves half a record.
type File struct {
	fsys durable.FS
	dir  string
	lock io.Closer

	mu sync.Mutex // one writer at a time
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
	records, err := read(fsys, dir)
	if err != nil {
		return State{}, err
	}
	return Replay(records)
}

func read(fsys durable.FS, dir string) ([]Record, error) {
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
	return ReadFile(f.fsys, f.dir)
}

// Append implements [Store]: compare and swap on the number and hash that rec
// follows.
func (f *File) Append(_ context.Context, rec Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	records, err := read(f.fsys, f.dir)
	if err != nil && !errors.Is(err, ErrNoJournal) {
		return err
	}
	state, err := Replay(records)
	if err != nil {
		return err
	}
	var head struct {
		Number   uint64
		Previous string
		Folded   json.RawMessage
	}
	if err := json.Unmarshal(rec.Body, &head); err != nil {
		return fmt.Errorf("appending to journal: %w", err)
	}
	if head.Number != state.Number+1 || head.Previous != state.Head {
		return fmt.Errorf("appending to journal: record %d does not follow %d: %w", head.Number, state.Number, ErrConflict)
	}
	if _, err := apply(state, rec); err != nil {
		return fmt.Errorf("appending to journal: %w", err)
	}
	if head.Folded != nil { // it stands for all before it
		records = nil
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	for _, r := range append(records, rec) {
		if err := enc.Encode(r); err != nil {
			return fmt.Errorf("appending to journal: %w", err)
		}
	}
	if err := durable.Replace(f.fsys, path.Join(f.dir, fileName), out.Bytes()); err != nil {
		var unknown *durable.UnknownError
		if errors.As(err, &unknown) {
			return fmt.Errorf("appending to journal: %w: %w", ErrStateUnknown, err)
		}
		return fmt.Errorf("appending to journal: %w", err)
	}
	return nil
}
