package ledger_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// ended returns a folder with a ledger of ten issuances that has ended in order.
func ended(t *testing.T) (root string, cfg ledger.Config) {
	t.Helper()
	root = t.TempDir()
	cfg = config(durable.OS(root))
	cfg.Signer, cfg.Verifier = checkpointKeys(t)
	l, stop := start(t, cfg)
	for n := range 10 {
		issue(t, l, n+1)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	cfg.Registerer = prometheus.NewRegistry()
	return root, cfg
}

// change rewrites a file.
func change(t *testing.T, name string, by func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, by(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask returns how many entries a query gives, and the error that it ends with.
func ask(t *testing.T, fsys durable.FS) (entries int, err error) {
	t.Helper()
	for _, bad := range ledger.Query(t.Context(), fsys, dir, ledger.Filter{}) {
		if bad != nil {
			err = bad
			continue
		}
		entries++
	}
	return entries, err
}

// flip changes one byte of the record of a request.
func flip(id string) func([]byte) []byte {
	return func(data []byte) []byte {
		data[bytes.Index(data, []byte(`"`+id+`"`))+1] ^= 0x10
		return data
	}
}

func TestQuerySaysThatTheLedgerIsDamaged(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		harm  func(t *testing.T, folder string)
		shown int
		open  error // of the next start
	}{
		{"first record", func(t *testing.T, folder string) { change(t, filepath.Join(folder, "00000001.seg"), flip("req1")) }, 0, ledger.ErrCut},
		{"a record in the middle", func(t *testing.T, folder string) { change(t, filepath.Join(folder, "00000001.seg"), flip("req5")) }, 4, ledger.ErrCut},
		{"first record, checkpoints removed", func(t *testing.T, folder string) {
			change(t, filepath.Join(folder, "00000001.seg"), flip("req1"))
			remove(t, filepath.Join(folder, "checkpoints"))
		}, 0, ledger.ErrDamaged},
		{"header", func(t *testing.T, folder string) {
			change(t, filepath.Join(folder, "00000001.seg"), func(data []byte) []byte { data[3] ^= 1; return data })
		}, 0, nil},
		{"segment removed", func(t *testing.T, folder string) { remove(t, filepath.Join(folder, "00000001.seg")) }, 0, ledger.ErrCut},
		{"end cut off", func(t *testing.T, folder string) {
			change(t, filepath.Join(folder, "00000001.seg"), func(data []byte) []byte { clear(data[bytes.LastIndex(data, []byte(`"req5"`)):]); return data })
		}, 5, ledger.ErrCut},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			root, cfg := ended(t)
			c.harm(t, filepath.Join(root, dir))
			// Outcomes come a little later, so how many are shown is a bound.
			entries, err := ask(t, cfg.FS)
			if err == nil || !strings.Contains(err.Error(), "hallmark ledger verify") || entries > c.shown {
				t.Errorf("query gives %d entries and %v, want at most %d and an error that says what to do", entries, err, c.shown)
			}
			report, err := ledger.Verify(t.Context(), cfg.FS, dir, cfg.Verifier)
			if err == nil && len(report.Findings) == 0 {
				t.Errorf("verify finds nothing: %+v", report)
			}
			if _, err := ledger.CheckEnd(cfg.FS, dir, cfg.Verifier); err == nil {
				t.Error("the end of it looks well")
			}
			_, err = ledger.Open(t.Context(), cfg)
			if err == nil || (c.open != nil && !errors.Is(err, c.open)) {
				t.Errorf("open: %v, want %v", err, c.open)
			}
		})
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyNotesWhatNoCheckpointCovers: who removes the checkpoints and zeroes
// the end leaves a ledger that is whole.
func TestVerifyNotesWhatNoCheckpointCovers(t *testing.T) {
	t.Parallel()
	root, cfg := ended(t)
	remove(t, filepath.Join(root, dir, "checkpoints"))
	change(t, filepath.Join(root, dir, "00000001.seg"), func(data []byte) []byte {
		clear(data[bytes.LastIndex(data, []byte(`"req5"`)):])
		return data
	})
	report, err := ledger.Verify(t.Context(), cfg.FS, dir, cfg.Verifier)
	if err != nil || !slices.ContainsFunc(report.Notes, func(n string) bool { return strings.HasPrefix(n, "no checkpoint covers the ") }) {
		t.Errorf("%+v, %v", report, err)
	}
	whole, wholeCfg := ended(t)
	if records, err := ledger.CheckEnd(durable.OS(whole), dir, wholeCfg.Verifier); err != nil || records < 10 {
		t.Errorf("the end of a whole ledger: %d, %v", records, err)
	}
	if report, err := ledger.Verify(t.Context(), durable.OS(whole), dir, wholeCfg.Verifier); err != nil || len(report.Notes) > 0 {
		t.Errorf("a whole ledger: %+v, %v", report, err)
	}
}

func TestFoundedTellsANewLedger(t *testing.T) {
	t.Parallel()
	root, cfg := ended(t)
	l, stop := start(t, cfg)
	if l.Founded() {
		t.Error("a ledger that was there counts as founded")
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
		t.Fatal(err)
	}
	cfg.Registerer = prometheus.NewRegistry()
	if l, _ = start(t, cfg); !l.Founded() {
		t.Error("a ledger that was not there counts as found")
	}
}

// TestDamagedRefusals: damage is found and hides nothing behind it; the end of a
// file may be torn.
func TestDamagedRefusals(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	cfg := config(durable.OS(root))
	l, stop := start(t, cfg)
	for _, name := range []string{"aa", "bb", "cc"} {
		l.Refuse(ledger.Refusal{ID: name, Time: time.Now(), PodUID: name, Reason: "ImageUnsigned"})
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, dir, "refusals-0001")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	second := bytes.IndexByte(whole[1:], 5) + 1
	third := second + bytes.IndexByte(whole[second+1:], 5) + 1
	for _, c := range []struct {
		name     string
		data     []byte
		shown    int
		findings int
	}{
		{"whole", whole, 3, 0},
		{"first changed", flipAt(whole, 20), 2, 1},
		{"first's type changed", flipAt(whole, 0), 2, 1},
		{"second's length changed", flipAt(whole, second+5), 2, 1},
		{"last torn", whole[:len(whole)-3], 2, 0},
		{"last torn within its header", whole[:third+4], 2, 0},
		{"zeroes in front", append(make([]byte, 100), whole...), 3, 1},
	} {
		if err := os.WriteFile(file, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		shown, err := ask(t, cfg.FS)
		if shown != c.shown || errors.Is(err, ledger.ErrRefusals) != (c.findings > 0) || (err != nil) != (c.findings > 0) {
			t.Errorf("%s: query gives %d and %v, want %d", c.name, shown, err, c.shown)
		}
		report, err := ledger.Verify(t.Context(), cfg.FS, dir, nil)
		if err != nil || len(report.Findings) != c.findings || int(report.Refusals) != c.shown {
			t.Errorf("%s: verify: %+v, %v", c.name, report, err)
		}
	}
}

func flipAt(data []byte, at int) []byte {
	out := bytes.Clone(data)
	out[at] ^= 0x10
	return out
}
