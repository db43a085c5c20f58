package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
)

// each runs a test on the real file system and on that of the tests: they must
// not differ.
func each(t *testing.T, test func(*testing.T, durable.FS)) {
	t.Run("os", func(t *testing.T) { test(t, durable.OS(filepath.Join(t.TempDir(), "state"))) })
	t.Run("faultfs", func(t *testing.T) { test(t, faultfs.New()) })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilesOfEveryFS(t *testing.T) {
	each(t, func(t *testing.T, fsys durable.FS) {
		must(t, fsys.MkdirAll("a/b"))
		must(t, fsys.MkdirAll("a/b")) // again
		f, err := fsys.Create("a/b/one")
		must(t, err)
		if _, err := fsys.Create("a/b/one"); !errors.Is(err, fs.ErrExist) {
			t.Errorf("second create = %v, want ErrExist", err)
		}
		_, err = f.WriteAt([]byte("world"), 6)
		must(t, err)
		_, err = f.WriteAt([]byte("hello"), 0)
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
		must(t, fsys.Rename("a/b/one", "a/b/two"))
		must(t, fsys.SyncDir("a/b"))
		data, err := durable.Read(fsys, "a/b/two", 100)
		must(t, err)
		if string(data) != "hello\x00world" {
			t.Errorf("read %q", data)
		}
		if _, err := durable.Read(fsys, "a/b/two", 10); err == nil {
			t.Error("a file beyond the limit was read")
		}
		r, err := fsys.Open("a/b/two")
		must(t, err)
		defer r.Close()
		if _, err := r.WriteAt([]byte("x"), 0); err == nil {
			t.Error("a file open for reading took a write")
		}
		names, err := fsys.List("a/b")
		must(t, err)
		if d := cmp.Diff([]string{"two"}, names); d != "" {
			t.Error(d)
		}
		must(t, fsys.Remove("a/b/two"))
		if _, err := fsys.Open("a/b/two"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open of a removed file = %v", err)
		}
		if err := fsys.Remove("a/b/two"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("second remove = %v", err)
		}
		if err := fsys.Rename("a/b/two", "a/b/three"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("rename of a missing file = %v", err)
		}
		if names, err := fsys.List("nothing"); len(names) > 0 || err != nil {
			t.Errorf("list of a missing folder = %v, %v", names, err)
		}
	})
}

func TestSameFollowsTheName(t *testing.T) {
	each(t, func(t *testing.T, fsys durable.FS) {
		must(t, fsys.MkdirAll("d"))
		f, err := fsys.Create("d/f")
		must(t, err)
		same := func(want bool) {
			t.Helper()
			if got, err := fsys.Same("d/f", f); got != want || err != nil {
				t.Errorf("same = %v, %v, want %v", got, err, want)
			}
		}
		same(true)
		must(t, fsys.Rename("d/f", "d/away"))
		same(false)
		must(t, fsys.Rename("d/away", "d/f"))
		same(true)
		must(t, durable.Replace(fsys, "d/f", nil))
		same(false)
		must(t, fsys.Remove("d/f"))
		same(false)
		must(t, f.Close())
	})
}

func TestLockIsForOne(t *testing.T) {
	each(t, func(t *testing.T, fsys durable.FS) {
		must(t, fsys.MkdirAll("."))
		lock, err := fsys.Lock("lock")
		must(t, err)
		if _, err := fsys.Lock("lock"); !errors.Is(err, durable.ErrLocked) {
			t.Errorf("second lock = %v, want ErrLocked", err)
		}
		must(t, lock.Close())
		lock, err = fsys.Lock("lock")
		must(t, err)
		must(t, lock.Close())
	})
}

func TestWriteNewNeverReplaces(t *testing.T) {
	each(t, func(t *testing.T, fsys durable.FS) {
		must(t, fsys.MkdirAll("."))
		must(t, durable.WriteNew(fsys, "root.pem", []byte("first")))
		if err := durable.WriteNew(fsys, "root.pem", []byte("second")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("second write = %v, want ErrExist", err)
		}
		data, err := durable.Read(fsys, "root.pem", 100)
		must(t, err)
		if string(data) != "first" {
			t.Errorf("content is %q", data)
		}
	})
}

func TestFilesAndFoldersAreForTheirOwnerAlone(t *testing.T) {
	root := filepath.Join(t.TempDir(), "state")
	fsys := durable.OS(root)
	must(t, fsys.MkdirAll("keys"))
	must(t, durable.Replace(fsys, "keys/root.pem", []byte("sealed")))
	for name, want := range map[string]fs.FileMode{".": 0o700, "keys": 0o700, "keys/root.pem": 0o600} {
		info, err := os.Stat(filepath.Join(root, name))
		must(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
	}
}

// Replace is checked at every cut: the file is whole, old or new, and new once
// the caller was told so.
func TestReplaceLeavesOldOrNewAtEveryCut(t *testing.T) {
	disk := faultfs.New()
	must(t, disk.MkdirAll("d"))
	contents := []string{"", "first", "second, and longer than one sector: " + string(make([]byte, 3*faultfs.SectorSize)), "third"}
	told := []int{0} // operations after which contents[i] had been reported durable
	for _, c := range contents[1:] {
		must(t, durable.Replace(disk, "d/f", []byte(c)))
		told = append(told, disk.Ops())
	}
	images := 0
	for cut := range disk.Cuts() {
		for name, image := range cut.Images(64) {
			images++
			data, err := durable.Read(image, "d/f", 1<<20)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			oldest := 0
			for i, at := range told {
				if at <= cut.After {
					oldest = i
				}
			}
			found := -1
			for i, c := range contents {
				if i >= oldest && i <= oldest+1 && c == string(data) {
					found = i
				}
			}
			if found < 0 {
				t.Errorf("cut after %v, %s: %d bytes %.20q, neither content %d nor the next", cut.Last, name, len(data), data, oldest)
			}
			must(t, image.MkdirAll("d"))
			must(t, durable.Replace(image, "d/f", []byte("after"))) // what a cut leaves is in nobody's way
		}
	}
	if images < 100 {
		t.Errorf("only %d images were seen", images)
	}
}

// A failed step of Replace leaves the old content, or says that it may not.
func TestReplaceFailsHonestly(t *testing.T) {
	for n := 0; ; n++ {
		for _, done := range []bool{false, true} {
			disk := faultfs.New()
			must(t, disk.MkdirAll("d"))
			must(t, durable.Replace(disk, "d/f", []byte("old")))
			start, hit := disk.Ops(), false
			disk.Inject = func(op faultfs.Op) *faultfs.Fault {
				if op.N != start+n {
					return nil
				}
				hit = true
				return &faultfs.Fault{Err: syscall.EIO, Done: done, Short: 1}
			}
			err := durable.Replace(disk, "d/f", []byte("new"))
			if !hit {
				if n < 5 {
					t.Fatalf("Replace has only %d steps", n)
				}
				return
			}
			if !errors.Is(err, syscall.EIO) {
				t.Fatalf("step %d failed, and Replace said %v", n, err)
			}
			var unknown *durable.UnknownError
			data, _ := durable.Read(disk, "d/f", 100)
			if string(data) != "old" && !errors.As(err, &unknown) {
				t.Errorf("step %d (done %t): the content is %q, and the error says nothing of it: %v", n, done, data, err)
			}
		}
	}
}
