package ledger_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"strconv"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// written returns the segment of a ledger of n issuances, without its zeroes.
func written(tb testing.TB, n int) []byte {
	tb.Helper()
	disk := faultfs.Memory()
	l, stop := start(tb, config(disk))
	for i := range n {
		issue(tb, l, i+1)
	}
	if err := stop(); err != nil {
		tb.Fatal(err)
	}
	data, err := durable.Read(disk, dir+"/00000001.seg", 1<<20)
	if err != nil {
		tb.Fatal(err)
	}
	return bytes.TrimRight(data, "\x00")
}

// FuzzSegment gives any bytes for a segment. Nobody panics; what can be opened
// goes on, and what verified before it was opened verifies after.
func FuzzSegment(f *testing.F) {
	good := written(f, 3)
	f.Add(good)
	f.Add(good[:len(good)-20])
	f.Add([]byte{})
	f.Add([]byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(append(bytes.Clone(good), good...))
	damaged := bytes.Clone(good)
	damaged[len(damaged)/2] ^= 1
	f.Add(damaged)
	f.Fuzz(func(t *testing.T, data []byte) {
		disk := faultfs.Memory()
		if err := disk.MkdirAll(dir); err != nil {
			t.Fatal(err)
		}
		put(t, disk, dir+"/00000001.seg", data)
		before, verifyErr := ledger.Verify(t.Context(), disk, dir, nil)
		entries := 0
		for e, err := range ledger.Query(t.Context(), disk, dir, ledger.Filter{}) {
			if err == nil && e.Intent == nil && e.Refusal == nil {
				t.Fatal("an entry of nothing")
			}
			if err == nil {
				entries++
			}
		}
		if verifyErr == nil && len(before.Findings) == 0 && entries != int(before.Intents) {
			t.Fatalf("verify sees %d issuances, query %d", before.Intents, entries)
		}
		l, err := ledger.Open(t.Context(), config(disk))
		if err != nil {
			return
		}
		// In this goroutine alone, so that the fuzzer sees the same way each time.
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		i := intent(424242)
		if err := l.Append(ended, i); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if err := l.Run(ended); err != nil {
			t.Fatal(err)
		}
		after, err := ledger.Verify(t.Context(), disk, dir, nil)
		if err != nil || verifyErr == nil && len(before.Findings) == 0 && len(after.Findings) > 0 {
			t.Fatalf("verified before (%+v), and not after: %+v, %v", before, after, err)
		}
		if got := query(t, disk, ledger.Filter{Serial: i.Serial}); len(got) != 1 {
			t.Fatalf("the new record was found %d times", len(got))
		}
	})
}

func put(t testing.TB, fsys durable.FS, name string, data []byte) {
	t.Helper()
	file, err := fsys.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
}

// FuzzRefusals gives any bytes for a file of refusals: queries end.
func FuzzRefusals(f *testing.F) {
	f.Add([]byte{5, 1, 0, 0, 0, 2, 0, 0, 0, 0, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		disk := faultfs.Memory()
		if err := disk.MkdirAll(dir); err != nil {
			t.Fatal(err)
		}
		put(t, disk, dir+"/refusals-0001", data)
		n := 0
		for range ledger.Query(t.Context(), disk, dir, ledger.Filter{}) {
			if n++; n > len(data) {
				t.Fatal("there is no end")
			}
		}
	})
}

// BenchmarkVerify reads a whole segment of 64 MiB and checks every promise.
func BenchmarkVerify(b *testing.B) {
	fsys, records := full(b)
	b.ResetTimer()
	for b.Loop() {
		report, err := ledger.Verify(b.Context(), fsys, dir, nil)
		if err != nil || len(report.Findings) > 0 {
			b.Fatal(err, report.Findings)
		}
	}
	b.ReportMetric(float64(records)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkQuery looks for things in a segment of 64 MiB.
func BenchmarkQuery(b *testing.B) {
	fsys, records := full(b)
	for name, filter := range map[string]ledger.Filter{
		"serial":   {Serial: serialOf(4711)},
		"identity": {Identity: "spiffe://cluster.local/ns/demo/sa/none"},
		"pod":      {Pod: "demo/none"},
		"future":   {Since: time.Now().Add(time.Hour)},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				for _, err := range ledger.Query(b.Context(), fsys, dir, filter) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(records)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// full is a ledger on disk whose first segment is full.
func full(b *testing.B) (fsys durable.FS, records int) {
	b.Helper()
	fsys = durable.OS(b.TempDir())
	cfg := config(fsys)
	cfg.Segment, cfg.MaxBytes = ledger.DefaultSegment, 8<<30
	l, stop := start(b, cfg)
	for n := 0; ; n += 500 {
		done := make(chan error, 500)
		for i := range 500 {
			go func() {
				in := intent(n + i)
				in.Serial = serialOf(n + i)
				done <- l.Append(context.Background(), in)
			}()
		}
		for range 500 {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
		if _, err := durable.Read(fsys, dir+"/00000002.seg", 1<<30); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			b.Fatal(err)
		}
	}
	if err := stop(); err != nil {
		b.Fatal(err)
	}
	report, err := ledger.Verify(b.Context(), fsys, dir, nil)
	if err != nil {
		b.Fatal(err)
	}
	return fsys, int(report.Records)
}

// serialOf is a serial like a real one: no two begin alike.
func serialOf(n int) string {
	sum := sha256.Sum256([]byte(strconv.Itoa(n)))
	return hex.EncodeToString(sum[:16])
}
