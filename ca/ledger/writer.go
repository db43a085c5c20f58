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
	retryWrite   = time.Second            // after a failed write
	housekeeping = time.Second
)

// writer is the state of the one goroutine that writes.
type writer struct {
	id      string // of the ledger
	number  uint64 // of the current segment
	file    durable.File
	offset  int64  // where the next batch goes
	last    commit // durable
	rows    []row  // of the current segment
	next    bool   // a zeroed segment lies ready
	making  bool   // one is being made
	began   time.Time
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
// if the last flush failed.
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
			l.flush()
		}
	}
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.flush()
	l.refusals.flush(l, true)
	l.stamp(true)
	l.awaitNext()
	l.indexing.Wait()
	return errors.Join(l.Ready(), l.w.file.Close(), l.lock.Close())
}

// pace waits so that one sync serves many where many wait, and so that outcomes
// alone do not cost a sync each.
func (l *Ledger) pace(ctx context.Context) {
	_, waiters := l.peek()
	wait := time.Duration(0)
	switch {
	case waiters == 0:
		wait = outcomeDelay
	case waiters >= manyWaiters:
		wait = syncGap - time.Since(l.w.began)
	}
	for wait > 0 {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			return
		case <-l.wake: // something came: an intent ends the wait for outcomes
			timer.Stop()
			if _, n := l.peek(); n > 0 && waiters == 0 {
				return
			}
			wait = syncGap - time.Since(l.w.began)
		}
	}
}

// flush makes the current batch durable and releases its waiters.
func (l *Ledger) flush() {
	if records, _ := l.peek(); records == 0 {
		return
	}
	b := l.take()
	b.err = l.commit(b)
	if b.err != nil {
		l.m.failed.Inc()
		b.err = fmt.Errorf("%w: %w", ErrUnwritable, b.err)
		l.cfg.Log.Error("writing the ledger failed; nothing is issued until it works again", "error", b.err)
	}
	close(b.done)
}

// commit writes b and a commit frame behind it, and syncs.
func (l *Ledger) commit(b *batch) error {
	w := &l.w
	w.began = time.Now()
	if l.state.Load() != nil {
		return errors.New("an earlier write failed")
	}
	need := int64(len(b.frames)) + frameHeader + commitSize
	if w.offset+need > l.cfg.Segment {
		if err := l.begin(w.number + 1); err != nil {
			l.unwritable(fmt.Errorf("beginning the next segment: %w", err))
			return err
		}
	}
	next := commit{records: w.last.records + uint64(len(b.rows)), chain: chain(w.last.chain, b.frames)}
	out := next.append(b.frames)
	_, err := w.file.WriteAt(out, w.offset)
	if err == nil {
		err = w.file.Sync()
	}
	l.m.sync.Observe(time.Since(w.began).Seconds())
	if err != nil {
		// What is on the disk is not known, and the same file is not asked
		// again: see keepHouse.
		l.unwritable(err)
		return err
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
	if l.w.next || l.w.making {
		return
	}
	l.w.making = true
	go func() { l.made <- makeNext(l.cfg) }()
}

func (l *Ledger) madeNext(err error) {
	l.w.making, l.w.next = false, err == nil
	if err != nil {
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
		return fmt.Errorf("making next segment: %w", err)
	}
	return nil
}

// newID returns a random id for a new ledger.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
