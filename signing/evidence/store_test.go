package evidence_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/signing/evidence"
)

// clock is a time that tests move.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.at.Store(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time      { return time.Unix(0, c.at.Load()).UTC() }
func (c *clock) add(d time.Duration) { c.at.Add(int64(d)) }

func open(t *testing.T, dir string, c *clock, maxBytes int64) *evidence.Store {
	t.Helper()
	s, err := evidence.NewStore(evidence.StoreConfig{
		Dir: dir, Keep: 24 * time.Hour, MaxBytes: maxBytes,
		Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: c.now,
	})
	must(t, err)
	return s
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, filepath.Join(dir, e.Name()))
	}
	return out
}

func has(t *testing.T, s *evidence.Store, e *evidence.Evidence) bool {
	t.Helper()
	got, ok := s.Get(e.Subject)
	if ok {
		if d := cmp.Diff(e, got); d != "" {
			t.Error(d)
		}
	}
	return ok
}

func TestStoreKeepsOverRestart(t *testing.T) {
	t.Parallel()
	dir, c := filepath.Join(t.TempDir(), "evidence"), newClock()
	s := open(t, dir, c, 1<<20)
	e := ofIndex()
	if has(t, s, e) {
		t.Error("an empty store has something")
	}
	must(t, s.Put(e))
	must(t, s.Put(ofImage(1)))
	must(t, s.Put(ofImage(1)))
	for _, s := range []*evidence.Store{s, open(t, dir, c, 1<<20)} {
		if !has(t, s, e) || !has(t, s, ofImage(1)) || has(t, s, ofImage(2)) {
			t.Error("what was put is not what is there")
		}
		if _, ok := s.Get(evidence.Subject{Repository: "registry.example/other", Digest: e.Subject.Digest}); ok {
			t.Error("evidence counts for another repository")
		}
	}
	for _, f := range files(t, dir) {
		info, err := os.Stat(f)
		must(t, err)
		if info.Mode().Perm() != 0o600 || strings.Contains(f, "app") {
			t.Errorf("%s has mode %v", f, info.Mode())
		}
	}
}

// Nothing on disk is trusted.
func TestStoreDropsWhatDoesNotHold(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, b []byte, other []byte) []byte{
		"cut":        func(_ *testing.T, b, _ []byte) []byte { return b[:len(b)/2] },
		"empty":      func(*testing.T, []byte, []byte) []byte { return nil },
		"of another": func(_ *testing.T, _, other []byte) []byte { return other },
		"other version": func(_ *testing.T, b, _ []byte) []byte {
			return []byte(strings.Replace(string(b), `"version":1`, `"version":2`, 1))
		},
		"forged": func(t *testing.T, b, _ []byte) []byte {
			_, digest, _ := image(1)
			forged := strings.Replace(string(b), `"manifests":{"`+digest+`":"`, `"manifests":{"`+digest+`":"AAAA`, 1)
			if forged == string(b) {
				t.Fatal("nothing was forged")
			}
			return []byte(forged)
		},
		"bits": func(_ *testing.T, b, _ []byte) []byte { b[len(b)/2] ^= 0x40; return b },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			otherDir := t.TempDir()
			must(t, open(t, otherDir, c, 1<<20).Put(ofImage(2)))
			other, err := os.ReadFile(files(t, otherDir)[0])
			must(t, err)

			dir := t.TempDir()
			s := open(t, dir, c, 1<<20)
			must(t, s.Put(ofImage(1)))
			f := files(t, dir)[0]
			b, err := os.ReadFile(f)
			must(t, err)
			must(t, os.WriteFile(f, damage(t, b, other), 0o600))
			if _, ok := s.Get(ofImage(1).Subject); ok {
				t.Error("it was given out")
			}
			if left := files(t, dir); len(left) != 0 {
				t.Errorf("it lies there still: %v", left)
			}
			must(t, s.Put(ofImage(1)))
			if !has(t, s, ofImage(1)) {
				t.Error("it cannot be put anew")
			}
			must(t, os.Remove(f))
			if _, ok := s.Get(ofImage(1).Subject); ok {
				t.Error("a removed file was given out")
			}
		})
	}
}

