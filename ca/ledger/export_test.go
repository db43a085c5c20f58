package ledger

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"testing"
)

// EncodeIntent returns the body of an intent's frame.
func EncodeIntent(t *testing.T, i *Intent) []byte { return bodyOf(t, frameIntent, i.append) }

// EncodeOutcome returns the body of an outcome's frame.
func EncodeOutcome(t *testing.T, o *Outcome) []byte { return bodyOf(t, frameOutcome, o.append) }

func bodyOf(t *testing.T, typ frameType, body func([]byte) ([]byte, error)) []byte {
	t.Helper()
	buf, err := encodeFrame(typ, body)
	if err != nil {
		t.Fatal(err)
	}
	f, err := readFrame(*buf)
	if err != nil || f.typ != typ || len(f.raw) != len(*buf) {
		t.Fatalf("the frame reads as %d of %d bytes: %v", f.typ, len(f.raw), err)
	}
	return append([]byte{}, f.body...)
}

// Forgery is a change that knows the form of the files.
type Forgery struct {
	From, To string // in the first record that has From; of one length
	Rechain  bool   // the commits' hashes are made to fit
	Recount  bool   // the first commit counts one record more
}

// Apply returns the segment with the change, each frame with its checksum.
func (f Forgery) Apply(data []byte) ([]byte, error) {
	out := bytes.Clone(data)
	first, err := readFrame(out)
	if err != nil {
		return nil, err
	}
	var h header
	if err := json.Unmarshal(first.body, &h); err != nil {
		return nil, err
	}
	before, err := hex.DecodeString(h.Previous)
	if err != nil {
		return nil, err
	}
	last := [32]byte(before)
	done, batch := false, 0
	for offset := 0; ; {
		frame, err := readFrame(out[offset:])
		if errors.Is(err, errEnd) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		switch {
		case frame.isRecord() && f.From != "" && !done && bytes.Contains(frame.body, []byte(f.From)):
			copy(frame.body[bytes.Index(frame.body, []byte(f.From)):], f.To)
			sealFrame(frame.raw, frame.typ)
			done = true
		case frame.typ == frameCommit:
			c, _ := readCommit(frame.body)
			if f.Recount && !done {
				c.records++
				done = true
			}
			if f.Rechain {
				c.chain = chain(last, out[batch:offset])
			}
			copy(frame.raw, c.append(nil))
			last, batch = c.chain, offset+len(frame.raw)
		}
		offset += len(frame.raw)
	}
}
