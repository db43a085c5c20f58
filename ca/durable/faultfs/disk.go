// Package faultfs is a [durable.FS] in memory for tests. It records every
// operation that changes something, can make any of them fail, and shows every
// disk that a power cut could have left: what was synced is there, and of what
// was not, any part may be, sector by sector and name by name.
//
// It is stricter than real disks where they differ: the unsynced changes of
// names in a folder survive or not independently, and after a failed Sync the
// data of that file is in the cache and perhaps on the disk, but no later Sync
// makes it durable unless it is written again.
//
// A [Disk] is safe for concurrent use, a [Cut] is not.
package faultfs

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"sync"

	"github.com/hallmark-ca/hallmark/ca/durable"
)

// Kind is what an operation does.
type Kind string

// The kinds of operations that change something.
const (
	Create  Kind = "create"
	Write   Kind = "write"
	Sync    Kind = "sync"
	Rename  Kind = "rename"
	Remove  Kind = "remove"
	SyncDir Kind = "syncdir"
	Mkdir   Kind = "mkdir"
)

// Op is one operation.
type Op struct {
	N      int // from 0
	Kind   Kind
	Name   string // the name under which the file was opened; for Rename, the new one
	Offset int64  // of a Write
	Size   int    // of a Write, in bytes
}

// String returns the operation as one would call it.
func (o Op) String() string {
	if o.Kind == Write {
		return fmt.Sprintf("%d: write %s [%d:%d]", o.N, o.Name, o.Offset, o.Offset+int64(o.Size))
	}
	return fmt.Sprintf("%d: %s %s", o.N, o.Kind, o.Name)
}

// Fault is how an operation fails.
type Fault struct {
	Err error
	// Done: it took effect all the same.
	Done bool
	// Short is how many bytes of a Write took effect.
	Short int
}

// Disk is the file system. Make one with [New].
type Disk struct {
	// Inject, where set, is asked before each operation; nil lets it pass. It
	// is set before the first use and MUST NOT use the Disk.
	Inject func(Op) *Fault

	mu     sync.Mutex // guards all below
	now    *state
	base   *state // as it was when recording began
	log    []entry
	record bool
	ops    int
	locks  map[string]bool
}

// entry is an operation as it was carried out.
type entry struct {
	Op
	inode  int
	from   string
	data   []byte // of a Write, what took effect
	failed bool   // a Sync that made nothing durable
}

// New returns an empty disk that records from the start.
func New() *Disk {
	d := newDisk(newState())
	d.record = true
	return d
}

// Memory returns an empty disk that records nothing and has no cuts: for
// benchmarks, and for tests of what is not about failures. A file that is
// replaced or removed is gone also for those who have it open.
func Memory() *Disk {
	s := newState()
	s.plain = true
	return newDisk(s)
}

func newDisk(s *state) *Disk {
	return &Disk{now: s, base: s.clone(), locks: map[string]bool{}}
}

// Reopen returns the disk as the next process on the same machine finds it: no
// power was cut, so everything written is there, synced or not. It records from
// there on. What still runs on d changes nothing of it.
func (d *Disk) Reopen() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := newDisk(d.now.clone())
	next.record = d.record
	return next
}

// Ops returns how many operations were begun so far.
func (d *Disk) Ops() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// Log returns the operations recorded so far that took effect.
func (d *Disk) Log() []Op {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]Op, len(d.log))
	for i, e := range d.log {
		out[i] = e.Op
	}
	return out
}

// do carries e out, or fails it. The caller holds d.mu.
func (d *Disk) do(e entry) error {
	e.N = d.ops
	d.ops++
	var fault *Fault
	if d.Inject != nil {
		fault = d.Inject(e.Op)
	}
	switch {
	case fault == nil || fault.Done:
	case e.Kind == Write:
		e.data = e.data[:min(fault.Short, len(e.data))]
	case e.Kind == Sync:
		e.failed = true
	default:
		return fault.Err
	}
	if d.record {
		e.data = slices.Clone(e.data)
		d.log = append(d.log, e)
	}
	d.now.apply(e)
	if fault != nil {
		return fault.Err
	}
	return nil
}

