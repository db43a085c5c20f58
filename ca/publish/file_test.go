package publish_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/publish"
)

const readWithin = 25 * time.Minute

func trustDomain(tb testing.TB) attest.TrustDomain {
	tb.Helper()
	td, err := attest.ParseTrustDomain("cluster.local")
	if err != nil {
		tb.Fatal(err)
	}
	return td
}

// scene is a file's publisher that runs, in the clock of a synctest bubble.
type scene struct {
	t         *testing.T
	authority *catest.Authority
	path      string
	file      *publish.File
	metrics   *prometheus.Registry
}

func newScene(t *testing.T, path string) *scene {
	t.Helper()
	s := &scene{t: t, authority: catest.New(t, trustDomain(t), time.Now, nil), path: path, metrics: prometheus.NewRegistry()}
	var err error
	if s.file, err = publish.NewFile(publish.FileConfig{
		Path: path, Authority: s.authority.Authority, ReadWithin: readWithin,
		Registerer: s.metrics, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.file.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the publisher ended with %v", err)
		}
	})
	synctest.Wait()
	return s
}

// pass lets d go by.
func (s *scene) pass(d time.Duration) {
	s.t.Helper()
	<-time.After(d)
	synctest.Wait()
}

// whole fails unless the file holds the bundle in force, and returns the report.
func (s *scene) whole() publish.Reader {
	s.t.Helper()
	data, err := os.ReadFile(s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	if string(data) != string(s.authority.Current().BundlePEM()) {
		s.t.Fatalf("the file holds another bundle:\n%s", data)
	}
	report := s.file.Report()
	if len(report) != 1 || report[0].Sequence != s.authority.Current().Sequence() || report[0].Problem != "" {
		s.t.Fatalf("report: %+v, want sequence %d", report, s.authority.Current().Sequence())
	}
	return report[0]
}

func (s *scene) metric(name string) float64 {
	s.t.Helper()
	families, err := s.metrics.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			m := family.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	s.t.Fatalf("there is no metric %s", name)
	return 0
}

func TestFileFollows(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bundle.pem")
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, path)
		first := s.whole()
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
			t.Errorf("mode %v (%v), want 0644", info.Mode(), err)
		}
		now := time.Now()
		if !first.At.Equal(now.Add(readWithin)) || first.Holds(first.Sequence, now) || !first.Holds(first.Sequence, first.At) || first.Holds(first.Sequence+1, first.At) {
			t.Errorf("written at %s, its readers count from %s", now, first.At)
		}

		// The bundle stays the same under a new issuing CA, and so does the time.
		s.pass(10 * time.Minute)
		s.authority.Renew(t)
		s.pass(0)
		if again := s.whole(); !again.At.Equal(first.At) {
			t.Errorf("the same content counts from %s, want %s", again.At, first.At)
		}

		s.authority.AddRoot(t)
		s.pass(0)
		if next := s.whole(); !next.At.Equal(time.Now().Add(readWithin)) {
			t.Errorf("a new content counts from %s", next.At)
		}
		if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
			t.Errorf("files are left behind: %v (%v)", entries, err)
		}
		if s.metric("hallmark_bundle_file_taken_back_total") != 0 {
			t.Error("our own changes count as another hand's")
		}
	})
}

// TestFileTakesBack changes the file by hand in each way.
func TestFileTakesBack(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(path string) error{
		"content": func(path string) error { return os.WriteFile(path, []byte("hand"), 0o644) },
		"one more root": func(path string) error {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("x")
			return err
		},
		"gone":    os.Remove,
		"private": func(path string) error { return os.Chmod(path, 0o600) },
		"renamed": func(path string) error { return os.Rename(path, path+".away") },
		"a link": func(path string) error {
			if err := os.Rename(path, path+".away"); err != nil {
				return err
			}
			return os.Symlink(path+".away", path)
		},
		"endless": func(path string) error { return os.Truncate(path, 1<<30) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "bundle.pem")
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, path)
				s.whole()
				s.pass(time.Hour)
				if err := edit(path); err != nil {
					t.Fatal(err)
				}
				s.pass(time.Minute + time.Second)
				after := s.whole()
				if now := time.Now(); after.Holds(after.Sequence, now) || after.At.Before(now.Add(readWithin-time.Minute)) {
					t.Errorf("at %s its readers count from %s: some read what the hand wrote", now, after.At)
				}
				if got := s.metric("hallmark_bundle_file_taken_back_total"); got != 1 {
					t.Errorf("taken back %v times, want once", got)
				}
			})
		})
	}
}

// TestFileRetries takes the folder away, and gives it back.
func TestFileRetries(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "shared")
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, filepath.Join(folder, "bundle.pem"))
		s.pass(time.Hour)
		report := s.file.Report()[0]
		if report.Sequence != 0 || !report.At.IsZero() || !strings.Contains(report.Problem, "no such file") || s.metric("hallmark_bundle_file_failing") != 1 {
			t.Errorf("without a folder: %+v", report)
		}
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		s.pass(publish.FileRetryLast)
		s.whole()
		if s.metric("hallmark_bundle_file_failing") != 0 {
			t.Error("it fails still")
		}

		// A new bundle that cannot be written leaves the old one, and says so.
		held := s.whole()
		if err := os.Chmod(folder, 0o555); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			// To root every folder is open: a folder in the way stops it too.
			if err := os.Mkdir(filepath.Join(folder, ".bundle.pem.new"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(folder, ".bundle.pem.new", "x"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		s.authority.AddRoot(t)
		s.pass(time.Second)
		report = s.file.Report()[0]
		if report.Sequence != held.Sequence || !report.At.Equal(held.At) || report.Problem == "" {
			t.Errorf("with a bundle that cannot be written: %+v, want %+v and a problem", report, held)
		}
		if err := os.Chmod(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(folder, ".bundle.pem.new")); err != nil {
			t.Fatal(err)
		}
		s.pass(publish.FileRetryLast)
		s.whole()
	})
}

// TestFileFoundAtStart does not trust the time at which somebody wrote the right
// content.
func TestFileFoundAtStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bundle.pem")
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, path)
		s.whole()
		s.pass(time.Hour)
		second, err := publish.NewFile(publish.FileConfig{
			Path: path, Authority: s.authority.Authority, ReadWithin: readWithin,
			Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
		})
		if err != nil {
			t.Fatal(err)
		}
		if r := second.Report()[0]; r.Sequence != 0 || r.Problem == "" {
			t.Errorf("before it runs: %+v", r)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go second.Run(ctx)
		synctest.Wait()
		if r := second.Report()[0]; r.Sequence == 0 || !r.At.Equal(time.Now().Add(readWithin)) {
			t.Errorf("found at start: %+v", r)
		}
	})
}
