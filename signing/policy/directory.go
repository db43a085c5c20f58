package policy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// defaultEvery is how often the folder is read. A change counts once two
	// readings agree, so it holds within 2 s.
	defaultEvery = time.Second
	// maxEntries bounds how many names of a folder are looked at.
	maxEntries = 4096
)

// DirectoryConfig is what [OpenDirectory] needs. Dir and Log are required.
type DirectoryConfig struct {
	Dir        string
	Every      time.Duration // between readings; 1 s by default
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Directory follows a folder of policies: all files *.yaml and *.yml in it,
// links followed, names that begin with a dot left out.
//
// The content is compared, not times or names, so that the swap of links by
// which a mounted ConfigMap changes is seen like an edit. New content counts
// when two readings in a row agree: a file that is being written is not taken
// for a broken one. Where the folder, or a file in it, can no longer be read,
// the last set stays in force, and that is said in the log, in the metrics and
// in [Directory.Problems]; what could not be read from the start names
// everything, and denies it.
type Directory struct {
	cfg     DirectoryConfig
	set     atomic.Pointer[Set]
	lost    atomic.Pointer[Problem]
	metrics directoryMetrics

	// Only [Directory.Run] touches these.
	current, seen [sha256.Size]byte

	mu   sync.Mutex // guards subs
	subs []func()
}

type directoryMetrics struct {
	policies *prometheus.GaugeVec
	readable prometheus.Gauge
	reloads  prometheus.Counter
}

// OpenDirectory reads the folder once. It fails for a wrong cfg only: a folder
// that cannot be read is a [Set] that denies everything.
func OpenDirectory(cfg DirectoryConfig) (*Directory, error) {
	if cfg.Dir == "" || cfg.Log == nil {
		return nil, errors.New("opening policies: folder and log are required")
	}
	if cfg.Every <= 0 {
		cfg.Every = defaultEvery
	}
	d := &Directory{cfg: cfg, metrics: directoryMetrics{
		policies: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "hallmark_image_policies", Help: "Image policies in force, by whether they can be used. An unusable one denies what it names."}, []string{"state"}),
		readable: prometheus.NewGauge(prometheus.GaugeOpts{Name: "hallmark_image_policies_readable", Help: "1 while the folder of policies can be read; at 0 the last ones stay in force."}),
		reloads:  prometheus.NewCounter(prometheus.CounterOpts{Name: "hallmark_image_policy_changes_total", Help: "Changes of the policies that were taken over."}),
	}}
	if cfg.Registerer != nil {
		for _, c := range []prometheus.Collector{d.metrics.policies, d.metrics.readable, d.metrics.reloads} {
			if err := cfg.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("opening policies: registering metrics: %w", err)
			}
		}
	}
	files, sum, err := d.read()
	if err != nil {
		files = []File{{Name: filepath.Base(cfg.Dir), Err: err}}
		d.lose(err)
	} else {
		d.metrics.readable.Set(1)
		d.current = sum
	}
	d.install(Compile(files))
	return d, nil
}

// Set returns the policies in force.
func (d *Directory) Set() *Set { return d.set.Load() }

// Problems returns what is wrong or odd about the policies in force, and
// whether the folder can still be read.
func (d *Directory) Problems() []Problem {
	problems := d.Set().Problems()
	if p := d.lost.Load(); p != nil {
		problems = append([]Problem{*p}, problems...)
	}
	return problems
}

// Subscribe calls fn after each change of the set. fn runs on the goroutine of
// [Directory.Run] and MUST return at once.
func (d *Directory) Subscribe(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.subs = append(d.subs, fn)
}

// Run follows the folder until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	tick := time.NewTicker(d.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			d.poll()
		}
	}
}

func (d *Directory) poll() {
	files, sum, err := d.read()
	if err != nil {
		d.seen = [sha256.Size]byte{}
		d.lose(err)
		return
	}
	d.find()
	if sum == d.current || sum != d.seen {
		d.seen = sum
		return
	}
	d.current = sum
	set := Compile(files)
	d.install(set)
	d.metrics.reloads.Inc()
	d.mu.Lock()
	subs := d.subs
	d.mu.Unlock()
	for _, fn := range subs {
		fn()
	}
}

func (d *Directory) install(set *Set) {
	old := d.set.Swap(set)
	unusable := 0
	for _, p := range set.policies {
		if p.unusable != "" {
			unusable++
		}
	}
	d.metrics.policies.WithLabelValues("usable").Set(float64(len(set.policies) - unusable))
	d.metrics.policies.WithLabelValues("unusable").Set(float64(unusable))
	for _, p := range set.problems {
		if p.Warning {
			d.cfg.Log.Warn("image policy is odd", "problem", p.String())
		} else {
			d.cfg.Log.Error("image policy cannot be used: it denies every image that it names", "problem", p.String())
		}
	}
	if old != nil {
		d.cfg.Log.Info("image policies changed", "policies", len(set.policies), "unusable", unusable, "hash", set.hash.String())
	}
}

// lose says once that the folder cannot be read.
func (d *Directory) lose(err error) {
	d.metrics.readable.Set(0)
	problem := &Problem{File: d.cfg.Dir, Text: "it cannot be read: " + err.Error(), Mend: "bring the folder back; the last policies stay in force"}
	if d.set.Load() == nil {
		problem.Mend = "make the folder readable; until then every image is denied"
	}
	if d.lost.Swap(problem) == nil {
		d.cfg.Log.Error("image policies cannot be read", "problem", problem.String())
	}
}

func (d *Directory) find() {
	d.metrics.readable.Set(1)
	if d.lost.Swap(nil) != nil {
		d.cfg.Log.Info("image policies can be read again", "dir", d.cfg.Dir)
	}
}

// read returns the files and a hash of their names and content.
func (d *Directory) read() ([]File, [sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	names, err := d.list()
	if err != nil {
		return nil, sum, err
	}
	h := sha256.New()
	var files []File
	total := 0
	for _, name := range names {
		data, err := readFile(filepath.Join(d.cfg.Dir, name))
		if errors.Is(err, fs.ErrNotExist) && !linked(filepath.Join(d.cfg.Dir, name)) {
			continue // gone since the folder was listed
		}
		if err != nil {
			return nil, sum, fmt.Errorf("reading policies: %w", err)
		}
		if total += len(data); total > MaxAll {
			return nil, sum, fmt.Errorf("reading policies: the files are larger than %d MiB together", MaxAll>>20)
		}
		fmt.Fprintf(h, "%q %d\n", name, len(data))
		h.Write(data)
		files = append(files, File{Name: name, Data: data})
	}
	h.Sum(sum[:0])
	return files, sum, nil
}

func (d *Directory) list() ([]string, error) {
	dir, err := os.Open(d.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("reading policies: %w", err)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading policies: %w", err)
	}
	if len(entries) > maxEntries {
		return nil, fmt.Errorf("reading policies: more than %d files in the folder", maxEntries)
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || !strings.HasSuffix(name, ".yaml") && !strings.HasSuffix(name, ".yml") {
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// linked tells whether there is a link at path, be it to nothing: its policies
// are not gone, they cannot be read.
func linked(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// readFile reads one file, a byte more than is allowed at most, so that what is
// too large shows.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for its writer
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFile+1))
}
