package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// header is the body of a segment's first frame.
type header struct {
	Ledger   string    `json:"ledger"` // random id
	Segment  uint64    `json:"segment"`
	Records  uint64    `json:"records"`  // before this segment
	Previous string    `json:"previous"` // chain hash before this segment, hex
	Time     time.Time `json:"time"`
}

func segmentName(n uint64) string { return fmt.Sprintf("%08d.seg", n) }
func indexName(n uint64) string   { return fmt.Sprintf("%08d.idx", n) }

// segments returns the numbers of the segments in dir, ascending.
func segments(fsys durable.FS, dir string) ([]uint64, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("listing ledger: %w", err)
	}
	var out []uint64
	for _, name := range names {
		base, ok := strings.CutSuffix(name, ".seg")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(base, 10, 64); err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// record is one record of a segment.
type record struct {
	frame
	offset uint64 // in the segment
	number uint64
}

// scan is what reading a segment forward gave.
type scan struct {
	header  header
	start   commit // before the segment
	last    commit // last one that verifies
	from    uint64 // offset of the batch that it ends
	end     uint64 // offset behind it
	records []record
	commits []commit
	stopped error // why reading ended: errEnd, errTorn, or a commit that does not verify
}

var (
	errCommit   = errors.New("commit frame does not verify")
	errNoHeader = errors.New("segment has no header that can be read")
)

// scanSegment reads the committed records of a segment. Where until is not nil,
// it stops at that commit: what comes behind it in the file was written, but
// never acknowledged, before a write failed and the ledger went on elsewhere.
func scanSegment(data []byte, until *commit) (*scan, error) {
	first, err := readFrame(data)
	if err != nil || first.typ != frameSegment {
		if errors.Is(err, ErrNewer) {
			return nil, err
		}
		return nil, errNoHeader
	}
	s := &scan{}
	if err := json.Unmarshal(first.body, &s.header); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoHeader, err)
	}
	previous, err := hex.DecodeString(s.header.Previous)
	if err != nil || len(previous) != sha256.Size {
		return nil, fmt.Errorf("%w: bad chain hash", errNoHeader)
	}
	s.start = commit{records: s.header.Records, chain: [32]byte(previous)}
	s.last = s.start
	return s, s.read(data, until)
}

func (s *scan) read(data []byte, until *commit) error {
	batch, offset := 0, 0
	number := s.start.records
	pending := []record(nil)
	for s.stopped == nil {
		f, err := readFrame(data[offset:])
		switch {
		case errors.Is(err, ErrNewer):
			return err
		case err != nil:
			s.stopped = err
			continue
		}
		if f.isRecord() {
			number++
			pending = append(pending, record{f, uint64(offset), number})
		}
		if f.typ == frameCommit {
			c, ok := readCommit(f.body)
			if !ok || c.records != number || c.chain != chain(s.last.chain, data[batch:offset]) {
				s.stopped = errCommit
				continue
			}
			offset += len(f.raw)
			s.last, s.from, s.end = c, uint64(batch), uint64(offset)
			batch = offset
			s.commits = append(s.commits, c)
			s.records = append(s.records, pending...)
			pending = pending[:0]
			if until != nil && c == *until {
				s.stopped = errEnd
			}
			continue
		}
		offset += len(f.raw)
	}
	return nil
}

// commitsBehind counts commits behind the last one that verifies. Two mean
// damage: each was synced before the next was written.
func commitsBehind(data []byte, s *scan) int {
	count := 0
	for rest := data[min(s.end, uint64(len(data))):]; ; rest = rest[1:] {
		at := bytes.IndexByte(rest, byte(frameCommit))
		if at < 0 {
			return count
		}
		rest = rest[at:]
		f, err := readFrame(rest[:min(len(rest), frameHeader+commitSize)])
		if err != nil {
			continue
		}
		if c, ok := readCommit(f.body); ok && c.records > s.last.records {
			count++
		}
	}
}

// readSteady reads a segment, again while a running writer adds to it: a page
// that was read before it was written, followed by pages that were read after,
// looks like damage. Where it is written faster than it is read, what stands
// behind the last commit is not looked at.
func readSteady(fsys durable.FS, dir string, n uint64, until *commit) ([]byte, *scan, error) {
	const tries = 8
	end := uint64(0)
	for range tries {
		data, err := readSegment(fsys, dir, n)
		if err != nil {
			return nil, nil, err
		}
		s, err := scanSegment(data, until)
		whole := err == nil && errors.Is(s.stopped, errEnd) && commitsBehind(data, s) < 2
		if err != nil || whole || s.end == end {
			return data, s, err
		}
		end = s.end
	}
	data, err := readSegment(fsys, dir, n)
	if err != nil {
		return nil, nil, err
	}
	data = data[:min(end, uint64(len(data)))]
	s, err := scanSegment(data, until)
	return data, s, err
}

// chain hashes a batch onto what came before it.
func chain(previous [32]byte, batch []byte) [32]byte {
	h := sha256.New()
	h.Write(previous[:])
	h.Write(batch)
	return [32]byte(h.Sum(nil))
}

// readSegment reads a whole segment file.
func readSegment(fsys durable.FS, dir string, n uint64) ([]byte, error) {
	data, err := durable.Read(fsys, path.Join(dir, segmentName(n)), maxSegment)
	if err != nil {
		return nil, fmt.Errorf("reading ledger segment %d: %w", n, err)
	}
	return data, nil
}
