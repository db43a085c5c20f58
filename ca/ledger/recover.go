package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// recover finds the last durable commit and goes on behind it.
func (l *Ledger) recover(ctx context.Context) error {
	end, err := l.findEnd()
	if err != nil {
		return err
	}
	s, data, numbers, stamps := end.last, end.data, end.numbers, end.stamps
	if s == nil {
		l.w.id, l.w.last = newID(), commit{}
		l.founded = true
		return l.begin(1)
	}
	if !errors.Is(s.stopped, errEnd) {
		l.cfg.Log.Warn("the ledger's last write did not complete; it was never acknowledged, and is dropped", "segment", s.header.Segment, "offset", s.end, "why", s.stopped)
	}
	w := &l.w
	w.id, w.number, w.last, w.offset = s.header.Ledger, s.header.Segment, s.last, int64(s.end)
	if w.rows, err = rowsOf(s); err != nil {
		return err
	}
	if len(stamps) > 0 {
		w.stamped = stamps[len(stamps)-1].records
	}
	if w.file, err = l.cfg.FS.OpenWrite(path.Join(l.cfg.Dir, segmentName(w.number))); err != nil {
		return err
	}
	if err := l.settleTail(w.file, data, s); err != nil {
		return fmt.Errorf("settling the ledger's tail: %w", err)
	}
	return l.loadSealed(ctx, numbers[:len(numbers)-1])
}

// ending is how the ledger ends.
type ending struct {
	last    *scan // of the last segment with a header; nil if there is none
	data    []byte
	numbers []uint64 // of the segments up to that
	stamps  []checkpoint
}

// findEnd reads how the ledger ends, and changes nothing. The error says why that
// is no end to go on from.
func (l *Ledger) findEnd() (ending, error) {
	var e ending
	var err error
	// Checkpoints first: beside a running writer, what they cover is then there.
	if e.stamps, err = readCheckpoints(l.cfg.FS, l.cfg.Dir, l.cfg.Verifier); err != nil {
		return e, err
	}
	if e.numbers, err = segments(l.cfg.FS, l.cfg.Dir); err != nil {
		return e, err
	}
	if e.last, e.data, err = l.lastSegment(&e.numbers); err != nil {
		return e, err
	}
	if e.last == nil {
		if len(e.stamps) > 0 {
			return e, fmt.Errorf("%w: there is no segment, and a checkpoint of %d records", ErrCut, e.stamps[len(e.stamps)-1].records)
		}
		return e, nil
	}
	if err := checkStamps(e.stamps, e.last); err != nil {
		return e, err
	}
	if behind := commitsBehind(e.data, e.last); behind > 1 {
		// No crash leaves that, and what stands there may have been given out.
		return e, fmt.Errorf("%w: segment %d is damaged at offset %d, and %d commits stand behind it: run hallmark ledger verify", ErrDamaged, e.last.header.Segment, e.last.end, behind)
	}
	return e, nil
}

// CheckEnd tells whether [Open] could go on from the end of the ledger in dir,
// and how many records it has. It changes nothing, and may run beside a writer.
func CheckEnd(fsys durable.FS, dir string, verifier note.Verifier) (records uint64, err error) {
	l := &Ledger{cfg: Config{FS: fsys, Dir: dir, Verifier: verifier, Log: slog.New(slog.DiscardHandler)}}
	end, err := l.findEnd()
	if err != nil || end.last == nil {
		return 0, err
	}
	return end.last.last.records, nil
}

// lastSegment reads the last segment that has a header. One without was being
// begun when the power went: nothing in it was acknowledged.
func (l *Ledger) lastSegment(numbers *[]uint64) (*scan, []byte, error) {
	for len(*numbers) > 0 {
		n := (*numbers)[len(*numbers)-1]
		data, s, err := readSteady(l.cfg.FS, l.cfg.Dir, n, nil)
		switch {
		case err != nil && !errors.Is(err, errNoHeader):
			return nil, nil, err
		case err == nil && s.end > 0:
			return s, data, nil
		case len(data) > beginning && !zero(data[beginning:]):
			return nil, nil, fmt.Errorf("segment %d has records, and its beginning cannot be read: run hallmark ledger verify", n)
		}
		l.cfg.Log.Warn("a ledger segment was never begun; it is made again", "segment", n)
		*numbers = (*numbers)[:len(*numbers)-1]
	}
	return nil, nil, nil
}

// beginning is more than a segment's header and first commit take, in bytes.
const beginning = 512

func zero(data []byte) bool {
	return !slices.ContainsFunc(data, func(b byte) bool { return b != 0 })
}

// settleTail makes what was read of the last batch durable, and zeroes what
// stands behind it. The process before this one may have died between a write
// and its sync, or after a sync that failed: then what we read stands in the
// cache alone, and no later sync would write it. So it is written once more.
// The same bytes in the same place: a cut meanwhile changes nothing.
func (l *Ledger) settleTail(file durable.File, data []byte, s *scan) error {
	if _, err := file.WriteAt(data[s.from:s.end], int64(s.from)); err != nil {
		return err
	}
	if tail := bytes.TrimRight(data[s.end:], "\x00"); len(tail) > 0 {
		if _, err := file.WriteAt(make([]byte, len(tail)), int64(s.end)); err != nil {
			return err
		}
	}
	if err := file.Sync(); err != nil {
		return err
	}
	return l.cfg.FS.SyncDir(l.cfg.Dir) // its name, too
}

// loadSealed learns the age of the complete segments, and makes missing indexes.
func (l *Ledger) loadSealed(ctx context.Context, numbers []uint64) error {
	names, err := l.cfg.FS.List(l.cfg.Dir)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !slices.Contains(names, indexName(n)) {
			if err := l.remakeIndex(n); err != nil {
				// A damaged old segment stops nothing new; verify names it.
				l.cfg.Log.Error("a ledger segment cannot be read; run hallmark ledger verify", "segment", n, "error", err)
			}
		}
		// The next one begins when this one ends. Where that cannot be told, it
		// is kept for as long as one that has just ended.
		last := l.cfg.Now()
		if next := headOf(l.cfg.FS, l.cfg.Dir, n+1); next != nil {
			last = next.header.Time
		}
		l.w.sealed = append(l.w.sealed, sealedSegment{number: n, last: last})
	}
	return nil
}

func (l *Ledger) remakeIndex(n uint64) error {
	data, err := readSegment(l.cfg.FS, l.cfg.Dir, n)
	if err != nil {
		return err
	}
	s, err := scanSegment(data, startOf(l.cfg.FS, l.cfg.Dir, n+1))
	if err != nil {
		return err
	}
	rows, err := rowsOf(s)
	if err != nil {
		return err
	}
	return writeIndex(l.cfg.FS, l.cfg.Dir, n, rows)
}

// headOf reads the beginning of segment n, nil where it has none.
func headOf(fsys durable.FS, dir string, n uint64) *scan {
	f, err := fsys.Open(path.Join(dir, segmentName(n)))
	if err != nil {
		return nil
	}
	defer f.Close()
	head := make([]byte, beginning)
	if read, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) || read == 0 {
		return nil
	}
	s, err := scanSegment(head, nil)
	if err != nil || s.end == 0 {
		return nil
	}
	return s
}

// startOf returns the commit that segment n begins with: where the one before
// it ends, whatever else stands in its file. nil where n has no header.
func startOf(fsys durable.FS, dir string, n uint64) *commit {
	if s := headOf(fsys, dir, n); s != nil {
		return &s.start
	}
	return nil
}

func removeIfThere(fsys durable.FS, name string) error {
	if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