func TestStoreRefusesWhatDoesNotHold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, newClock(), 1<<20)
	e := ofImage(1)
	e.Manifests[e.Subject.Digest] = []byte("{}")
	if err := s.Put(e); err == nil {
		t.Error("it was kept")
	}
	small := open(t, t.TempDir(), newClock(), 100)
	if err := small.Put(ofImage(1)); err == nil {
		t.Error("more than the store may have was kept")
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestStorePrunesWhatNoPodRuns(t *testing.T) {
	t.Parallel()
	dir, c := t.TempDir(), newClock()
	s := open(t, dir, c, 1<<20)
	must(t, s.Put(ofImage(1)))
	must(t, s.Put(ofImage(2)))
	c.add(23 * time.Hour)
	s.Touch(ofImage(1).Subject)
	s.Touch(ofImage(3).Subject) // unknown: nothing happens
	c.add(2 * time.Hour)
	s.Prune()
	if !has(t, s, ofImage(1)) || has(t, s, ofImage(2)) {
		t.Error("want the touched one alone")
	}
	// A day of outage is no day without use: nobody could touch anything.
	c.add(72 * time.Hour)
	s = open(t, dir, c, 1<<20)
	s.Prune()
	if !has(t, s, ofImage(1)) {
		t.Error("dropped at the first prune after a long outage")
	}
	c.add(25 * time.Hour)
	s.Prune()
	if has(t, s, ofImage(1)) || len(files(t, dir)) != 0 {
		t.Error("kept though nobody touched it")
	}
}

func TestStoreKeepsWithinItsSize(t *testing.T) {
	t.Parallel()
	dir, c := t.TempDir(), newClock()
	s := open(t, dir, c, 1<<20)
	must(t, s.Put(ofImage(0)))
	info, err := os.Stat(files(t, dir)[0])
	must(t, err)
	s = open(t, dir, c, 3*info.Size()+50)
	for i := 1; i <= 2; i++ {
		c.add(2 * time.Minute)
		must(t, s.Put(ofImage(i)))
	}
	c.add(2 * time.Minute)
	s.Touch(ofImage(0).Subject)
	c.add(2 * time.Minute)
	must(t, s.Put(ofImage(3)))
	for i, want := range []bool{true, false, true, true} {
		if has(t, s, ofImage(i)) != want {
			t.Errorf("image %d: want %v", i, want)
		}
	}
	// What was used when survives a restart.
	s = open(t, dir, c, 2*info.Size()+50)
	s.Prune()
	for i, want := range []bool{true, false, false, true} {
		if has(t, s, ofImage(i)) != want {
			t.Errorf("after a restart, image %d: want %v", i, want)
		}
	}
}

func TestStoreClearsWhatWasNotFinished(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "incoming-123"), []byte("half"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "README"), []byte("somebody's"), 0o600))
	open(t, dir, newClock(), 1<<20)
	if diff := cmp.Diff([]string{filepath.Join(dir, "README")}, files(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestStoreRunPrunes(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, err := evidence.NewStore(evidence.StoreConfig{
			Dir: dir, Keep: time.Hour, MaxBytes: 1 << 20,
			Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
		})
		must(t, err)
		must(t, s.Put(ofImage(1)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		<-time.After(50 * time.Minute)
		if !has(t, s, ofImage(1)) {
			t.Error("dropped too early")
		}
		<-time.After(30 * time.Minute)
		if has(t, s, ofImage(1)) {
			t.Error("kept too long")
		}
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestStoreConcurrently(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), newClock(), 8<<10)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				e := ofImage((i + j) % 10)
				if err := s.Put(e); err != nil {
					t.Error(fmt.Errorf("putting: %w", err))
				}
				s.Touch(e.Subject)
				has(t, s, e)
				s.Prune()
			}
		})
	}
	wg.Wait()
}
