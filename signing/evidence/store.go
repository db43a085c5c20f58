package evidence

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
)

const (
	fileVersion = 1
	fileSuffix  = ".evidence.json"
	tempPattern = "incoming-*"
	tempPrefix  = "incoming-"
	// maxFile is above what Check allows, in base64, with everything around it.
	maxFile = 2 * (MaxManifestBytes + MaxSignatures)
	// A touch is written to disk at most this often for a file: it only has to
	// be right to a small part of Keep.
	touchEvery = time.Minute
	pruneEvery = 10 * time.Minute
)

// StoreConfig is what a [Store] needs. All fields must be set.
type StoreConfig struct {
	Dir        string        // made if it is missing, mode 0700
	Keep       time.Duration // how long evidence stays that no pod runs
	MaxBytes   int64         // of all files together
	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
}

// Store keeps evidence on disk, a file for each subject. Nothing that lies
// there is trusted: it is checked whenever it is read.
type Store struct {
	cfg     StoreConfig
	started time.Time
	m       storeMetrics

	mu    sync.Mutex // guards files, bytes, and what is renamed or removed in Dir
	files map[string]file
	bytes int64
}

type file struct {
	size int64
	used time.Time // also the file's modification time, to within touchEvery
}

// stored is the form on disk.
type stored struct {
	Version  int       `json:"version"`
	Evidence *Evidence `json:"evidence"`
}

// NewStore opens the folder and learns what lies there.
func NewStore(cfg StoreConfig) (*Store, error) {
	if cfg.Keep <= 0 || cfg.MaxBytes <= 0 {
		return nil, errors.New("opening the evidence store: Keep and MaxBytes must be positive")
	}
	s := &Store{cfg: cfg, started: cfg.Now(), files: map[string]file{}}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the evidence store: %w", err)
	}
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the evidence store: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			// What an earlier process did not finish; nobody reads it.
			if err := os.Remove(filepath.Join(cfg.Dir, e.Name())); err != nil {
				return nil, fmt.Errorf("opening the evidence store: %w", err)
			}
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, fmt.Errorf("opening the evidence store: %w", err)
		}
		if info.Mode().IsRegular() && strings.HasSuffix(e.Name(), fileSuffix) {
			s.files[e.Name()] = file{size: info.Size(), used: info.ModTime()}
			s.bytes += info.Size()
		}
	}
	if err := s.m.register(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("opening the evidence store: %w", err)
	}
	s.m.set(s)
	return s, nil
}

// name is the file of a subject: a hash, so that no text from outside becomes
// part of a path.
func name(s Subject) string {
	sum := sha256.Sum256([]byte(s.Repository + "\x00" + s.Digest))
	return hex.EncodeToString(sum[:]) + fileSuffix
}

// Get returns what is kept of the subject, checked anew. A file that does not
// hold (damaged, forged, of another subject or version) counts as absent and is
// removed.
func (s *Store) Get(subject Subject) (*Evidence, bool) {
	n := name(subject)
	s.mu.Lock()
	_, known := s.files[n]
	s.mu.Unlock()
	if !known {
		return nil, false
	}
	e, err := s.read(n, subject)
	if err == nil {
		return e, true
	}
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		if errors.Is(err, fs.ErrNotExist) {
			s.forget(n)
		} else {
			s.cfg.Log.Error("evidence on disk cannot be read", "image", subject.String(), "error", err)
		}
		return nil, false
	}
	// A Put may have replaced the file meanwhile: what is removed must be what
	// is wrong.
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, again := s.read(n, subject); again == nil {
		return e, true
	}
	s.cfg.Log.Error("evidence on disk does not hold and was dropped", "image", subject.String(), "error", attest.Escape(err.Error()))
	s.remove(n, "corrupt")
	return nil, false
}

func (s *Store) read(n string, subject Subject) (*Evidence, error) {
	f, err := os.Open(filepath.Join(s.cfg.Dir, n))
	if err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	return decode(data, subject)
}

// decode reads the form on disk, and proves that it is the subject's.
func decode(data []byte, subject Subject) (*Evidence, error) {
	if len(data) > maxFile {
		return nil, errors.New("reading evidence: the file is too large")
	}
	var f stored
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	if f.Version != fileVersion || f.Evidence == nil {
		return nil, fmt.Errorf("reading evidence: the file is of version %d, not %d", f.Version, fileVersion)
	}
	if f.Evidence.Subject != subject {
		return nil, errors.New("reading evidence: the file is another image's")
	}
	if err := f.Evidence.Check(); err != nil {
		return nil, err
	}
	return f.Evidence, nil
}

