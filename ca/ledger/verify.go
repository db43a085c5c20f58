package ledger

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// Report is what [Verify] found.
type Report struct {
	Ledger      string   `json:"ledger"`
	Segments    int      `json:"segments"`
	Records     uint64   `json:"records"` // since the ledger began
	Intents     uint64   `json:"intents"` // in the files
	Issued      uint64   `json:"issued"`
	Open        int      `json:"open"` // intents without an outcome: may have been issued
	Checkpoints int      `json:"checkpoints"`
	Refusals    uint64   `json:"refusals"`           // records of them, in the files
	Head        string   `json:"head"`               // chain hash, hex
	Notes       []string `json:"notes,omitempty"`    // worth knowing, and in order
	Findings    []string `json:"findings,omitempty"` // the ledger is not what it should be
}

// Verify reads the whole ledger and checks every promise that can be seen in
// its files: frames, chain, commits, the seams between segments, signed
// checkpoints, indexes, and that no outcome lacks its intent. A torn tail behind
// the last commit is a note; a cut is a finding. The error is for what cannot be
// read at all.
func Verify(ctx context.Context, fsys durable.FS, dir string, verifier note.Verifier) (Report, error) {
	v := &verification{fsys: fsys, dir: dir, open: map[string]uint64{}, commits: map[commit]bool{}}
	// Checkpoints first: a running writer may add to the files meanwhile, and
	// what they cover must then be there.
	stamps, err := readCheckpoints(fsys, dir, verifier)
	if err != nil {
		v.find("checkpoints: %v", err)
	}
	numbers, err := segments(fsys, dir)
	if err != nil {
		return v.Report, err
	}
	if len(numbers) == 0 && len(stamps) > 0 {
		return v.Report, fmt.Errorf("verifying ledger: %w: there is no segment in %q, and a checkpoint of %d records", ErrCut, dir, stamps[len(stamps)-1].records)
	}
	if len(numbers) == 0 {
		return v.Report, fmt.Errorf("verifying ledger: there is none in %q", dir)
	}
	for i, n := range numbers {
		if ctx.Err() != nil {
			return v.Report, ctx.Err()
		}
		if i > 0 && n != numbers[i-1]+1 {
			v.find("segment %d is missing", numbers[i-1]+1)
		}
		if err := v.segment(n, i == len(numbers)-1); err != nil {
			return v.Report, err
		}
	}
	v.checkpoints(stamps)
	if verifier != nil {
		v.covered(stamps)
	}
	if err := v.refusals(ctx); err != nil {
		return v.Report, err
	}
	v.Open = len(v.open)
	v.Records, v.Head = v.last.records, hex.EncodeToString(v.last.chain[:])
	return v.Report, nil
}

type verification struct {
	Report
	fsys    durable.FS
	dir     string
	first   commit
	last    commit
	open    map[string]uint64 // serial of an intent without outcome → record
	commits map[commit]bool   // all of them: 40 bytes a batch
}

func (v *verification) find(format string, args ...any) {
	v.Findings = append(v.Findings, fmt.Sprintf(format, args...))
}

func (v *verification) segment(n uint64, last bool) error {
	until := startOf(v.fsys, v.dir, n+1)
	data, s, err := readSteady(v.fsys, v.dir, n, until)
	switch {
	case errors.Is(err, fs.ErrNotExist) && v.Segments == 0:
		return nil // a running writer has removed it, by age
	case errors.Is(err, errNoHeader) && last:
		v.Notes = append(v.Notes, fmt.Sprintf("segment %d was never begun", n))
		if len(data) > beginning && !zero(data[beginning:]) {
			v.find("segment %d has records, and its beginning cannot be read", n)
		}
		return nil
	case errors.Is(err, errNoHeader):
		v.find("segment %d: %v", n, err)
		return nil
	case err != nil:
		return err
	}
	if v.Segments == 0 {
		v.Ledger, v.last, v.first = s.header.Ledger, s.start, s.start
		v.commits[s.start] = true
	}
	v.Segments++
	if s.header.Segment != n || s.header.Ledger != v.Ledger {
		v.find("segment %d says that it is segment %d of ledger %s", n, s.header.Segment, s.header.Ledger)
	}
	if s.start != v.last {
		v.find("segment %d begins at record %d, the one before it ended at %d (or with another hash)", n, s.start.records, v.last.records)
	}
	v.end(n, s, data, until)
	for _, c := range s.commits {
		v.commits[c] = true
	}
	v.last = s.last
	rows, err := v.records(s)
	switch {
	case err != nil:
		v.find("segment %d: %v", n, err)
	case !last:
		v.index(n, rows)
	}
	return nil
}

