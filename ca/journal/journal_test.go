package journal_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

const domain = "cluster.local"

var start = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// author writes a journal: one root, and what happens under it.
type author struct {
	key     *ecdsa.PrivateKey
	cert    *x509.Certificate
	root    journal.Root
	records []journal.Record
}

func newAuthor(t testing.TB) *author {
	t.Helper()
	a := &author{key: catest.Key(t)}
	a.cert = catest.Certify(t, ca.Root, attesttest.Domain(t, domain), a.key, ca.Parent{}, catest.RootLifetime, start)
	a.root = journal.Root{ID: hex.EncodeToString(a.cert.SubjectKeyId), Certificate: a.cert.Raw, KeyURI: "softkms:path=root.pem", Phase: journal.Active, Since: start}
	return a
}

func (a *author) signer() journal.Signer { return journal.Signer{Root: a.root.ID, Key: a.key} }

func (a *author) founding() journal.Body {
	return journal.Body{Time: start, TrustDomain: domain, By: "test", Founded: &a.root}
}

// issuing is an issuing CA that ends a day after at.
func (a *author) issuing(t testing.TB, at time.Time) journal.Body {
	t.Helper()
	cert := catest.Certify(t, ca.Issuing, attesttest.Domain(t, domain), catest.Key(t), ca.Parent{Certificate: a.cert, Signer: a.key}, 24*time.Hour, at)
	return journal.Body{Time: at, TrustDomain: domain, By: "test", Issuing: &journal.IssuingCA{
		ID: hex.EncodeToString(cert.SubjectKeyId), Certificate: cert.Raw, Replica: "r1", Root: a.root.ID, NotAfter: cert.NotAfter,
	}}
}

