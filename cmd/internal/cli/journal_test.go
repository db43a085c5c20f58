package cli_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// found makes a state directory and returns its path and the journal's.
func found(t *testing.T) (dir, file string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "state")
	if code, _, errs := hallmark("init", "--state", dir, "--trust-domain", "example.org", "--mesh-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"); code != 0 {
		t.Fatalf("init: exit code %d: %s", code, errs)
	}
	return dir, filepath.Join(dir, state.Journal, "journal.jsonl")
}

func rewrite(t *testing.T, file string, change func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, change(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func memo(t *testing.T, dir string, m journal.Memo) {
	t.Helper()
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, state.Seen), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestJournalVerify(t *testing.T) {
	t.Parallel()
	dir, file := found(t)
	verify := func() (int, string) {
		code, out, _ := hallmark("journal", "verify", "--state", dir)
		return code, out
	}
	if code, out := verify(); code != 0 || !strings.Contains(out, "trust domain example.org: ok") || !strings.Contains(out, "a rollback would not be seen") {
		t.Errorf("as it was founded: exit code %d\n%s", code, out)
	}
	current, err := journal.ReadFile(state.Dir(dir).FS(), state.Journal)
	if err != nil {
		t.Fatal(err)
	}
	memo(t, dir, journal.Memo{Number: current.Number, Head: current.Head, Sequence: current.Sequence})
	if code, out := verify(); code != 0 || strings.Contains(out, "note") {
		t.Errorf("with a memo: exit code %d\n%s", code, out)
	}
	for name, m := range map[string]journal.Memo{
		"more was seen":          {Number: current.Number + 1, Head: current.Head, Sequence: current.Sequence},
		"another was seen":       {Number: current.Number, Head: strings.Repeat("0", 64), Sequence: current.Sequence},
		"a later bundle was out": {Number: current.Number, Head: current.Head, Sequence: current.Sequence + 1},
	} {
		memo(t, dir, m)
		before, err := os.ReadFile(filepath.Join(dir, state.Seen))
		if err != nil {
			t.Fatal(err)
		}
		if code, out := verify(); code != 1 || !strings.Contains(out, "FOUND         it does not continue what was seen here before") {
			t.Errorf("%s: exit code %d\n%s", name, code, out)
		}
		if after, err := os.ReadFile(filepath.Join(dir, state.Seen)); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s: the memo was changed: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, state.Seen), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out := verify(); code != 1 || !strings.Contains(out, "journal.seen cannot be read") {
		t.Errorf("a memo that is cut: exit code %d\n%s", code, out)
	}
	if err := os.Remove(filepath.Join(dir, state.Seen)); err != nil {
		t.Fatal(err)
	}
	rewrite(t, file, func(text []byte) []byte {
		return bytes.Replace(text, []byte(`"by":"hallmark init"`), []byte(`"by":"hallmark fake"`), 1)
	})
	if code, out := verify(); code != 1 || !strings.Contains(out, "lacks a good signature") {
		t.Errorf("a changed word: exit code %d\n%s", code, out)
	}
	code, out, errs := hallmark("journal", "show", "--state", dir)
	if code != 1 || !strings.Contains(out, "hallmark fake") || !strings.Contains(errs, "does not verify") {
		t.Errorf("show of a changed word: exit code %d\n%s%s", code, out, errs)
	}
}

// TestJournalShow: every kind of record has its words, also one that nobody
// signed; what would steer a terminal is replaced.
func TestJournalShow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	course, gone := journal.Run, oldRoot
	bodies := []journal.Body{
		{By: "hallmark init", Founded: &journal.Root{ID: oldRoot, Phase: journal.Active}},
		{By: "uid 0 (root)", Added: &journal.Root{ID: newRoot, Phase: journal.Prepared}},
		{By: "uid 0 (root)", Added: &journal.Root{ID: another, Phase: journal.Trusted}},
		{By: "rotation", Step: &journal.Step{Root: newRoot, To: journal.Published}},
		{By: "rotation", Step: &journal.Step{Root: newRoot, To: journal.Active, Passed: &journal.Passed{Count: 3}}},
		{By: "uid 1000 (a\x1b[2Jb)", Step: &journal.Step{Root: oldRoot, To: journal.Retired, Passed: &journal.Passed{
			Reason: "the disk\nburnt", Count: 2, Behind: []string{"shop/a (1) at sds, node n", "shop/b (2) at sds, node n"},
		}}},
		{By: "hallmark-0", Issuing: &journal.IssuingCA{ID: another, Replica: "hallmark-0", Root: newRoot, NotAfter: now}},
		{By: "hallmark-0", Issuing: &journal.IssuingCA{ID: another, Replica: "hallmark-0", Root: oldRoot, NotAfter: now, Serving: true}},
		{By: "uid 0 (root)", Taint: &journal.Taint{Issuing: another, Reason: "its node was broken into"}},
		{By: "uid 0 (root)", Course: &course},
		{By: "rotation", Destroyed: &gone},
		{By: "fold", Folded: &journal.Folded{Roots: make([]journal.Root, 2), Sequence: 7}},
		{By: "a later release"},
	}
	var text bytes.Buffer
	for i, b := range bodies {
		b.Format, b.OldestReader, b.Number, b.Time, b.TrustDomain = 1, 1, uint64(i+1), now.Add(time.Duration(i)*time.Minute), "example.org"
		raw, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewEncoder(&text).Encode(journal.Record{Body: raw, Signatures: []journal.Signature{{Root: oldRoot}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, state.Journal), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, state.Journal, "journal.jsonl"), text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := hallmark("journal", "show", "--state", dir)
	if code != 1 || !strings.Contains(errs, "the journal does not verify: replaying journal record 1") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	golden(t, "journal-show", out)

	_, out, _ = hallmark("journal", "show", "--limit", "3", "-o", "json", "--state", dir)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 {
		t.Fatalf("--limit 3 shows %d:\n%s", len(lines), out)
	}
	var last struct {
		Number   uint64
		By, Hash string
		SignedBy []string
		Body     journal.Body
	}
	if err := json.Unmarshal([]byte(lines[1]), &last); err != nil || last.Number != 12 || last.By != "fold" || len(last.Hash) != 64 || last.SignedBy[0] != oldRoot || last.Body.Folded == nil {
		t.Errorf("%v: %s", err, lines[1])
	}
}
