package ledger

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

const (
	checkpointFile  = "checkpoints"
	checkpointEvery = 5 * time.Second
	checkpointsKept = 64
	checkpointFirst = "hallmark ledger"
)

// checkpoint is one signed statement: at that time, the ledger had so many
// records with that chain hash. Its text is a note (golang.org/x/mod/sumdb):
//
//	hallmark ledger ID
//	RECORDS
//	CHAIN HASH, base64
//	TIME, RFC 3339
type checkpoint struct {
	commit
	ledger string
	time   time.Time
	signed string
}

// stamp signs a checkpoint when there is something new to say.
func (l *Ledger) stamp(now bool) {
	w := &l.w
	if l.cfg.Signer == nil || w.last.records == w.stamped || (!now && l.cfg.Now().Sub(w.stampAt) < checkpointEvery) {
		return
	}
	w.stampAt = l.cfg.Now()
	text := fmt.Sprintf("%s %s\n%d\n%s\n%s\n", checkpointFirst, w.id, w.last.records,
		base64.StdEncoding.EncodeToString(w.last.chain[:]), w.stampAt.UTC().Format(time.RFC3339))
	signed, err := note.Sign(&note.Note{Text: text}, l.cfg.Signer)
	if err == nil {
		err = appendCheckpoint(l.cfg.FS, l.cfg.Dir, string(signed))
	}
	if err != nil {
		l.cfg.Log.Error("writing a ledger checkpoint failed", "error", err)
		return
	}
	w.stamped = w.last.records
}

func appendCheckpoint(fsys durable.FS, dir, signed string) error {
	all, err := loadCheckpoints(fsys, dir)
	if err != nil {
		return err
	}
	all = append(all, signed)
	data, err := json.MarshalIndent(all[max(0, len(all)-checkpointsKept):], "", " ")
	if err != nil {
		return err
	}
	return durable.Replace(fsys, path.Join(dir, checkpointFile), data)
}

func loadCheckpoints(fsys durable.FS, dir string) ([]string, error) {
	data, err := durable.Read(fsys, path.Join(dir, checkpointFile), 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading ledger checkpoints: %w", err)
	}
	var all []string
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("reading ledger checkpoints: %w", err)
	}
	return all, nil
}

// readCheckpoints returns the kept checkpoints, oldest first, each with its
// signature verified; without a verifier there are none.
func readCheckpoints(fsys durable.FS, dir string, verifier note.Verifier) ([]checkpoint, error) {
	if verifier == nil {
		return nil, nil
	}
	all, err := loadCheckpoints(fsys, dir)
	if err != nil {
		return nil, err
	}
	out := make([]checkpoint, len(all))
	for i, signed := range all {
		n, err := note.Open([]byte(signed), note.VerifierList(verifier))
		if err != nil {
			return nil, fmt.Errorf("verifying ledger checkpoint %d: %w", i+1, err)
		}
		if out[i], err = parseCheckpoint(n.Text); err != nil {
			return nil, fmt.Errorf("reading ledger checkpoint %d: %w", i+1, err)
		}
		out[i].signed = signed
	}
	return out, nil
}

func parseCheckpoint(text string) (checkpoint, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], checkpointFirst+" ") {
		return checkpoint{}, errors.New("it is no ledger checkpoint")
	}
	records, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return checkpoint{}, err
	}
	hash, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(hash) != 32 {
		return checkpoint{}, errors.New("bad chain hash")
	}
	at, err := time.Parse(time.RFC3339, lines[3])
	if err != nil {
		return checkpoint{}, err
	}
	return checkpoint{commit: commit{records, [32]byte(hash)}, ledger: strings.TrimPrefix(lines[0], checkpointFirst+" "), time: at}, nil
}

// checkStamps tells a torn tail from a cut one: every checkpoint that reaches
// into the segment must be one of its commits.
func checkStamps(stamps []checkpoint, s *scan) error {
	for _, c := range stamps {
		if c.ledger != s.header.Ledger {
			return fmt.Errorf("%w: a checkpoint of another ledger (%s) lies beside it", ErrCut, c.ledger)
		}
		if c.records < s.start.records || (c.records == s.start.records && c.chain == s.start.chain) {
			continue
		}
		found := false
		for _, known := range s.commits {
			found = found || known == c.commit
		}
		if !found {
			return fmt.Errorf("%w: the checkpoint of %s names %d records, the files hold %d (or others)", ErrCut, c.time.Format(time.RFC3339), c.records, s.last.records)
		}
	}
	return nil
}
