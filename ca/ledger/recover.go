package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// recover finds the last durable commit and goes on behind it.
func (l *Ledger) recover(ctx context.Context) error {
	numbers, err := segments(l.cfg.FS, l.cfg.Dir)
	if err != nil {
		return err
	}
	stamps, err := readCheckpoints(l.cfg.FS, l.cfg.Dir, l.cfg.Verifier)
	if err != nil {
		return err
	}
	s, data, err := l.lastSegment(&numbers)
	if err != nil {
		return err
	}
	if s == nil {
		if len(stamps) > 0 {
			return fmt.Errorf("%w: there is no segment, and a checkpoint of %d records", ErrCut, stamps[len(stamps)-1].records)
		}
		l.w.id, l.w.last = newID(), commit{}
		return l.begin(1)
	}
	if err := checkStamps(stamps, s); err != nil {
		return err
	}
	if s.stopped != errEnd {
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
	if err := clearTail(w.file, data, s.end); err != nil {
		return err
	}
	return l.loadSealed(ctx, numbers[:len(numbers)-1])
}

// lastSegment reads the last segment that has a header. One without was being
// begun when the power went: nothing in it was acknowledged.
func (l *Ledger) lastSegment(numbers *[]uint64) (*scan, []byte, error) {
	for len(*numbers) > 0 {
		n := (*numbers)[len(*numbers)-1]
		data, err := readSegment(l.cfg.FS, l.cfg.Dir, n)
		if err != nil {
			return nil, nil, err
		}
		s, err := scanSegment(data, nil)
		switch {
		case errors.Is(err, ErrNewer):
			return nil, nil, err
		case err == nil && s.end > 0:
			return s, data, nil
		}
		l.cfg.Log.Warn("a ledger segment was never begun; it is made again", "segment", n)
		*numbers = (*numbers)[:len(*numbers)-1]
	}
	return nil, nil, nil
}

// clearTail zeroes what stands behind the last commit, so that it is never read
// together with what will be written over it.
func clearTail(file durable.File, data []byte, end uint64) error {
	tail := data[end:]
	if !slices.ContainsFunc(tail, func(b byte) bool { return b != 0 }) {
		return nil
	}
	if _, err := file.WriteAt(make([]byte, len(tail)), int64(end)); err != nil {
		return fmt.Errorf("clearing the ledger's tail: %w", err)
	}
	return file.Sync()
}

// loadSealed learns the age of the complete segments, and makes missing indexes.
func (l *Ledger) loadSealed(ctx context.Context, numbers []uint64) error {
	for _, n := range numbers {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rows, err := readIndex(l.cfg.FS, l.cfg.Dir, n)
		if err != nil {
			if rows, err = l.remakeIndex(n); err != nil {
				// A damaged old segment stops nothing new; verify names it.
				l.cfg.Log.Error("a ledger segment cannot be read; run hallmark ledger verify", "segment", n, "error", err)
			}
		}
		var last time.Time
		for _, r := range rows {
			if t := time.Unix(int64(r.time), 0); t.After(last) {
				last = t
			}
		}
		l.w.sealed = append(l.w.sealed, sealedSegment{number: n, last: last})
	}
	return nil
}

func (l *Ledger) remakeIndex(n uint64) ([]row, error) {
	data, err := readSegment(l.cfg.FS, l.cfg.Dir, n)
	if err != nil {
		return nil, err
	}
	s, err := scanSegment(data, startOf(l.cfg.FS, l.cfg.Dir, n+1))
	if err != nil {
		return nil, err
	}
	rows, err := rowsOf(s)
	if err != nil {
		return nil, err
	}
	return rows, writeIndex(l.cfg.FS, l.cfg.Dir, n, rows)
}

// startOf returns the commit that segment n begins with: where the one before
// it ends, whatever else stands in its file. nil where n has no header.
func startOf(fsys durable.FS, dir string, n uint64) *commit {
	f, err := fsys.Open(path.Join(dir, segmentName(n)))
	if err != nil {
		return nil
	}
	defer f.Close()
	head := make([]byte, 1024) // a header has about 300 bytes
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil
	}
	s, err := scanSegment(head, nil)
	if err != nil || s.end == 0 {
		return nil
	}
	return &s.start
}

func removeIfThere(fsys durable.FS, name string) error {
	if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