func replay(t testing.TB, records []journal.Record) journal.State {
	t.Helper()
	state, err := journal.Replay(records)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// write appends what body says.
func (a *author) write(t testing.TB, body journal.Body) {
	t.Helper()
	rec, err := journal.NewRecord(replay(t, a.records), body, a.signer())
	if err != nil {
		t.Fatal(err)
	}
	a.records = append(a.records, rec)
}

// forge signs any bytes as a record.
func forge(t testing.TB, body any, signers ...journal.Signer) journal.Record {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	rec := journal.Record{Body: raw}
	sum := sha256.Sum256(raw)
	for _, s := range signers {
		value, err := s.Key.Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		rec.Signatures = append(rec.Signatures, journal.Signature{Root: s.Root, Value: value})
	}
	return rec
}

// history is a journal of a root and four issuing CAs.
func history(t testing.TB) *author {
	t.Helper()
	a := newAuthor(t)
	a.write(t, a.founding())
	for n := range 4 {
		a.write(t, a.issuing(t, start.Add(time.Duration(n)*time.Hour)))
	}
	return a
}

func TestReplay(t *testing.T) {
	a := history(t)
	s := replay(t, a.records)
	root, ok := s.ActiveRoot()
	if !ok || root.ID != a.root.ID || s.Number != 5 || s.Sequence != 1 || len(s.Issuing) != 4 || s.TrustDomain != domain {
		t.Errorf("state = %+v", s)
	}
	if certs, err := s.Certificates(); err != nil || len(certs) != 1 || !certs[0].Equal(a.cert) {
		t.Errorf("bundle = %v, %v", certs, err)
	}
	for _, rec := range a.records {
		scalar, err := a.key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range [][]byte{scalar, []byte(hex.EncodeToString(scalar))} {
			if bytes.Contains(rec.Body, secret) {
				t.Error("a private key is in the journal")
			}
		}
	}
}

func TestReplayFindsTampering(t *testing.T) {
	a := history(t)
	other := newAuthor(t)
	for name, change := range map[string]func([]journal.Record) []journal.Record{
		"first missing":  func(r []journal.Record) []journal.Record { return r[1:] },
		"one missing":    func(r []journal.Record) []journal.Record { return slices.Delete(r, 2, 3) },
		"one twice":      func(r []journal.Record) []journal.Record { return slices.Insert(r, 2, r[2]) },
		"two exchanged":  func(r []journal.Record) []journal.Record { r[2], r[3] = r[3], r[2]; return r },
		"no signature":   func(r []journal.Record) []journal.Record { r[3].Signatures = nil; return r },
		"another's":      func(r []journal.Record) []journal.Record { r[3].Signatures = r[2].Signatures; return r },
		"another signer": func(r []journal.Record) []journal.Record { return resign(t, r, 4, other.key, a.root.ID) },
		"another's root": func(r []journal.Record) []journal.Record { return resign(t, r, 4, other.key, other.root.ID) },
		"another founding signer": func(r []journal.Record) []journal.Record {
			return resign(t, r, 0, other.key, a.root.ID)
		},
	} {
		records := change(slices.Clone(a.records))
		if _, err := journal.Replay(records); err == nil {
			t.Errorf("%s: replayed", name)
		}
	}
	for n, rec := range a.records {
		for at := 0; at < len(rec.Body); at += 7 {
			bad := slices.Clone(a.records)
			bad[n].Body = bytes.Clone(rec.Body)
			bad[n].Body[at] ^= 1
			if _, err := journal.Replay(bad); err == nil {
				t.Fatalf("record %d with byte %d changed: replayed", n+1, at)
			}
		}
	}
}

// resign signs record n once more, with another key.
func resign(t *testing.T, records []journal.Record, n int, key *ecdsa.PrivateKey, id string) []journal.Record {
	records[n] = forge(t, records[n].Body, journal.Signer{Root: id, Key: key})
	return records
}

// body is a record body as the JSON has it, for bodies that NewRecord refuses.
func (a *author) body(t *testing.T, change func(map[string]any)) map[string]any {
	t.Helper()
	s := replay(t, a.records)
	b := a.issuing(t, start)
	b.Format, b.OldestReader, b.Number, b.Previous = 1, 1, s.Number+1, s.Head
	raw, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	change(out)
	return out
}

func TestFormats(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(map[string]any)
		want   string // "": it is read
	}{
		"as it is":                        {func(map[string]any) {}, ""},
		"newer, and we may read it":       {func(b map[string]any) { b["format"], b["colour"] = 2, "red" }, ""},
		"newer, and we may not":           {func(b map[string]any) { b["format"], b["oldestReader"] = 2, 2 }, "use a newer release"},
		"much newer, of another language": {func(b map[string]any) { clear(b); b["format"], b["oldestReader"] = 9, 9 }, "use a newer release"},
		"unknown field of our own format": {func(b map[string]any) { b["colour"] = "red" }, "unknown field"},
		"no format":                       {func(b map[string]any) { delete(b, "format") }, "format 0"},
		"no oldest reader":                {func(b map[string]any) { delete(b, "oldestReader") }, "reader of at least 0"},
		"nothing said":                    {func(b map[string]any) { delete(b, "issuing") }, "exactly one thing"},
		"nothing said, in words":          {func(b map[string]any) { b["issuing"] = nil }, "exactly one thing"},
		"another trust domain":            {func(b map[string]any) { b["trustDomain"] = "other.example" }, "trust domain"},
		"another number":                  {func(b map[string]any) { b["number"] = 99 }, "does not follow"},
	} {
		a := history(t)
		rec := forge(t, a.body(t, tt.change), a.signer())
		_, err := journal.Replay(append(a.records, rec))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestRecordsThatAreRefused(t *testing.T) {
	a, other := history(t), newAuthor(t)
	state := replay(t, a.records)
	same := a.root
	same.Phase = journal.Prepared
	for name, tt := range map[string]struct {
		body    journal.Body
		signers []journal.Signer
	}{
		"a second active root":          {other.founding(), []journal.Signer{a.signer(), other.signer()}},
		"the same root once more":       {journal.Body{TrustDomain: domain, Added: &same}, []journal.Signer{a.signer()}},
		"an issuing CA of a stranger":   {other.issuing(t, start), []journal.Signer{a.signer(), other.signer()}},
		"an issuing CA twice":           {journal.Body{TrustDomain: domain, Issuing: &state.Issuing[0]}, []journal.Signer{a.signer()}},
		"two things at once":            {journal.Body{TrustDomain: domain, Issuing: a.issuing(t, start).Issuing, Founded: &other.root}, []journal.Signer{a.signer(), other.signer()}},
		"without a signature":           {a.issuing(t, start), nil},
		"signed by a stranger":          {a.issuing(t, start), []journal.Signer{other.signer()}},
		"with a stranger's key":         {a.issuing(t, start), []journal.Signer{{Root: a.root.ID, Key: other.key}}},
		"an issuing CA not by the root": {forged(t, a, other, func(*journal.IssuingCA) {}), []journal.Signer{a.signer()}},
		"an issuing CA of another end":  {changed(a.issuing(t, start), func(c *journal.IssuingCA) { c.NotAfter = c.NotAfter.Add(time.Hour) }), []journal.Signer{a.signer()}},
		"an issuing CA of another id":   {changed(a.issuing(t, start), func(c *journal.IssuingCA) { c.ID = "00" }), []journal.Signer{a.signer()}},
		"an issuing CA of garbage":      {changed(a.issuing(t, start), func(c *journal.IssuingCA) { c.Certificate = []byte("no") }), []journal.Signer{a.signer()}},
	} {
		if _, err := journal.NewRecord(state, tt.body, tt.signers...); err == nil {
			t.Errorf("%s: a record was made", name)
		}
	}
}

func changed(b journal.Body, change func(*journal.IssuingCA)) journal.Body {
	change(b.Issuing)
	return b
}

// forged is an issuing CA of other's root that says to be of a's.
func forged(t *testing.T, a, other *author, change func(*journal.IssuingCA)) journal.Body {
	t.Helper()
	b := other.issuing(t, start)
	b.Issuing.Root = a.root.ID
	return changed(b, change)
}

// aged is a journal whose issuing CAs have mostly expired at now.
func aged(t *testing.T) (a *author, now time.Time) {
	t.Helper()
	a = newAuthor(t)
	a.write(t, a.founding())
	for n := range 40 {
		a.write(t, a.issuing(t, start.Add(time.Duration(n)*36*time.Hour)))
	}
	return a, start.Add(39*36*time.Hour + time.Hour)
}

func TestFold(t *testing.T) {
	a, now := aged(t)
	before := replay(t, a.records)
	if _, due := journal.Fold(before, start.Add(time.Hour)); due {
		t.Error("a fold is due where nothing has expired")
	}
	body, due := journal.Fold(before, now)
	if !due {
		t.Fatal("no fold is due")
	}
	rec, err := journal.NewRecord(before, body, a.signer())
	if err != nil {
		t.Fatal(err)
	}
	after := replay(t, append(slices.Clone(a.records), rec))
	alone := replay(t, []journal.Record{rec})
	for name, s := range map[string]journal.State{"behind its history": after, "alone": alone} {
		if s.Number != before.Number+1 || s.Sequence != before.Sequence || len(s.Roots) != 1 || len(s.Issuing) == 0 || len(s.Issuing) > 5 {
			t.Errorf("%s: %d, sequence %d, %d roots, %d issuing CAs", name, s.Number, s.Sequence, len(s.Roots), len(s.Issuing))
		}
		for n, r := range a.records { // every record that it stands for is known
			sum := sha256.Sum256(r.Body)
			if !s.Extends(uint64(n+1), hex.EncodeToString(sum[:])) {
				t.Errorf("%s: does not know record %d any more", name, n+1)
			}
			if s.Extends(uint64(n+1), strings.Repeat("0", 64)) {
				t.Errorf("%s: takes any record %d for its own", name, n+1)
			}
		}
	}
	next, err := journal.NewRecord(alone, a.issuing(t, now), a.signer())
	if err != nil {
		t.Fatal(err)
	}
	replay(t, []journal.Record{rec, next})

	other := newAuthor(t)
	for name, change := range map[string]func(*journal.Folded){
		"a live CA away": func(f *journal.Folded) { f.Issuing = nil },
		"a CA put in":    func(f *journal.Folded) { f.Issuing = append(slices.Clone(f.Issuing), *other.issuing(t, start).Issuing) },
		"a root put in": func(f *journal.Folded) {
			r := other.root
			r.Phase = "trusted"
			f.Roots = append(slices.Clone(f.Roots), r)
		},
		"the root away":     func(f *journal.Folded) { f.Roots = nil },
		"the root's phase":  func(f *journal.Folded) { f.Roots = []journal.Root{a.root}; f.Roots[0].Phase = "draining" },
		"the root's key":    func(f *journal.Folded) { f.Roots = slices.Clone(f.Roots); f.Roots[0].KeyURI = "softkms:path=other.pem" },
		"a lower sequence":  func(f *journal.Folded) { f.Sequence-- },
		"a higher sequence": func(f *journal.Folded) { f.Sequence++ },
	} {
		bad := *body.Folded
		change(&bad)
		b := body
		b.Folded = &bad
		if _, err := journal.NewRecord(before, b, a.signer(), other.signer()); err == nil {
			t.Errorf("%s: folded", name)
		}
	}
}

func TestMemo(t *testing.T) {
	const file = "seen.json"
	a := history(t)
	state := func(n int) journal.State { return replay(t, a.records[:n]) }
	disk := faultfs.New()
	check := func(s journal.State) error { return journal.KeepMemo(disk, file, s) }
	for _, n := range []int{2, 3, 3, 5} {
		if err := check(state(n)); err != nil {
			t.Fatalf("record %d: %v", n, err)
		}
	}
	ops := disk.Ops()
	if err := check(state(5)); err != nil || disk.Ops() != ops {
		t.Errorf("the same once more: %v, %d operations", err, disk.Ops()-ops)
	}
	if err := check(state(4)); !errors.Is(err, journal.ErrRolledBack) {
		t.Errorf("a journal that was cut back: %v", err)
	}
	fork := &author{key: a.key, cert: a.cert, root: a.root, records: slices.Clone(a.records[:3])}
	for range 5 {
		fork.write(t, fork.issuing(t, start))
	}
	if err := check(replay(t, fork.records)); !errors.Is(err, journal.ErrRolledBack) {
		t.Errorf("a journal restored from a copy, that went on: %v", err)
	}
	if err := check(replay(t, history(t).records)); !errors.Is(err, journal.ErrRolledBack) {
		t.Errorf("another journal: %v", err)
	}
	old, now := aged(t)
	s := replay(t, old.records)
	body, _ := journal.Fold(s, now)
	rec, err := journal.NewRecord(s, body, old.signer())
	if err != nil {
		t.Fatal(err)
	}
	if err := check(replay(t, []journal.Record{rec})); !errors.Is(err, journal.ErrRolledBack) {
		t.Errorf("another journal, folded: %v", err)
	}
	if err := journal.KeepMemo(disk, "other.json", s); err != nil {
		t.Fatal(err)
	}
	if err := journal.KeepMemo(disk, "other.json", replay(t, []journal.Record{rec})); err != nil {
		t.Errorf("the same journal, folded: %v", err)
	}
	if err := durable.Replace(disk, file, []byte("{")); err != nil {
		t.Fatal(err)
	}
	if err := check(state(5)); err == nil {
		t.Error("a memo that cannot be read is taken for none")
	}
}
