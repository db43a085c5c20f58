package ledger

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"path"
	"slices"
	"time"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// row is one record in the index: 8 bytes hash of the identity (of an intent)
// or of the serial (of an outcome), 4 of the pod's UID, 4 of time, 8 of offset.
// A hit is always checked against the record.
type row struct {
	key    uint64
	pod    uint32
	time   uint32
	offset uint64
}

const rowSize = 24

func hash64(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}

func hashPod(namespace, name string) uint32 { return uint32(hash64(namespace + "/" + name)) }

// intentKey is what an index needs of an intent.
type intentKey struct {
	Time      time.Time `json:"time"`
	Serial    string    `json:"serial"`
	Identity  string    `json:"identity"`
	Namespace string    `json:"namespace"`
	Pod       string    `json:"pod"`
}

// readIntentKey picks these fields out of an intent's JSON, and leaves it to
// the library where that is not plain.
func readIntentKey(body []byte) (intentKey, error) {
	var k intentKey
	at, ok := textField(body, "time")
	if ok {
		var err error
		k.Time, err = time.Parse(time.RFC3339, at)
		ok = err == nil
	}
	for name, value := range map[string]*string{"serial": &k.Serial, "identity": &k.Identity, "namespace": &k.Namespace, "pod": &k.Pod} {
		if ok {
			*value, ok = textField(body, name)
		}
	}
	if ok {
		return k, nil
	}
	k = intentKey{}
	err := json.Unmarshal(body, &k)
	return k, err
}

// textField returns the first member of that name of the JSON object body, "" if
// there is none, and whether it is plain text. Within a text, the quotes of what
// is looked for would be escaped.
func textField(body []byte, name string) (string, bool) {
	_, rest, found := bytes.Cut(body, []byte(`"`+name+`":"`))
	if !found {
		return "", !bytes.Contains(body, []byte(`"`+name+`"`))
	}
	end := bytes.IndexByte(rest, '"')
	if end < 0 || bytes.IndexByte(rest[:end], '\\') >= 0 {
		return "", false
	}
	return string(rest[:end]), true
}

func (i *intentKey) row() row {
	return row{key: hash64(i.Identity), pod: hashPod(i.Namespace, i.Pod), time: uint32(i.Time.Unix())}
}

func intentRow(i *Intent) row {
	return (&intentKey{Time: i.Time, Identity: i.Identity, Namespace: i.Namespace, Pod: i.Pod}).row()
}

func outcomeRow(o *Outcome) row { return row{key: hash64(o.Serial), time: uint32(o.Time.Unix())} }

// rowOf makes the row of a stored record.
func rowOf(r record) (row, error) {
	var out row
	switch r.typ {
	case frameIntent:
		i, err := readIntentKey(r.body)
		if err != nil {
			return row{}, fmt.Errorf("decoding record %d: %w", r.number, err)
		}
		out = i.row()
	case frameOutcome:
		var o Outcome
		if err := json.Unmarshal(r.body, &o); err != nil {
			return row{}, fmt.Errorf("decoding record %d: %w", r.number, err)
		}
		out = outcomeRow(&o)
	}
	out.offset = r.offset
	return out, nil
}

func rowsOf(s *scan) ([]row, error) {
	rows := make([]row, len(s.records))
	for i, r := range s.records {
		var err error
		if rows[i], err = rowOf(r); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// writeIndex writes the sorted rows of a sealed segment.
func writeIndex(fsys durable.FS, dir string, n uint64, rows []row) error {
	sorted := slices.Clone(rows)
	slices.SortFunc(sorted, compareRows)
	out := make([]byte, 0, len(sorted)*rowSize)
	for _, r := range sorted {
		out = binary.BigEndian.AppendUint64(out, r.key)
		out = binary.BigEndian.AppendUint32(out, r.pod)
		out = binary.BigEndian.AppendUint32(out, r.time)
		out = binary.BigEndian.AppendUint64(out, r.offset)
	}
	return durable.Replace(fsys, path.Join(dir, indexName(n)), out)
}

func compareRows(a, b row) int {
	switch {
	case a.key != b.key && a.key < b.key:
		return -1
	case a.key != b.key:
		return 1
	case a.offset < b.offset:
		return -1
	case a.offset > b.offset:
		return 1
	}
	return 0
}

// readIndex returns the rows of a sealed segment; an error means that they must
// be made again from the segment.
func readIndex(fsys durable.FS, dir string, n uint64) ([]row, error) {
	data, err := durable.Read(fsys, path.Join(dir, indexName(n)), maxSegment)
	if err != nil {
		return nil, err
	}
	if len(data)%rowSize != 0 {
		return nil, fmt.Errorf("index %d is no whole number of rows", n)
	}
	rows := make([]row, len(data)/rowSize)
	for i := range rows {
		b := data[i*rowSize:]
		rows[i] = row{binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint64(b[16:])}
	}
	return rows, nil
}
