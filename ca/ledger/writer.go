package ledger

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// Pace of the writer.
const (
	syncGap      = time.Millisecond       // between syncs under load
	manyWaiters  = 4                      // what counts as load
	outcomeDelay = 200 * time.Millisecond // how long outcomes wait for an intent's sync
	housekeeping = time.Second            // and what a failed write waits for
	retryNext    = 30 * time.Second       // after the next segment could not be made
)

// writer is the state of the one goroutine that writes.
type writer struct {
	id      string // of the ledger
	number  uint64 // of the current segment
	file    durable.File
	offset  int64     // where the next batch goes
	last    commit    // durable
	rows    []row     // of the current segment
	broken  error     // why the current segment takes no more
	gone    error     // the current segment is not where it was
	full    error     // the budget is used up
	warned  bool      // that it soon will be
	next    bool      // a zeroed segment lies ready
	making  bool      // one is being made
	again   time.Time // when to try that again, after it failed
	began   time.Time // of the last sync
	sealed  []sealedSegment
	stamped uint64 // records at the last checkpoint
	stampAt time.Time
}

// sealedSegment is a segment that is complete.
type sealedSegment struct {
	number uint64
	last   time.Time // not before the time of its last record
}

// Run writes until ctx ends, then flushes and closes. It returns an error only
// if that last flush failed.
func (l *Ledger) Run(ctx context.Context) error {
	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			l.keepHouse()
		case err := <-l.made:
			l.madeNext(err)
		case <-l.wake:
			l.pace(ctx)
			_ = l.flush() // who waits for it has been told
		}
	}
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	err := l.flush()
	if err == nil {
		err = l.flush() // outcomes of callers who left during the first
	}
	lost, _ := l.peek()
	l.m.lost.Add(float64(lost))
	l.refusals.flush(l, true)
	l.refusals.close()
	l.stamp(true)
	l.awaitNext()
	l.indexing.Wait()
	return errors.Join(err, l.w.file.Close(), l.lock.Close())
}

