package ledger_test

import (
	"bytes"
	"path"
	"testing"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// TestForgedRecordsAreFound: whoever can write the files, and knows their form
// down to the checksums, cannot change a record so that verify passes.
func TestForgedRecordsAreFound(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		segment int // of those there are; -1 is the last
		forge   ledger.Forgery
	}{
		{"a record, with its checksum", 0, ledger.Forgery{From: "registry/app", To: "registry/bad"}},
		{"a record and the chain of its segment", 0, ledger.Forgery{From: "registry/app", To: "registry/bad", Rechain: true}},
		{"a record of the last segment and its chain", -1, ledger.Forgery{From: "registry/app", To: "registry/bad", Rechain: true}},
		{"the count of a batch", 0, ledger.Forgery{Recount: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			fsys := faultfs.Memory()
			cfg := config(fsys)
			cfg.Signer, cfg.Verifier = checkpointKeys(t)
			l, stop := start(t, cfg)
			for n := range 400 {
				issue(t, l, n)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if report, err := ledger.Verify(t.Context(), fsys, dir, cfg.Verifier); err != nil || len(report.Findings) > 0 || report.Segments < 2 {
				t.Fatalf("before: %+v, %v", report, err)
			}
			forge(t, fsys, c.segment, c.forge)
			report, err := ledger.Verify(t.Context(), fsys, dir, cfg.Verifier)
			if err == nil && len(report.Findings) == 0 {
				t.Errorf("nothing was found: %+v", report)
			}
		})
	}
}

// forge rewrites one segment on disk.
func forge(t *testing.T, fsys durable.FS, at int, f ledger.Forgery) {
	t.Helper()
	names, err := fsys.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var segments []string
	for _, name := range names {
		if path.Ext(name) == ".seg" {
			segments = append(segments, path.Join(dir, name))
		}
	}
	name := segments[(at+len(segments))%len(segments)]
	data, err := durable.Read(fsys, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := f.Apply(data)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(forged, data) {
		t.Fatalf("%s was not changed", name)
	}
	file, err := fsys.OpenWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(forged, 0); err != nil {
		t.Fatal(err)
	}
}
