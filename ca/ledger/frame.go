package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A frame is: type, version, length of the body (4 bytes, big endian), CRC-32C
// over all the others (4 bytes), body. Type and version come first, so that an
// older reader can refuse what it does not know instead of guessing.
const (
	frameHeader  = 10
	frameVersion = 1
	maxBody      = 1 << 20
)

type frameType byte

const (
	frameEnd     frameType = 0 // nothing was written from here on
	frameSegment frameType = 1 // a segment's first frame
	frameIntent  frameType = 2
	frameOutcome frameType = 3
	frameCommit  frameType = 4
	frameRefusal frameType = 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frame is one frame; the slices point into what was read.
type frame struct {
	typ  frameType
	raw  []byte
	body []byte
}

// isRecord tells whether the frame counts as a record.
func (f frame) isRecord() bool { return f.typ == frameIntent || f.typ == frameOutcome }

// Errors of the frame reader.
var (
	errEnd  = errors.New("end of what was written")
	errTorn = errors.New("frame is torn")
	// ErrNewer says that a newer release wrote this.
	ErrNewer = errors.New("the ledger was written by a newer release: use that one")
)

// known tells whether this release reads frames of the type.
func (t frameType) known() bool { return t >= frameSegment && t <= frameRefusal }

func appendFrame(dst []byte, typ frameType, body []byte) []byte {
	start := len(dst)
	dst = append(append(dst, make([]byte, frameHeader)...), body...)
	sealFrame(dst[start:], typ)
	return dst
}

// sealFrame fills in the header of a frame whose body stands behind it.
func sealFrame(f []byte, typ frameType) {
	f[0], f[1] = byte(typ), frameVersion
	binary.BigEndian.PutUint32(f[2:], uint32(len(f)-frameHeader))
	sum := crc32.Update(crc32.Checksum(f[:6], castagnoli), castagnoli, f[frameHeader:])
	binary.BigEndian.PutUint32(f[6:], sum)
}

// readFrame reads the frame at the start of data. errEnd: a zero stands there,
// or data is at its end; errTorn: what stands there is no whole frame.
func readFrame(data []byte) (frame, error) {
	if len(data) == 0 || data[0] == 0 {
		return frame{}, errEnd
	}
	if len(data) < frameHeader {
		return frame{}, errTorn
	}
	size := binary.BigEndian.Uint32(data[2:])
	if size > maxBody || int(size) > len(data)-frameHeader {
		return frame{}, errTorn
	}
	raw := data[:frameHeader+int(size)]
	sum := crc32.Update(crc32.Checksum(raw[:6], castagnoli), castagnoli, raw[frameHeader:])
	if sum != binary.BigEndian.Uint32(raw[6:]) {
		return frame{}, errTorn
	}
	// Only a whole frame may say that it is newer: a torn one may say anything.
	if raw[1] != frameVersion || !frameType(raw[0]).known() {
		return frame{}, fmt.Errorf("frame of type %d, version %d: %w", raw[0], raw[1], ErrNewer)
	}
	return frame{frameType(raw[0]), raw, raw[frameHeader:]}, nil
}

// commit is the body of a commit frame.
type commit struct {
	records uint64 // how many records the ledger has with this batch
	chain   [32]byte
}

const commitSize = 8 + 32

func (c commit) append(dst []byte) []byte {
	var body [commitSize]byte
	binary.BigEndian.PutUint64(body[:], c.records)
	copy(body[8:], c.chain[:])
	return appendFrame(dst, frameCommit, body[:])
}

func readCommit(body []byte) (commit, bool) {
	if len(body) != commitSize {
		return commit{}, false
	}
	c := commit{records: binary.BigEndian.Uint64(body)}
	copy(c.chain[:], body[8:])
	return c, true
}
