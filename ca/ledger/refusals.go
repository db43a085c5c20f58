package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// Bounds of the record of refusals: a caller with proof who asks in a loop
// fills one fold, not the disk.
const (
	maxFolds        = 4096
	refusalFileSize = 16 << 20
	refusalFiles    = 16
	foldFor         = time.Minute
	maxText         = 1024 // of object and detail, in bytes
)

// fold is what makes two refusals one record.
type fold struct {
	identity, podUID, reason, door string
	minute                         int64
}

// folded is an open fold: Count is what was not written yet.
type folded struct {
	Refusal
	written bool
}

// refusals folds and writes refusals. They are not synced for themselves: a cut
// may lose the last seconds of them, never an issuance.
type refusals struct {
	mu    sync.Mutex // guards folds
	folds map[fold]*folded

	number uint64 // of the current file; with file and offset, the writer's alone
	file   durable.File
	offset int64
}

func refusalName(n uint64) string { return fmt.Sprintf("refusals-%04d", n) }

// refusalFilesIn returns the numbers of the files of refusals, ascending.
func refusalFilesIn(fsys durable.FS, dir string) ([]uint64, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("listing ledger: %w", err)
	}
	var out []uint64
	for _, name := range names {
		if text, ok := strings.CutPrefix(name, "refusals-"); ok {
			if n, err := strconv.ParseUint(text, 10, 64); err == nil {
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// open begins a file of its own: what an earlier process left may be torn.
func (r *refusals) open(cfg Config) error {
	r.folds = map[fold]*folded{}
	numbers, err := refusalFilesIn(cfg.FS, cfg.Dir)
	if err != nil {
		return err
	}
	if len(numbers) > 0 {
		r.number = numbers[len(numbers)-1]
	}
	return nil
}

func (r *refusals) close() {
	if r.file != nil {
		r.file.Close()
	}
}

// Refuse records that an authenticated caller was refused. It never waits;
// refusals alike within a minute are one record with a count.
func (l *Ledger) Refuse(ref Refusal) {
	key := fold{ref.Identity, ref.PodUID, ref.Reason, ref.Door, ref.Time.Unix() / int64(foldFor/time.Second)}
	l.refusals.mu.Lock()
	defer l.refusals.mu.Unlock()
	if known := l.refusals.folds[key]; known != nil {
		known.Count++
		known.Last = ref.Time
		return
	}
	if len(l.refusals.folds) >= maxFolds {
		l.m.dropped.Inc()
		return
	}
	ref.Count, ref.Last = 1, ref.Time
	ref.Object, ref.Detail = clip(ref.Object), clip(ref.Detail)
	l.refusals.folds[key] = &folded{Refusal: ref}
}

// clip cuts a text at a whole character.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "")
}

// flush writes each new fold once, soon, and what was added to it once more at
// its end: the counts of all records add up.
func (r *refusals) flush(l *Ledger, all bool) {
	frames, count := r.due(l.cfg.Now(), all)
	if count == 0 {
		return
	}
	if err := r.write(l.cfg, frames); err != nil {
		l.m.dropped.Add(float64(count))
		l.cfg.Log.Error("recording refusals failed", "error", err)
	}
}

// due takes the frames that are to be written, and how many refusals they hold.
func (r *refusals) due(now time.Time, all bool) (frames []byte, count int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, ref := range r.folds {
		over := all || now.Sub(time.Unix(key.minute*60, 0)) >= foldFor
		if ref.Count > 0 && (over || !ref.written) {
			if buf, err := encodeFrame(frameRefusal, ref.append); err == nil {
				frames = append(frames, *buf...)
				buffers.Put(buf)
			}
			count += ref.Count
			ref.Count, ref.written = 0, true
		}
		if over {
			delete(r.folds, key)
		}
	}
	return frames, count
}

// write appends frames to the current file, or to a new one where there is none
// or no room. After a failure the next write begins a new file.
func (r *refusals) write(cfg Config, frames []byte) error {
	if r.file != nil && r.offset+int64(len(frames)) > refusalFileSize {
		r.file.Close()
		r.file = nil
	}
	if r.file == nil {
		file, err := cfg.FS.Create(path.Join(cfg.Dir, refusalName(r.number+1)))
		if err != nil {
			return err
		}
		r.file, r.offset = file, 0
		r.number++
	}
	if _, err := r.file.WriteAt(frames, r.offset); err != nil {
		r.file.Close()
		r.file = nil
		if r.offset == 0 { // an empty file must not push a full one out
			err = errors.Join(err, removeIfThere(cfg.FS, path.Join(cfg.Dir, refusalName(r.number))))
			r.number--
		}
		return err
	}
	first := r.offset == 0
	r.offset += int64(len(frames))
	if first {
		return dropOldRefusals(cfg)
	}
	return nil
}

// refusalsIn gives every record of a refusal that can be read to take, until that
// returns false, and returns what cannot: the file's name and why. The end of a
// file may be torn, for they are not synced; what stands before others that can
// be read is damaged. An error without a name ends it.
func refusalsIn(ctx context.Context, fsys durable.FS, dir string, take func(*Refusal) bool) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		numbers, err := refusalFilesIn(fsys, dir)
		if err != nil {
			yield("", err)
			return
		}
		for _, n := range numbers {
			if ctx.Err() != nil {
				yield("", ctx.Err())
				return
			}
			data, err := durable.Read(fsys, path.Join(dir, refusalName(n)), 2*refusalFileSize)
			if errors.Is(err, fs.ErrNotExist) {
				continue // a running writer has removed it
			}
			if err != nil {
				yield("", fmt.Errorf("reading %s: %w", refusalName(n), err))
				return
			}
			if !readRefusals(data, take, func(bad error) bool { return yield(refusalName(n), bad) }) {
				return
			}
		}
	}
}

func readRefusals(data []byte, take func(*Refusal) bool, damaged func(error) bool) bool {
	for at := 0; at < len(data); {
		ref, size := refusalAt(data[at:])
		if ref == nil {
			next := nextRefusal(data, at+1)
			if next < 0 {
				return true // torn
			}
			if !damaged(fmt.Errorf("damaged at offset %d; it can be read again from %d on", at, next)) {
				return false
			}
			at = next
			continue
		}
		at += size
		if !take(ref) {
			return false
		}
	}
	return true
}

// refusalAt reads the record at the start of data; nil if there is none.
func refusalAt(data []byte) (*Refusal, int) {
	f, err := readFrame(data)
	if err != nil || f.typ != frameRefusal {
		return nil, 0
	}
	var ref Refusal
	if json.Unmarshal(f.body, &ref) != nil {
		return nil, 0
	}
	return &ref, len(f.raw)
}

// nextRefusal looks for the next record that can be read, -1 if there is none.
func nextRefusal(data []byte, from int) int {
	for at := from; ; at++ {
		found := bytes.Index(data[at:], []byte{byte(frameRefusal), frameVersion})
		if found < 0 {
			return -1
		}
		at += found
		if len(data)-at > frameHeader && data[at+frameHeader] == '{' {
			if ref, _ := refusalAt(data[at:]); ref != nil {
				return at
			}
		}
	}
}

func dropOldRefusals(cfg Config) error {
	numbers, err := refusalFilesIn(cfg.FS, cfg.Dir)
	if err != nil {
		return err
	}
	for _, n := range numbers[:max(0, len(numbers)-refusalFiles)] {
		if err := removeIfThere(cfg.FS, path.Join(cfg.Dir, refusalName(n))); err != nil {
			return err
		}
	}
	return nil
}
