// Package durable is the file layer under journal, ledger and keys: the few
// operations they need, each saying when its effect survives a power cut, and
// the seam at which tests cut the power.
//
// Names are slash-separated, clean paths below the root of an [FS]. What the
// package promises is what POSIX promises: data written to a file is durable
// after its Sync, a name after SyncDir of its folder. Nothing is retried here:
// after a failed Sync the kernel may have dropped the pages, and a second one
// would report a success that means nothing.
//
// The package decides nothing about formats, and keeps no state: what is safe to
// use from several goroutines is said at each type. Package faultfs, below it,
// is the file system of tests: it fails at a chosen operation, and shows what a
// power cut could have left.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
)

// FS is a folder of files. All methods are safe for concurrent use.
type FS interface {
	// Open opens an existing file for reading.
	Open(name string) (File, error)
	// Create makes a new file, mode 0600, and opens it for reading and writing.
	// One that exists is [fs.ErrExist].
	Create(name string) (File, error)
	// OpenWrite opens an existing file for reading and writing.
	OpenWrite(name string) (File, error)
	// Rename replaces to by from in one step. It is durable after SyncDir.
	Rename(from, to string) error
	// Remove removes a file. It is durable after SyncDir.
	Remove(name string) error
	// SyncDir makes the names in dir durable.
	SyncDir(dir string) error
	// MkdirAll makes dir, mode 0700, and every folder above it, durable on
	// return. The root of the FS is made too.
	MkdirAll(dir string) error
	// List returns the names of the files in dir, sorted. A missing dir has none.
	List(dir string) ([]string, error)
	// Same tells whether name still is the file f, which this FS has opened: it
	// is not once that was removed, moved, or another put in its place.
	Same(name string, f File) (bool, error)
	// Lock takes the lock file name for this process alone, without waiting;
	// [ErrLocked] if another has it. It ends with the process or with Close.
	Lock(name string) (io.Closer, error)
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes all data written so far durable (fdatasync).
	Sync() error
	// Size returns the length in bytes.
	Size() (int64, error)
}

// ErrLocked says that another process holds the lock.
var ErrLocked = errors.New("another process holds the lock")

// UnknownError says that a step failed after its effect may have become
// visible: whether it is durable is not known until the file is read again.
type UnknownError struct{ Err error }

// Error returns the whole text.
func (e *UnknownError) Error() string { return "outcome unknown: " + e.Err.Error() }

// Unwrap returns the failure.
func (e *UnknownError) Unwrap() error { return e.Err }

// Read returns the whole of a file of at most limit bytes.
func Read(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if size > limit {
		return nil, fmt.Errorf("reading %s: %d bytes, at most %d are allowed", name, size, limit)
	}
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return data, nil
}

// Replace puts data under name in one step, durable on return: before, a cut
// leaves the old content, never a part of the new one. An [*UnknownError] says
// that the new content is visible, and perhaps not durable.
func Replace(fsys FS, name string, data []byte) error {
	temp := name + ".new"
	if err := fsys.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replacing %s: %w", name, err)
	}
	if err := write(fsys, temp, data); err != nil {
		return fmt.Errorf("replacing %s: %w", name, err)
	}
	// A cut here leaves a whole temporary file that nobody reads.
	if err := fsys.Rename(temp, name); err != nil {
		return fmt.Errorf("replacing %s: %w", name, &UnknownError{err})
	}
	if err := fsys.SyncDir(path.Dir(name)); err != nil {
		return fmt.Errorf("replacing %s: %w", name, &UnknownError{err})
	}
	return nil
}

// WriteNew makes a file that must not exist yet, durable on return.
func WriteNew(fsys FS, name string, data []byte) error {
	f, err := fsys.Open(name)
	switch {
	case err == nil:
		f.Close()
		return fmt.Errorf("writing %s: %w", name, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist): // it may be there
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return Replace(fsys, name, data)
}

func write(fsys FS, name string, data []byte) error {
	f, err := fsys.Create(name)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
