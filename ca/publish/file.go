package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/bundle"
)

const (
	fileMode       = 0o644 // it is public
	readable       = 0o444
	fileCheck      = time.Minute
	fileRetryFirst = time.Second
	fileRetryLast  = time.Minute
)

// FileConfig is what [NewFile] needs. All fields are required.
type FileConfig struct {
	Path      string // absolute
	Authority *ca.Authority
	// ReadWithin is how long a reader may take to read the file again.
	ReadWithin time.Duration
	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
}

// File keeps the bundle in PEM in a file.
type File struct {
	cfg     FileConfig
	changed chan struct{} // one token
	failing prometheus.Gauge
	taken   prometheus.Counter

	mu      sync.Mutex // guards all below
	content []byte     // that is there for certain; nil: unknown
	reader  Reader
}

// NewFile checks cfg. Nothing is written before [File.Run].
func NewFile(cfg FileConfig) (*File, error) {
	if cfg.Authority == nil || cfg.Registerer == nil || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("making bundle file: authority, metrics, log and clock are required")
	}
	if !filepath.IsAbs(cfg.Path) || cfg.ReadWithin <= 0 {
		return nil, errors.New("making bundle file: an absolute path and the time of its readers are required")
	}
	f := &File{
		cfg: cfg, changed: make(chan struct{}, 1),
		failing: prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_bundle_file_failing", Help: "1 while the bundle file could not be written, else 0."}),
		taken:   prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_bundle_file_taken_back_total", Help: "How often the bundle file was changed by another hand, and written anew."}),
		reader:  Reader{Name: "file " + cfg.Path, Problem: "not written yet"},
	}
	for _, c := range []prometheus.Collector{f.failing, f.taken} {
		if err := cfg.Registerer.Register(c); err != nil {
			return nil, fmt.Errorf("making bundle file: %w", err)
		}
	}
	return f, nil
}

// Report tells what the readers of the file hold.
func (f *File) Report() []Reader {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []Reader{f.reader}
}

// Run writes the bundle whenever it changes, and whenever the file is another
// than it should be, which is looked at every minute, until ctx ends.
func (f *File) Run(ctx context.Context) error {
	f.cfg.Authority.Subscribe(func(*ca.Snapshot) {
		select {
		case f.changed <- struct{}{}:
		default: // the newest is read anyway
		}
	})
	look := time.NewTicker(fileCheck)
	defer look.Stop()
	pause := fileRetryFirst
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.changed:
		case <-look.C:
		case <-retry:
		}
		retry = nil
		snap := f.cfg.Authority.Current()
		if snap == nil {
			continue
		}
		if err := f.keep(snap); err != nil {
			f.failed(err, pause)
			retry = time.After(pause)
			pause = min(2*pause, fileRetryLast)
			continue
		}
		pause = fileRetryFirst
	}
}

// keep makes the file hold the bundle of snap, and notes since when it does.
func (f *File) keep(snap *ca.Snapshot) error {
	want := snap.BundlePEM()
	there, err := readFile(f.cfg.Path)
	right := err == nil && bytes.Equal(there, want)
	f.mu.Lock()
	known := f.content
	f.mu.Unlock()
	if right && bytes.Equal(known, want) {
		f.hold(snap, want, time.Time{})
		return nil
	}
	if !right {
		if known != nil && (err != nil || !bytes.Equal(there, known)) {
			f.taken.Inc()
			f.cfg.Log.Warn("the bundle file was changed by another hand and is written anew", "file", f.cfg.Path, "error", err)
		}
		// From here on what its readers hold is unknown until the write is durable.
		f.mu.Lock()
		if known == nil || !bytes.Equal(there, known) {
			f.content, f.reader.Sequence, f.reader.At = nil, 0, time.Time{}
		}
		f.mu.Unlock()
		err = WriteFile(f.cfg.Path, want)
	} else {
		err = syncName(f.cfg.Path) // by whoever it was written, and whether or not that was durable
	}
	if err != nil {
		return err
	}
	f.hold(snap, want, f.cfg.Now())
	f.cfg.Log.Info("bundle file holds the bundle", "file", f.cfg.Path, "sequence", snap.Sequence(), "written", !right)
	return nil
}

// hold notes that the file holds the bundle of snap since then; zero: since
// before.
func (f *File) hold(snap *ca.Snapshot, content []byte, since time.Time) {
	f.failing.Set(0)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.content, f.reader.Sequence, f.reader.Problem = content, snap.Sequence(), ""
	if !since.IsZero() {
		f.reader.At = since.Add(f.cfg.ReadWithin)
	}
}

func (f *File) failed(err error, pause time.Duration) {
	f.failing.Set(1)
	f.cfg.Log.Error("keeping the bundle file failed", "error", err, "retryIn", pause.String())
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reader.Problem = err.Error()
}

// errForeign is a file that readers would not read as ours.
var errForeign = errors.New("it is no plain file that all may read")

// readFile returns the content of a file that all may read.
func readFile(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&readable != readable {
		return nil, errForeign
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, bundle.MaxBytes+1))
}

// WriteFile puts a bundle under path in one step, durable on return: who reads
// it sees the old one or the new one, whole. Anyone may read it.
func WriteFile(path string, content []byte) error {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing bundle: %w", err)
	}
	err := writeTemp(temp, content)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return fmt.Errorf("writing bundle: %w", err)
	}
	// The new name is visible, and a power cut may still bring back the old one.
	if err := syncOpened(filepath.Dir(path)); err != nil {
		return fmt.Errorf("writing bundle: %w", err)
	}
	return nil
}

func writeTemp(name string, content []byte) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Chmod(fileMode) // whatever the umask
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// syncName makes a file and its name durable.
func syncName(path string) error {
	if err := syncOpened(path); err != nil {
		return fmt.Errorf("syncing bundle: %w", err)
	}
	return syncOpened(filepath.Dir(path))
}

// syncOpened makes durable what name stands for, a file or a folder.
func syncOpened(name string) error {
	folder, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
