package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// Filter says which entries [Query] gives. Empty fields match everything.
type Filter struct {
	Identity string // the whole SPIFFE ID
	Pod      string // namespace/name, or UID
	Image    string // part of an image's name or digest
	Serial   string // lower-case hex
	ID       string // of a request
	Since    time.Time
	Until    time.Time
}

// MaybeIssued is the status of an intent without an outcome.
const MaybeIssued = "may-have-been-issued"

// Entry is one issuance or one refusal.
type Entry struct {
	Number  uint64   `json:"number,omitempty"` // of an issuance's intent
	Status  string   `json:"status"`           // issued, abandoned, failed, may-have-been-issued, refused
	Intent  *Intent  `json:"issuance,omitempty"`
	Outcome *Outcome `json:"outcome,omitempty"`
	Refusal *Refusal `json:"refusal,omitempty"`
}

// Time returns when it happened.
func (e Entry) Time() time.Time {
	if e.Intent != nil {
		return e.Intent.Time
	}
	return e.Refusal.Time
}

// Query gives the matching entries: issuances in the order of the ledger, then
// refusals in the order of theirs. It reads the files, also beside a process
// that writes them, up to the last commit that verifies. Damage ends it with an
// error; [Verify] says more.
func Query(ctx context.Context, fsys durable.FS, dir string, filter Filter) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if !queryIssuances(ctx, fsys, dir, filter, yield) {
			return
		}
		queryRefusals(ctx, fsys, dir, filter, yield)
	}
}

func queryIssuances(ctx context.Context, fsys durable.FS, dir string, filter Filter, yield func(Entry, error) bool) bool {
	// Before the segments: a running writer adds to both.
	promised, err := promisedRecords(fsys, dir)
	if err != nil {
		yield(Entry{}, err)
		return false
	}
	numbers, err := segments(fsys, dir)
	if err != nil {
		yield(Entry{}, err)
		return false
	}
	var reached uint64
	var held []heldEntry
	for i, n := range numbers {
		if len(held) == 0 && i < len(numbers)-1 && headOf(fsys, dir, n+1) != nil && canSkip(fsys, dir, n, filter) {
			continue
		}
		s, err := querySegment(ctx, fsys, dir, numbers, i)
		if s != nil {
			reached = s.last.records
			var bad error
			held, bad = match(s, filter, held)
			err = errors.Join(err, bad)
		}
		if err != nil {
			if _, more := emit(held, nil, yield); more {
				yield(Entry{}, err)
			}
			return false
		}
		var more bool
		if held, more = emit(held, s, yield); !more {
			return false
		}
	}
	_, more := emit(held, nil, yield)
	if more && reached < promised {
		yield(Entry{}, fmt.Errorf("%w: a checkpoint names %d records, the files hold %d: run hallmark ledger verify", ErrCut, promised, reached))
		return false
	}
	return more
}

// promisedRecords returns how many records the newest checkpoint names. Its
// signature is [Verify]'s to check: whoever can write here a higher number makes
// a query complain, and hides nothing.
func promisedRecords(fsys durable.FS, dir string) (uint64, error) {
	all, err := loadCheckpoints(fsys, dir)
	if err != nil || len(all) == 0 {
		return 0, err
	}
	text, _, _ := strings.Cut(all[len(all)-1], "\n\n")
	c, err := parseCheckpoint(text)
	if err != nil {
		return 0, fmt.Errorf("reading ledger checkpoints: %w", err)
	}
	return c.records, nil
}

// heldEntry is an issuance that may wait for its outcome.
type heldEntry struct {
	Entry
	passed int // segments with records since the one that the intent is in
}

// outcomeWithin is how many segments behind its intent an outcome is looked
// for. It follows within seconds, but a segment that failed early is short.
const outcomeWithin = 4

// emit yields the entries that are complete, in their order, and returns the
// others. Behind the last segment (s is nil) all are complete.
func emit(held []heldEntry, s *scan, yield func(Entry, error) bool) ([]heldEntry, bool) {
	for i := range held {
		e := &held[i]
		if s != nil && e.Outcome == nil && e.passed < outcomeWithin {
			return held[i:], true
		}
		if e.Outcome == nil {
			e.Status = MaybeIssued
		}
		if !yield(e.Entry, nil) {
			return nil, false
		}
	}
	return nil, true
}

// querySegment reads segment numbers[i] as far as it was committed; with an error,
// as far as it can be trusted. nil: there is none, because a running writer has
// removed or is just beginning it.
func querySegment(ctx context.Context, fsys durable.FS, dir string, numbers []uint64, i int) (*scan, error) {
	n := numbers[i]
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if i > 0 && n != numbers[i-1]+1 {
		return nil, fmt.Errorf("ledger segment %d is missing", numbers[i-1]+1)
	}
	// Where it must end is read first: a running writer may add to it, and begin
	// the next one, while it is read.
	until := startOf(fsys, dir, n+1)
	data, s, err := readSteady(fsys, dir, n, until)
	switch {
	case errors.Is(err, fs.ErrNotExist) && (i == 0 || i == len(numbers)-1):
		return nil, nil
	case errors.Is(err, errNoHeader) && i == len(numbers)-1 && (len(data) <= beginning || zero(data[beginning:])):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading ledger segment %d: %w: run hallmark ledger verify", n, err)
	case until != nil && s.last != *until:
		return s, fmt.Errorf("ledger segment %d is damaged: its records end at %d, the next begins at %d: run hallmark ledger verify", n, s.last.records, until.records)
	case until == nil && commitsBehind(data, s) > 1:
		return s, fmt.Errorf("ledger segment %d is damaged at offset %d, and records stand behind that: run hallmark ledger verify", n, s.end)
	}
	return s, nil
}