// end looks at how the segment ends.
func (v *verification) end(n uint64, s *scan, data []byte, until *commit) {
	if until != nil {
		if s.last != *until {
			v.find("segment %d ends at record %d, the next begins at %d: records between them are damaged or missing", n, s.last.records, until.records)
		}
		return
	}
	switch behind := commitsBehind(data, s); {
	case behind > 1:
		v.find("segment %d is damaged at offset %d: %d commits stand behind it", n, s.end, behind)
	case !errors.Is(s.stopped, errEnd):
		v.Notes = append(v.Notes, fmt.Sprintf("segment %d has a torn tail at offset %d, which was never acknowledged", n, s.end))
	}
}

// records counts what the segment holds, and returns the rows of its index.
func (v *verification) records(s *scan) ([]row, error) {
	rows := make([]row, len(s.records))
	for n, r := range s.records {
		switch r.typ {
		case frameIntent:
			i, err := readIntentKey(r.body)
			if err != nil {
				return nil, fmt.Errorf("record %d: %w", r.number, err)
			}
			if i.Serial == "" || v.open[i.Serial] != 0 {
				v.find("record %d repeats the serial %q", r.number, i.Serial)
			}
			v.Intents++
			v.open[i.Serial] = r.number
			rows[n] = i.row()
		case frameOutcome:
			var o Outcome
			if err := json.Unmarshal(r.body, &o); err != nil {
				return nil, fmt.Errorf("record %d: %w", r.number, err)
			}
			if _, ok := v.open[o.Serial]; !ok && v.first.records == 0 {
				v.find("record %d is an outcome of serial %q, which has no open intent", r.number, o.Serial)
			}
			if o.Status == Issued {
				v.Issued++
			}
			delete(v.open, o.Serial)
			rows[n] = outcomeRow(&o)
		}
		rows[n].offset = r.offset
	}
	return rows, nil
}

func (v *verification) index(n uint64, want []row) {
	have, err := readIndex(v.fsys, v.dir, n)
	if err != nil {
		v.Notes = append(v.Notes, fmt.Sprintf("segment %d has no index: queries read the segment", n))
		return
	}
	slices.SortFunc(want, compareRows)
	if !slices.Equal(have, want) {
		v.find("the index of segment %d does not fit its records: remove %s, and it is made again", n, indexName(n))
	}
}

func (v *verification) checkpoints(stamps []checkpoint) {
	v.Checkpoints = len(stamps)
	for _, c := range stamps {
		switch {
		case c.ledger != v.Ledger:
			v.find("the checkpoint of %s is of another ledger (%s)", c.time, c.ledger)
		case c.records < v.first.records: // its segment has gone, by age
		case !v.commits[c.commit]:
			v.find("the ledger was cut or changed: the checkpoint of %s covers %d records with a hash that the files do not have", c.time, c.records)
		}
	}
}

// covered says how much no checkpoint speaks for: there, an end that was cut off
// looks like one that was never written.
func (v *verification) covered(stamps []checkpoint) {
	var upTo uint64
	for _, c := range stamps {
		upTo = max(upTo, c.records)
	}
	switch {
	case v.last.records == 0 || upTo >= v.last.records:
	case len(stamps) == 0:
		v.Notes = append(v.Notes, fmt.Sprintf("no checkpoint covers the %d records: one is written every %s, so %s was removed, or the ledger is new; whether the end was cut off cannot be told", v.last.records, checkpointEvery, checkpointFile))
	default:
		v.Notes = append(v.Notes, fmt.Sprintf("no checkpoint covers the last %d records: one is written every %s", v.last.records-upTo, checkpointEvery))
	}
}

func (v *verification) refusals(ctx context.Context) error {
	for name, bad := range refusalsIn(ctx, v.fsys, v.dir, func(*Refusal) bool { v.Refusals++; return true }) {
		if name == "" {
			return bad
		}
		v.find("%s: %v", name, bad)
	}
	return nil
}
