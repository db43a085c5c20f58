package faultfs_test

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
)

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// contents collects what name may hold at the last cut.
func contents(disk *faultfs.Disk, name string) map[string]bool {
	out := map[string]bool{}
	for cut := range disk.Cuts() {
		clear(out)
		for _, image := range cut.Images(200) {
			data, err := durable.Read(image, name, 1<<20)
			if errors.Is(err, fs.ErrNotExist) {
				data = []byte("missing")
			}
			out[string(data)] = true
		}
	}
	return out
}

func synced(t *testing.T, disk *faultfs.Disk, content string) durable.File {
	t.Helper()
	f := must[durable.File](t)(disk.Create("f"))
	must[int](t)(f.WriteAt([]byte(content), 0))
	if err := errors.Join(f.Sync(), disk.SyncDir(".")); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSyncedIsThere(t *testing.T) {
	disk := faultfs.New()
	synced(t, disk, "x")
	if got := contents(disk, "f"); len(got) != 1 || !got["x"] {
		t.Errorf("after the sync: %v", got)
	}
}

func TestUnsyncedNameAndDataAreIndependent(t *testing.T) {
	disk := faultfs.New()
	f := must[durable.File](t)(disk.Create("f"))
	must[int](t)(f.WriteAt([]byte("x"), 0))
	if got := contents(disk, "f"); !got["missing"] || !got["x"] || !got[""] || !got["\x00"] {
		t.Errorf("with nothing synced: %v", got)
	}
}

func TestWriteTearsAtSectors(t *testing.T) {
	disk := faultfs.New()
	old := make([]byte, 2*faultfs.SectorSize)
	f := synced(t, disk, string(old))
	next := make([]byte, 2*faultfs.SectorSize)
	for i := range next {
		next[i] = 'n'
	}
	must[int](t)(f.WriteAt(next, 0))
	const s = faultfs.SectorSize
	got := contents(disk, "f")
	for _, want := range []string{string(old), string(next), string(old[:s]) + string(next[s:]), string(next[:s]) + string(old[s:])} {
		if !got[want] {
			t.Errorf("an image is missing among %d", len(got))
		}
	}
	if len(got) != 4 {
		t.Errorf("%d images, want 4", len(got))
	}
}

// After a failed sync a second one reports a success that means nothing.
func TestFailedSyncDropsPages(t *testing.T) {
	disk := faultfs.New()
	f := synced(t, disk, "old")
	fail := true
	disk.Inject = func(op faultfs.Op) *faultfs.Fault {
		if op.Kind == faultfs.Sync && fail {
			fail = false
			return &faultfs.Fault{Err: syscall.EIO}
		}
		return nil
	}
	must[int](t)(f.WriteAt([]byte("new"), 0))
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync = %v", err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if got := contents(disk, "f"); !got["old"] || !got["new"] {
		t.Errorf("after the second sync: %v", got)
	}
	must[int](t)(f.WriteAt([]byte("new"), 0))
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if got := contents(disk, "f"); len(got) != 1 || !got["new"] {
		t.Errorf("written again and synced: %v", got)
	}
}

func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault faultfs.Fault
		want  string
	}{
		{"nothing done", faultfs.Fault{Err: syscall.EIO}, ""},
		{"short", faultfs.Fault{Err: syscall.ENOSPC, Short: 2}, "he"},
		{"done all the same", faultfs.Fault{Err: syscall.EIO, Done: true}, "hello"},
	} {
		disk := faultfs.New()
		f := synced(t, disk, "")
		disk.Inject = func(faultfs.Op) *faultfs.Fault { return &tt.fault }
		if _, err := f.WriteAt([]byte("hello"), 0); !errors.Is(err, tt.fault.Err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if data := must[[]byte](t)(durable.Read(disk, "f", 10)); string(data) != tt.want {
			t.Errorf("%s: the file has %q, want %q", tt.name, data, tt.want)
		}
	}
}

// A process that died leaves the cache: it has all writes, and they are still
// not durable.
func TestReopenKeepsTheCache(t *testing.T) {
	disk := faultfs.New()
	f := synced(t, disk, "old")
	must[int](t)(f.WriteAt([]byte("new"), 0))
	next := disk.Reopen()
	must[int](t)(f.WriteAt([]byte("xxx"), 0)) // by the old process: too late
	if data := must[[]byte](t)(durable.Read(next, "f", 10)); string(data) != "new" {
		t.Errorf("the next process reads %q", data)
	}
	if got := contents(next, "f"); !got["old"] || !got["new"] || len(got) != 2 {
		t.Errorf("what the dead process wrote: %v", got)
	}
}