func (d *Disk) open(name string) (durable.File, error) {
	inode, ok := d.now.names[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &file{d: d, name: name, inode: inode}, nil
}

// Open implements [durable.FS].
func (d *Disk) Open(name string) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.open(name)
	if err != nil {
		return nil, err
	}
	f.(*file).readOnly = true
	return f, nil
}

// OpenWrite implements [durable.FS].
func (d *Disk) OpenWrite(name string) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open(name)
}

// Create implements [durable.FS].
func (d *Disk) Create(name string) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.now.names[name]; ok {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	if !d.now.dirs[path.Dir(name)] {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrNotExist}
	}
	if err := d.do(entry{Op: Op{Kind: Create, Name: name}, inode: d.now.next}); err != nil {
		return nil, err
	}
	return d.open(name)
}

// Rename implements [durable.FS].
func (d *Disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	inode, ok := d.now.names[from]
	if !ok {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	return d.do(entry{Op: Op{Kind: Rename, Name: to}, from: from, inode: inode})
}

// Remove implements [durable.FS].
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	inode, ok := d.now.names[name]
	if !ok {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	return d.do(entry{Op: Op{Kind: Remove, Name: name}, inode: inode})
}

// SyncDir implements [durable.FS].
func (d *Disk) SyncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.do(entry{Op: Op{Kind: SyncDir, Name: path.Clean(dir)}})
}

// MkdirAll implements [durable.FS].
func (d *Disk) MkdirAll(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now.dirs[path.Clean(dir)] {
		return nil
	}
	return d.do(entry{Op: Op{Kind: Mkdir, Name: path.Clean(dir)}})
}

// List implements [durable.FS].
func (d *Disk) List(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for name := range maps.Keys(d.now.names) {
		if path.Dir(name) == path.Clean(dir) {
			out = append(out, path.Base(name))
		}
	}
	slices.Sort(out)
	return out, nil
}

// Same implements [durable.FS].
func (d *Disk) Same(name string, f durable.File) (bool, error) {
	open, ok := f.(*file)
	if !ok || open.d != d {
		return false, fmt.Errorf("comparing %s: the file was opened elsewhere", name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	inode, there := d.now.names[name]
	return there && inode == open.inode, open.usable(false)
}

// Lock implements [durable.FS].
func (d *Disk) Lock(name string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locks[name] {
		return nil, fmt.Errorf("taking lock %s: %w", name, durable.ErrLocked)
	}
	d.locks[name] = true
	return unlock{d, name}, nil
}

type unlock struct {
	d    *Disk
	name string
}

func (u unlock) Close() error {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	delete(u.d.locks, u.name)
	return nil
}

// file is an open file.
type file struct {
	d        *Disk
	name     string
	inode    int
	readOnly bool
	closed   bool // guarded by d.mu
}

func (f *file) usable(write bool) error {
	if f.closed {
		return fmt.Errorf("using %s: %w", f.name, fs.ErrClosed)
	}
	if write && f.readOnly {
		return fmt.Errorf("writing %s: %w", f.name, fs.ErrPermission)
	}
	return nil
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.usable(false); err != nil {
		return 0, err
	}
	live := f.d.now.inodes[f.inode].live
	if off >= int64(len(live)) {
		return 0, io.EOF
	}
	n := copy(p, live[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.usable(true); err != nil {
		return 0, err
	}
	if err := f.d.do(entry{Op: Op{Kind: Write, Name: f.name, Offset: off, Size: len(p)}, inode: f.inode, data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *file) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.usable(false); err != nil {
		return err
	}
	return f.d.do(entry{Op: Op{Kind: Sync, Name: f.name}, inode: f.inode})
}

func (f *file) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.d.now.inodes[f.inode].live)), f.usable(false)
}

func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	err := f.usable(false)
	f.closed = true
	return err
}
