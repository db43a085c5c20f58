package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OS returns the folder dir of the operating system.
func OS(dir string) FS { return osFS{dir} }

type osFS struct{ root string }

func (o osFS) at(name string) string { return filepath.Join(o.root, filepath.FromSlash(name)) }

func (o osFS) Open(name string) (File, error) { return open(o.at(name), os.O_RDONLY) }

func (o osFS) Create(name string) (File, error) {
	return open(o.at(name), os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (o osFS) OpenWrite(name string) (File, error) { return open(o.at(name), os.O_RDWR) }

func open(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (o osFS) Rename(from, to string) error { return os.Rename(o.at(from), o.at(to)) }

func (o osFS) Remove(name string) error { return os.Remove(o.at(name)) }

func (o osFS) SyncDir(dir string) error {
	d, err := os.Open(o.at(dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (o osFS) MkdirAll(dir string) error {
	missing, err := missingAbove(o.root)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.at(dir), 0o700); err != nil {
		return err
	}
	// A folder that exists may be one whose name was never made durable, by a
	// process that died: only its parents can tell, so they are synced always.
	for d := path.Clean(dir); d != "."; d = path.Dir(d) {
		if err := o.SyncDir(path.Dir(d)); err != nil {
			return err
		}
	}
	for _, d := range missing {
		if err := OS(filepath.Dir(d)).SyncDir("."); err != nil {
			return err
		}
	}
	return nil
}

// missingAbove returns dir and the folders above it that do not exist.
func missingAbove(dir string) ([]string, error) {
	dir, err := filepath.Abs(dir)
	var missing []string
	for err == nil {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			return missing, err
		}
		missing = append(missing, dir)
		dir = filepath.Dir(dir)
	}
	return nil, err
}

func (o osFS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(o.at(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (o osFS) Same(name string, f File) (bool, error) {
	there, err := os.Stat(o.at(name))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	open, ok := f.(osFile)
	if !ok {
		return false, fmt.Errorf("comparing %s: the file was opened elsewhere", name)
	}
	have, err := open.Stat()
	return err == nil && os.SameFile(there, have), err
}

func (o osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(o.at(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("taking lock %s: %w", name, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("taking lock %s: %w", name, err)
	}
	return f, nil
}

type osFile struct{ *os.File }

func (f osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
