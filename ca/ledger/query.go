package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"path"
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
	numbers, err := segments(fsys, dir)
	if err != nil {
		return yield(Entry{}, err)
	}
	var held []Entry // found, and waiting for an outcome in the next segment
	emit := func(entries []Entry) bool {
		for _, e := range entries {
			if e.Outcome == nil {
				e.Status = MaybeIssued
			}
			if !yield(e, nil) {
				return false
			}
		}
		return true
	}
	for i, n := range numbers {
		if ctx.Err() != nil {
			return yield(Entry{}, ctx.Err())
		}
		last := i == len(numbers)-1
		if !last && len(held) == 0 && canSkip(fsys, dir, n, filter) {
			continue
		}
		data, err := readSegment(fsys, dir, n)
		if err != nil {
			return yield(Entry{}, err)
		}
		s, err := scanSegment(data, startOf(fsys, dir, n+1))
		if err != nil {
			if last { // being begun
				break
			}
			return yield(Entry{}, fmt.Errorf("reading ledger segment %d: %w", n, err))
		}
		found, err := match(s, filter, held)
		if err != nil {
			return yield(Entry{}, err)
		}
		if !emit(held) {
			return false
		}
		held = found
	}
	return emit(held)
}

// match returns the entries of s, with their outcomes as far as they stand in
// it, and gives the held ones theirs.
func match(s *scan, filter Filter, held []Entry) ([]Entry, error) {
	var found []Entry
	open := map[string]*Entry{}
	for i := range held {
		if held[i].Outcome == nil {
			open[held[i].Intent.Serial] = &held[i]
		}
	}
	bySerial := map[string]int{}
	for _, r := range s.records {
		switch r.typ {
		case frameIntent:
			if !filter.mayMatch(r.body) {
				continue
			}
			var intent Intent
			if err := json.Unmarshal(r.body, &intent); err != nil {
				return nil, fmt.Errorf("decoding ledger record %d: %w", r.number, err)
			}
			if filter.matchIntent(&intent) {
				bySerial[intent.Serial] = len(found)
				found = append(found, Entry{Number: r.number, Intent: &intent})
			}
		case frameOutcome:
			if len(bySerial)+len(open) == 0 {
				continue
			}
			var outcome Outcome
			if err := json.Unmarshal(r.body, &outcome); err != nil {
				return nil, fmt.Errorf("decoding ledger record %d: %w", r.number, err)
			}
			e := open[outcome.Serial]
			if at, ok := bySerial[outcome.Serial]; ok {
				e = &found[at]
			}
			if e != nil {
				e.Outcome, e.Status = &outcome, outcome.Status
			}
		}
	}
	return found, nil
}

// canSkip uses the index of a sealed segment: nothing of the filter is in it.
func canSkip(fsys durable.FS, dir string, n uint64, filter Filter) bool {
	if filter.Identity == "" && filter.Since.IsZero() && filter.Until.IsZero() {
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
	return !slices.ContainsFunc(rows, func(r row) bool {
		at := time.Unix(int64(r.time), 0)
		// The index has whole seconds.
		return (filter.Since.IsZero() || !at.Before(filter.Since.Add(-time.Second))) && (filter.Until.IsZero() || !at.After(filter.Until))
	})
}

// mayMatch looks for the filter's words in the record as it was written, so
// that few records need decoding. JSON writes them all verbatim.
func (f Filter) mayMatch(body []byte) bool {
	text := string(body)
	for _, want := range []string{f.Identity, f.Serial, f.ID, f.Image} {
		if want != "" && !strings.Contains(text, want) {
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
	numbers, err := refusalFilesIn(fsys, dir)
	if err != nil {
		yield(Entry{}, err)
		return
	}
	for _, n := range numbers {
		if ctx.Err() != nil {
			yield(Entry{}, ctx.Err())
			return
		}
		data, err := durable.Read(fsys, path.Join(dir, refusalName(n)), refusalFileSize)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		for {
			f, err := readFrame(data)
			if err != nil {
				break // they are not synced: the end may be torn
			}
			data = data[len(f.raw):]
			var ref Refusal
			if f.typ != frameRefusal || json.Unmarshal(f.body, &ref) != nil || !filter.matchRefusal(&ref) {
				continue
			}
			if !yield(Entry{Status: "refused", Refusal: &ref}, nil) {
				return
			}
		}
	}
}