// Put keeps the evidence in place of what there was of its subject. It is
// durable on return, and counts as just used.
func (s *Store) Put(e *Evidence) error {
	if err := e.Check(); err != nil {
		return fmt.Errorf("keeping evidence: %w", err)
	}
	data, err := json.Marshal(stored{Version: fileVersion, Evidence: e})
	if err != nil {
		return fmt.Errorf("keeping evidence: %w", err)
	}
	if int64(len(data)) > s.cfg.MaxBytes {
		return fmt.Errorf("keeping evidence of %s: %d bytes, and the store may have %d", e.Subject, len(data), s.cfg.MaxBytes)
	}
	now := s.cfg.Now()
	temp, err := s.writeTemp(data, now)
	if err != nil {
		return fmt.Errorf("keeping evidence: %w", err)
	}
	n := name(e.Subject)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(temp, filepath.Join(s.cfg.Dir, n)); err != nil {
		return errors.Join(fmt.Errorf("keeping evidence: %w", err), os.Remove(temp))
	}
	s.bytes += int64(len(data)) - s.files[n].size
	s.files[n] = file{size: int64(len(data)), used: now}
	s.makeRoom(n)
	s.m.set(s)
	if err := syncDir(s.cfg.Dir); err != nil {
		return fmt.Errorf("keeping evidence: %w", err)
	}
	return nil
}

func (s *Store) writeTemp(data []byte, now time.Time) (string, error) {
	f, err := os.CreateTemp(s.cfg.Dir, tempPattern) // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Chtimes(f.Name(), now, now)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Touch says that a pod runs the subject: its evidence stays for Keep from now.
func (s *Store) Touch(subject Subject) {
	now, n := s.cfg.Now(), name(subject)
	s.mu.Lock()
	defer s.mu.Unlock()
	f, known := s.files[n]
	if !known || now.Sub(f.used) < touchEvery {
		return
	}
	// The file's time carries it over a restart. Where it cannot be set, the
	// memory of this process still holds it.
	if err := os.Chtimes(filepath.Join(s.cfg.Dir, n), now, now); err != nil {
		s.cfg.Log.Warn("marking evidence as used failed", "image", subject.String(), "error", err)
	}
	f.used = now
	s.files[n] = f
}

// Run removes what nobody needs, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(min(pruneEvery, max(s.cfg.Keep/4, time.Second)))
	defer tick.Stop()
	for {
		s.prune()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// prune removes what nobody touched for Keep. The time before this process
// started does not count: while it was down, nobody could touch anything.
func (s *Store) prune() {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, f := range s.files {
		last := f.used
		if last.Before(s.started) {
			last = s.started
		}
		if now.Sub(last) > s.cfg.Keep {
			s.remove(n, "unused")
		}
	}
	s.makeRoom("")
	s.m.set(s)
}

// makeRoom removes the least recently used until all are within MaxBytes, but
// never the file named. s.mu is held.
func (s *Store) makeRoom(but string) {
	for s.bytes > s.cfg.MaxBytes {
		oldest := ""
		for n, f := range s.files {
			if n != but && (oldest == "" || f.used.Before(s.files[oldest].used)) {
				oldest = n
			}
		}
		if oldest == "" {
			return
		}
		s.cfg.Log.Warn("evidence was dropped for lack of room", "file", oldest, "bytes", s.files[oldest].size)
		s.remove(oldest, "space")
	}
}

// remove drops a file. s.mu is held. What cannot be removed is not counted any
// more either: it will be found at the next start.
func (s *Store) remove(n, cause string) {
	if err := os.Remove(filepath.Join(s.cfg.Dir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.cfg.Log.Error("removing evidence failed", "file", n, "error", err)
	}
	s.bytes -= s.files[n].size
	delete(s.files, n)
	s.m.dropped.WithLabelValues(cause).Inc()
	s.m.set(s)
}

// forget drops what somebody else removed.
func (s *Store) forget(n string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := os.Stat(filepath.Join(s.cfg.Dir, n)); err == nil {
		return // put back meanwhile
	}
	s.bytes -= s.files[n].size
	delete(s.files, n)
	s.m.set(s)
}

type storeMetrics struct {
	files, bytes prometheus.Gauge
	dropped      *prometheus.CounterVec
}

func (m *storeMetrics) register(r prometheus.Registerer) error {
	m.files = prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_evidence_files", Help: "Images whose evidence is on disk."})
	m.bytes = prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_evidence_bytes", Help: "Size of all evidence on disk."})
	m.dropped = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hallmark_evidence_dropped_total", Help: "Evidence removed from disk: unused, for lack of space, or corrupt."}, []string{"cause"})
	for _, cause := range []string{"unused", "space", "corrupt"} {
		m.dropped.WithLabelValues(cause)
	}
	for _, c := range []prometheus.Collector{m.files, m.bytes, m.dropped} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// set shows the state. s.mu is held, or nobody knows s yet.
func (m *storeMetrics) set(s *Store) {
	m.files.Set(float64(len(s.files)))
	m.bytes.Set(float64(s.bytes))
}