// pace waits so that one sync serves many where many wait, and so that outcomes
// alone do not cost a sync each.
func (l *Ledger) pace(ctx context.Context) {
	patience := time.Now().Add(outcomeDelay)
	for {
		_, waiters := l.peek()
		var until time.Time
		var more <-chan struct{}
		switch {
		case waiters == 0:
			until, more = patience, l.wake
		case waiters >= manyWaiters: // company comes without being looked at
			until = l.w.began.Add(syncGap)
		}
		wait := time.Until(until)
		if wait <= 0 {
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			return
		case <-more: // look again
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// flush makes the current batch durable and releases its waiters.
func (l *Ledger) flush() error {
	if records, _ := l.peek(); records == 0 {
		return nil
	}
	b := l.take()
	err := l.commit(b)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnwritable, err)
	}
	l.settle(b, err)
	return err
}

// settle releases the waiters of b, and records what follows from its end: the
// outcomes of those who have left, if their intents are durable; if not, the
// outcomes in b once more, whose intents have been durable for longer.
func (l *Ledger) settle(b *batch, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.over, b.err = true, err
	close(b.done)
	if err != nil {
		l.keepOutcomes(b)
	}
	// Those who wait look at err alone.
	l.spareFrames, l.spareRows = b.frames[:0], b.rows[:0]
	b.frames, b.rows = nil, nil
	if err != nil {
		return
	}
	for _, o := range b.gone {
		buf, err := encodeFrame(frameOutcome, o.append)
		if err != nil {
			l.m.lost.Inc()
			continue
		}
		l.current.add(*buf, outcomeRow(&o))
		buffers.Put(buf)
		l.rouse()
	}
}

// keepOutcomes puts the outcomes of a batch that failed into the next one. The
// caller holds l.mu.
func (l *Ledger) keepOutcomes(b *batch) {
	for n, rest := 0, b.frames; n < len(b.rows); n++ {
		f, err := readFrame(rest)
		if err != nil {
			return // we wrote it: cannot be
		}
		rest = rest[len(f.raw):]
		switch {
		case f.typ != frameOutcome:
		case len(l.current.frames) > maxPending:
			l.m.lost.Inc()
		default:
			l.current.add(f.raw, b.rows[n])
		}
	}
}

// commit writes b and a commit frame behind it, and syncs.
func (l *Ledger) commit(b *batch) error {
	w := &l.w
	if err := errors.Join(w.gone, w.broken); err != nil {
		return err
	}
	w.began = time.Now()
	need := int64(len(b.frames)) + frameHeader + commitSize
	if w.offset+need > l.cfg.Segment {
		if err := l.begin(w.number + 1); err != nil {
			return l.fail(fmt.Errorf("beginning the next segment: %w", err))
		}
	}
	next := commit{records: w.last.records + uint64(len(b.rows)), chain: chain(w.last.chain, b.frames)}
	out := next.append(b.frames)
	b.frames = out[:len(b.frames)]
	_, err := w.file.WriteAt(out, w.offset)
	if err == nil {
		err = w.file.Sync()
	}
	l.m.sync.Observe(time.Since(w.began).Seconds())
	if err == nil { // a file without a name keeps nothing
		err = l.look()
	}
	if err != nil {
		// What is on the disk is not known, and the same file is not asked
		// again: see mend.
		return l.fail(err)
	}
	for _, r := range b.rows {
		r.offset += uint64(w.offset)
		w.rows = append(w.rows, r)
	}
	w.offset += int64(len(out))
	w.last = next
	l.m.batch.Observe(float64(len(b.rows)))
	return nil
}

// fail notes that the current segment takes no more.
func (l *Ledger) fail(err error) error {
	l.m.failed.Inc()
	l.w.broken = err
	l.judge()
	l.cfg.Log.Error("writing the ledger failed; nothing is issued until it works again", "segment", l.w.number, "error", err)
	return err
}

// judge tells callers whether anything may be issued.
func (l *Ledger) judge() {
	why := errors.Join(l.w.gone, l.w.broken, l.w.full)
	if why == nil {
		l.state.Store(nil)
		l.m.unwritable.Set(0)
		return
	}
	text := why.Error()
	l.state.Store(&text)
	l.m.unwritable.Set(1)
}

// begin makes segment n the current one, from where the last durable commit left
// off. Until its header is durable nothing has changed; a half-made segment of
// that number is replaced.
func (l *Ledger) begin(n uint64) error {
	w := &l.w
	l.awaitNext()
	if !w.next {
		if err := makeNext(l.cfg); err != nil {
			return err
		}
	}
	body, err := json.Marshal(header{Ledger: w.id, Segment: n, Records: w.last.records, Previous: hex.EncodeToString(w.last.chain[:]), Time: l.cfg.Now().UTC()})
	if err != nil {
		return err
	}
	w.next = false
	name := path.Join(l.cfg.Dir, segmentName(n))
	if err := l.cfg.FS.Rename(path.Join(l.cfg.Dir, nextName), name); err != nil {
		return err
	}
	file, err := l.cfg.FS.OpenWrite(name)
	if err != nil {
		return err
	}
	frames := appendFrame(nil, frameSegment, body)
	first := commit{records: w.last.records, chain: chain(w.last.chain, frames)}
	out := first.append(frames)
	if _, err = file.WriteAt(out, 0); err == nil {
		if err = file.Sync(); err == nil {
			err = l.cfg.FS.SyncDir(l.cfg.Dir)
		}
	}
	if err != nil {
		file.Close()
		return err
	}
	if w.file != nil {
		w.file.Close()
		l.seal()
	}
	w.broken = nil
	w.file, w.number, w.offset, w.last, w.rows = file, n, int64(len(out)), first, nil
	return nil
}

// seal writes the index of the segment that has just ended, aside from the
// commit path. It is a cache: if that fails, the segment is read instead.
func (l *Ledger) seal() {
	number, rows := l.w.number, l.w.rows
	l.w.sealed = append(l.w.sealed, sealedSegment{number: number, last: l.cfg.Now()})
	l.indexing.Go(func() {
		if err := writeIndex(l.cfg.FS, l.cfg.Dir, number, rows); err != nil {
			l.cfg.Log.Warn("writing a ledger index failed; queries read the segment instead", "segment", number, "error", err)
		}
	})
}

const nextName = "next"

// prepareNext has the next segment made aside from the commit path.
func (l *Ledger) prepareNext() {
	if l.w.next || l.w.making || time.Now().Before(l.w.again) {
		return
	}
	l.w.making = true
	go func() { l.made <- makeNext(l.cfg) }()
}

func (l *Ledger) madeNext(err error) {
	l.w.making, l.w.next = false, err == nil
	if err != nil {
		l.w.again = time.Now().Add(retryNext)
		l.cfg.Log.Error("the ledger's next segment cannot be made; the current one goes on until it is full", "error", err)
	}
}

func (l *Ledger) awaitNext() {
	if l.w.making {
		l.madeNext(<-l.made)
	}
}

// makeNext makes a zeroed segment, so that later writes change no metadata.
func makeNext(cfg Config) error {
	name := path.Join(cfg.Dir, nextName)
	if err := removeIfThere(cfg.FS, name); err != nil {
		return fmt.Errorf("making next segment: %w", err)
	}
	file, err := cfg.FS.Create(name)
	if err != nil {
		return fmt.Errorf("making next segment: %w", err)
	}
	zero := make([]byte, min(cfg.Segment, 1<<20))
	for at := int64(0); at < cfg.Segment && err == nil; at += int64(len(zero)) {
		_, err = file.WriteAt(zero[:min(int64(len(zero)), cfg.Segment-at)], at)
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		// Where space is short, a part of a segment is in everybody's way.
		return fmt.Errorf("making next segment: %w", errors.Join(err, removeIfThere(cfg.FS, name)))
	}
	return nil
}

// newID returns a random id for a new ledger.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
