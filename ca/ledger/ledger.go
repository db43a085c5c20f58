package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// Sizes in bytes.
const (
	DefaultSegment = 64 << 20
	minSegment     = 64 << 10
	maxSegment     = 1 << 30
	// maxPending bounds what waits for one sync: some thousands of intents.
	maxPending = 4 << 20
)

// Config is what [Open] needs. Log, Now and Registerer are required.
type Config struct {
	FS        durable.FS
	Dir       string // in FS
	Segment   int64  // size of a segment; 0 is 64 MiB
	MaxBytes  int64  // budget of all segments
	Retention time.Duration
	// MaxLeaf is the longest life of a leaf: a segment whose last record is
	// older has no live leaf.
	MaxLeaf    time.Duration
	Signer     note.Signer // of checkpoints; nil makes none
	Verifier   note.Verifier
	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
}

// Errors of the ledger.
var (
	// ErrUnwritable: the record could not be made durable. Nothing may be
	// signed.
	ErrUnwritable = errors.New("the ledger cannot be written")
	// ErrClosed: the ledger is not running (any more).
	ErrClosed = errors.New("the ledger is closed")
	// ErrCut: the ledger holds less than one of its own signed checkpoints
	// says. It is not repaired: records are missing.
	ErrCut = errors.New("the ledger was cut: records that a signed checkpoint covers are missing")
)

// batch is what one sync will make durable.
type batch struct {
	frames  []byte
	rows    []row // offsets relative to the batch
	waiters int
	done    chan struct{} // closed when durable, or failed
	err     error         // set before done is closed
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

func (b *batch) add(typ frameType, body []byte, r row) {
	r.offset = uint64(len(b.frames))
	b.frames = appendFrame(b.frames, typ, body)
	b.rows = append(b.rows, r)
}

// Ledger is the issuance ledger of one replica.
type Ledger struct {
	cfg  Config
	lock io.Closer
	m    metrics

	mu      sync.Mutex // guards current, closed; held only to copy
	current *batch
	closed  bool
	wake    chan struct{} // one token: something waits in current

	state    atomic.Pointer[string] // why the ledger cannot be written; nil if it can
	refusals refusals
	w        writer         // of the goroutine of Run alone
	made     chan error     // the zeroed next segment is there, or is not
	indexing sync.WaitGroup // index files being written
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// encode returns v in JSON in a pooled buffer, which the caller puts back.
func encode(v any) (*bytes.Buffer, error) {
	buf := buffers.Get().(*bytes.Buffer)
	buf.Reset()
	if err := json.NewEncoder(buf).Encode(v); err != nil {
		buffers.Put(buf)
		return nil, fmt.Errorf("encoding ledger record: %w", err)
	}
	if buf.Len() > maxBody {
		buffers.Put(buf)
		return nil, fmt.Errorf("encoding ledger record: %d bytes, at most %d", buf.Len(), maxBody)
	}
	return buf, nil
}

// Append makes intent durable, and returns nil only then. If ctx ends first, it
// leaves: the intent may stay, and an outcome "abandoned" follows it.
func (l *Ledger) Append(ctx context.Context, intent *Intent) error {
	start := l.cfg.Now()
	buf, err := encode(intent)
	if err != nil {
		return err
	}
	b, err := l.put(frameIntent, buf.Bytes(), intentRow(intent), true)
	buffers.Put(buf)
	if err != nil {
		return err
	}
	select {
	case <-b.done:
		l.m.wait.Observe(l.cfg.Now().Sub(start).Seconds())
		return b.err
	case <-ctx.Done():
		l.Finish(Outcome{ID: intent.ID, Time: l.cfg.Now().UTC(), Serial: intent.Serial, Status: Abandoned, Detail: ctx.Err().Error()})
		return ctx.Err()
	}
}

// Finish records what became of an intent. It does not wait.
func (l *Ledger) Finish(o Outcome) {
	buf, err := encode(o)
	if err != nil {
		l.m.lost.Inc()
		return
	}
	// An outcome that finds no place is lost: the intent then reads as "may
	// have been issued", which is always safe.
	if _, err := l.put(frameOutcome, buf.Bytes(), outcomeRow(&o), false); err != nil {
		l.m.lost.Inc()
	}
	buffers.Put(buf)
}

func (l *Ledger) put(typ frameType, body []byte, r row, wait bool) (*batch, error) {
	if why := l.state.Load(); why != nil && wait {
		return nil, fmt.Errorf("%w: %s", ErrUnwritable, *why)
	}
	l.mu.Lock()
	b := l.current
	switch {
	case l.closed:
		l.mu.Unlock()
		return nil, ErrClosed
	case len(b.frames) > maxPending:
		l.mu.Unlock()
		return nil, fmt.Errorf("%w: too much is waiting for the disk", ErrUnwritable)
	}
	b.add(typ, body, r)
	if wait {
		b.waiters++
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default: // the writer has been woken already
	}
	return b, nil
}

// take swaps the current batch for an empty one.
func (l *Ledger) take() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.current
	l.current = newBatch()
	return b
}

// peek tells what waits.
func (l *Ledger) peek() (records, waiters int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.current.rows), l.current.waiters
}

// Ready tells whether intents can be made durable, and if not, why.
func (l *Ledger) Ready() error {
	if why := l.state.Load(); why != nil {
		return fmt.Errorf("%w: %s", ErrUnwritable, *why)
	}
	return nil
}

func (l *Ledger) unwritable(err error) {
	if err == nil {
		l.state.Store(nil)
		l.m.unwritable.Set(0)
		return
	}
	why := err.Error()
	l.state.Store(&why)
	l.m.unwritable.Set(1)
}

// Open recovers the ledger in cfg.Dir, or begins one, for this process alone.
// [ErrCut] is a finding, and is not repaired.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	if cfg.FS == nil || cfg.Log == nil || cfg.Now == nil || cfg.Registerer == nil {
		return nil, errors.New("opening ledger: file system, log, clock and registerer are required")
	}
	if cfg.Segment == 0 {
		cfg.Segment = DefaultSegment
	}
	if cfg.Segment < minSegment || cfg.Segment > maxSegment || cfg.MaxBytes < 4*cfg.Segment {
		return nil, fmt.Errorf("opening ledger: segments of %d bytes and a budget of %d do not fit: at least four segments are needed", cfg.Segment, cfg.MaxBytes)
	}
	if err := cfg.FS.MkdirAll(cfg.Dir); err != nil {
		return nil, fmt.Errorf("opening ledger: %w", err)
	}
	lock, err := cfg.FS.Lock(path.Join(cfg.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("opening ledger: %w", err)
	}
	l := &Ledger{cfg: cfg, lock: lock, current: newBatch(), wake: make(chan struct{}, 1), made: make(chan error, 1)}
	if err = l.m.register(cfg.Registerer); err == nil {
		err = l.recover(ctx)
	}
	if err == nil {
		err = l.refusals.open(cfg)
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("opening ledger: %w", err)
	}
	return l, nil
}
