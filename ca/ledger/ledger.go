package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
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
	// ErrDamaged: bytes of the ledger were changed. It is not repaired.
	ErrDamaged = errors.New("the ledger is damaged")
	// ErrRefusals: records of refusals cannot be read. No issuance is touched.
	ErrRefusals = errors.New("records of refusals are damaged")
	// ErrCut: the ledger holds less than one of its own signed checkpoints
	// says. It is not repaired: records are missing.
	ErrCut = errors.New("the ledger was cut: records that a signed checkpoint covers are missing")
)

// batch is what one sync will make durable.
type batch struct {
	frames  []byte
	rows    []row // offsets relative to the batch
	waiters int
	// gone are outcomes of callers who left. Their intents stand in this batch,
	// so they are recorded once it is durable, and not at all if it is not.
	gone []Outcome
	over bool          // durable, or failed: nothing is added to gone any more
	done chan struct{} // closed when over
	err  error         // set before done is closed
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

func (b *batch) add(frame []byte, r row) {
	r.offset = uint64(len(b.frames))
	b.frames = append(b.frames, frame...)
	b.rows = append(b.rows, r)
}

// Ledger is the issuance ledger of one replica.
type Ledger struct {
	cfg  Config
	lock io.Closer
	m    metrics

	mu      sync.Mutex // guards what follows up to wake, and gone and over of batches; held only to copy
	current *batch
	closed  bool
	// the buffers of the last batch, for the next one
	spareFrames []byte
	spareRows   []row
	wake        chan struct{} // one token: something waits in current

	state    atomic.Pointer[string] // why nothing may be issued; nil if it may
	refusals refusals
	w        writer         // of the goroutine of Run alone
	made     chan error     // the zeroed next segment is there, or is not
	indexing sync.WaitGroup // index files being written
	opened   uint64         // records when it was opened
	founded  bool           // there was none when it was opened
	used     atomic.Uint64  // of the budget, from 0 to 1, as bits of a float64
}

// Usage returns how much of the budget is used, from 0 to 1.
func (l *Ledger) Usage() float64 { return math.Float64frombits(l.used.Load()) }

// Opened returns how many records there were when the ledger was opened: those
// up to this number are of earlier processes.
func (l *Ledger) Opened() uint64 { return l.opened }

// Founded tells whether there was no ledger, and this process has begun one.
func (l *Ledger) Founded() bool { return l.founded }

// Append makes intent durable, and returns nil only then. If ctx ends first, it
// leaves: the intent may stay, and then an outcome "abandoned" follows it.
func (l *Ledger) Append(ctx context.Context, intent *Intent) error {
	start := l.cfg.Now()
	buf, err := encodeFrame(frameIntent, intent.append)
	if err != nil {
		return err
	}
	b, err := l.put(*buf, intentRow(intent), true)
	buffers.Put(buf)
	if err != nil {
		return err
	}
	select {
	case <-b.done:
		l.m.wait.Observe(l.cfg.Now().Sub(start).Seconds())
		return b.err
	case <-ctx.Done():
		l.leave(b, Outcome{ID: intent.ID, Time: l.cfg.Now().UTC(), Serial: intent.Serial, Status: Abandoned, Detail: ctx.Err().Error()})
		return ctx.Err()
	}
}

// leave records that the caller of an intent in b has gone.
func (l *Ledger) leave(b *batch, o Outcome) {
	l.mu.Lock()
	over := b.over
	if !over {
		b.gone = append(b.gone, o)
	}
	l.mu.Unlock()
	if over && b.err == nil {
		l.Finish(o)
	}
}

// Finish records what became of an intent that Append made durable. It does not
// wait.
func (l *Ledger) Finish(o Outcome) {
	buf, err := encodeFrame(frameOutcome, o.append)
	if err != nil {
		l.m.lost.Inc()
		return
	}
	// An outcome that finds no place is lost: the intent then reads as "may
	// have been issued", which is always safe.
	if _, err := l.put(*buf, outcomeRow(&o), false); err != nil {
		l.m.lost.Inc()
	}
	buffers.Put(buf)
}

func (l *Ledger) put(frame []byte, r row, wait bool) (*batch, error) {
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
	b.add(frame, r)
	if wait {
		b.waiters++
	}
	l.mu.Unlock()
	l.rouse()
	return b, nil
}

// rouse wakes the writer, if it is not awake already.
func (l *Ledger) rouse() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// take swaps the current batch for an empty one.
func (l *Ledger) take() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.current
	l.current = newBatch()
	l.current.frames, l.current.rows = l.spareFrames, l.spareRows
	l.spareFrames, l.spareRows = nil, nil
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

// Open recovers the ledger in cfg.Dir, or begins one, for this process alone.
// [ErrCut] is a finding, and is not repaired.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	if cfg.FS == nil || cfg.Log == nil || cfg.Now == nil || cfg.Registerer == nil {
		return nil, errors.New("opening ledger: file system, log, clock and registerer are required")
	}
	if cfg.Segment == 0 {
		cfg.Segment = DefaultSegment
	}
	if (cfg.Signer == nil) != (cfg.Verifier == nil) {
		return nil, errors.New("opening ledger: checkpoints are both signed and verified, or neither")
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
		l.opened = l.w.last.records
	}
	if err == nil {
		err = l.refusals.open(cfg)
	}
	if err != nil {
		if l.w.file != nil {
			l.w.file.Close()
		}
		lock.Close()
		return nil, fmt.Errorf("opening ledger: %w", err)
	}
	l.evict() // a budget that is used up is known before the first intent
	return l, nil
}
