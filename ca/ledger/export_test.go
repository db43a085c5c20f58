package ledger

import "testing"

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