// match appends the entries of s to those that are held, and gives all of them
// the outcomes that stand in s.
func match(s *scan, filter Filter, held []heldEntry) ([]heldEntry, error) {
	open := map[string]int{}
	for i := range held {
		if held[i].Outcome == nil {
			open[held[i].Intent.Serial] = i
			if len(s.records) > 0 {
				held[i].passed++
			}
		}
	}
	for _, r := range s.records {
		switch r.typ {
		case frameIntent:
			if !filter.mayMatch(r.body) {
				continue
			}
			var intent Intent
			if err := json.Unmarshal(r.body, &intent); err != nil {
				return held, fmt.Errorf("decoding ledger record %d: %w", r.number, err)
			}
			if filter.matchIntent(&intent) {
				open[intent.Serial] = len(held)
				held = append(held, heldEntry{Entry: Entry{Number: r.number, Intent: &intent}})
			}
		case frameOutcome:
			if len(open) == 0 {
				continue
			}
			if serial, plain := textField(r.body, "serial"); plain {
				if _, ok := open[serial]; !ok {
					continue
				}
			}
			var outcome Outcome
			if err := json.Unmarshal(r.body, &outcome); err != nil {
				return held, fmt.Errorf("decoding ledger record %d: %w", r.number, err)
			}
			if i, ok := open[outcome.Serial]; ok {
				held[i].Outcome, held[i].Status = &outcome, outcome.Status
				delete(open, outcome.Serial)
			}
		}
	}
	return held, nil
}

// canSkip uses the index of a sealed segment: nothing of the filter is in it.
func canSkip(fsys durable.FS, dir string, n uint64, filter Filter) bool {
	namespace, name, byName := strings.Cut(filter.Pod, "/")
	if filter.Identity == "" && !byName && filter.Since.IsZero() && filter.Until.IsZero() {
		return false
	}
	rows, err := readIndex(fsys, dir, n)
	if err != nil {
		return false
	}
	if filter.Identity != "" { // sorted by it
		key := hash64(filter.Identity)
		i, _ := slices.BinarySearchFunc(rows, row{key: key}, compareRows)
		if i == len(rows) || rows[i].key != key {
			return true
		}
	}
	pod := hashPod(namespace, name)
	return !slices.ContainsFunc(rows, func(r row) bool {
		if byName && r.pod != pod {
			return false
		}
		at := time.Unix(int64(r.time), 0)
		// The index has whole seconds.
		return (filter.Since.IsZero() || !at.Before(filter.Since.Add(-time.Second))) && (filter.Until.IsZero() || !at.After(filter.Until))
	})
}

// mayMatch looks for the filter's words in the record as they are written in
// it, so that few records need decoding.
func (f Filter) mayMatch(body []byte) bool {
	for _, want := range []string{f.Identity, f.Serial, f.ID, f.Image} {
		if want == "" {
			continue
		}
		text := appendString(make([]byte, 0, 128), want)
		if !bytes.Contains(body, text[1:len(text)-1]) {
			return false
		}
	}
	return true
}

func (f Filter) matchIntent(i *Intent) bool {
	if f.Image != "" && !slices.ContainsFunc(i.Images, func(m Image) bool {
		return strings.Contains(m.Image, f.Image) || strings.Contains(m.Digest, f.Image)
	}) {
		return false
	}
	return f.matchCommon(i.Identity, i.Namespace, i.Pod, i.PodUID, i.ID, i.Time) && (f.Serial == "" || f.Serial == i.Serial)
}

func (f Filter) matchRefusal(r *Refusal) bool {
	if f.Serial != "" || (f.Image != "" && !strings.Contains(r.Object, f.Image)) {
		return false
	}
	return f.matchCommon(r.Identity, r.Namespace, r.Pod, r.PodUID, r.ID, r.Last)
}

func (f Filter) matchCommon(identity, namespace, pod, uid, id string, at time.Time) bool {
	return (f.Identity == "" || f.Identity == identity) &&
		(f.Pod == "" || f.Pod == uid || f.Pod == namespace+"/"+pod) &&
		(f.ID == "" || f.ID == id) &&
		(f.Since.IsZero() || !at.Before(f.Since)) && (f.Until.IsZero() || !at.After(f.Until))
}

func queryRefusals(ctx context.Context, fsys durable.FS, dir string, filter Filter, yield func(Entry, error) bool) {
	more, damaged := true, 0
	for name, bad := range refusalsIn(ctx, fsys, dir, func(ref *Refusal) bool {
		if filter.matchRefusal(ref) {
			more = yield(Entry{Status: "refused", Refusal: ref}, nil)
		}
		return more
	}) {
		if name == "" {
			yield(Entry{}, bad)
			return
		}
		damaged++
	}
	if more && damaged > 0 {
		yield(Entry{}, fmt.Errorf("%w in %d places: what can be read was shown: run hallmark ledger verify", ErrRefusals, damaged))
	}
}
