package tools

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Command gets the tools named after it; from the root of the repository.
const Command = "cd test && go run ./tools/get"

// MissingError says that a tool is not in the cache, and what gets it.
type MissingError struct{ Name string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not there; get it with: %s %s", e.Name, Command, e.Name)
}

// Path returns the absolute path of the program, or a [*MissingError].
func Path(name string) (string, error) {
	t, ok := Find(name)
	if !ok {
		return "", fmt.Errorf("no tool is called %q", name)
	}
	dir, err := t.dir()
	if err != nil {
		return "", err
	}
	p := t.source.path(dir, t.Name)
	if _, err := os.Stat(p); errors.Is(err, fs.ErrNotExist) {
		return "", &MissingError{Name: name}
	} else if err != nil {
		return "", fmt.Errorf("looking for %s: %w", name, err)
	}
	return p, nil
}

// Need ends a test whose tools are not all there: as failed under CI=true,
// else as skipped. The reason names every missing one and the command.
func Need(tb testing.TB, names ...string) {
	tb.Helper()
	var missing []string
	for _, n := range names {
		_, err := Path(n)
		var m *MissingError
		switch {
		case errors.As(err, &m):
			missing = append(missing, n)
		case err != nil:
			tb.Fatal(err)
		}
	}
	if len(missing) == 0 {
		return
	}
	list := strings.Join(missing, " ")
	if os.Getenv("CI") == "true" {
		tb.Fatalf("missing: %s; get with: %s %s", list, Command, list)
	}
	tb.Skipf("missing: %s; get with: %s %s", list, Command, list)
}

// Get makes sure that the tool is in the cache, and reports whether it had to
// be fetched. It may take minutes. pins is [Pins]' answer.
func Get(ctx context.Context, pins string, t Tool) (fetched bool, err error) {
	dir, err := t.dir()
	if err != nil {
		return false, err
	}
	if _, err := Path(t.Name); err == nil {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return false, fmt.Errorf("making the cache: %w", err)
	}
	unlock, err := lock(ctx, dir+".lock")
	if err != nil {
		return false, fmt.Errorf("waiting for another process that gets %s: %w", t.Name, err)
	}
	defer unlock()
	if _, err := Path(t.Name); err == nil {
		return false, nil // the other process got it
	}

	staging, err := os.MkdirTemp(filepath.Dir(dir), "."+t.Name+"-")
	if err != nil {
		return false, fmt.Errorf("making the cache: %w", err)
	}
	defer os.RemoveAll(staging)
	if err := t.fetchLogged(ctx, pins, staging, dir+".log"); err != nil {
		return false, err
	}
	// Left by someone who removed the program but not its directory.
	if err := os.RemoveAll(dir); err != nil {
		return false, fmt.Errorf("replacing a broken %s: %w", t.Name, err)
	}
	if err := os.Chmod(staging, 0o755); err != nil {
		return false, err
	}
	if err := os.Rename(staging, dir); err != nil {
		return false, fmt.Errorf("putting %s into the cache: %w", t.Name, err)
	}
	os.Remove(dir + ".log") // of use only after a failure
	return true, nil
}

func (t Tool) fetchLogged(ctx context.Context, pins, staging, logPath string) error {
	log, err := os.Create(logPath)
	if err != nil {
		return fmt.Errorf("making the log: %w", err)
	}
	defer log.Close()
	err = t.source.fetch(ctx, pins, staging, t.Name, log)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		if _, serr := os.Stat(t.source.path(staging, t.Name)); serr != nil {
			err = fmt.Errorf("finding the program in what was fetched: %w", serr)
		}
	}
	if err != nil {
		return fmt.Errorf("getting %s %s: %w\n%s\nThe whole log: %s\nNote: %s",
			t.Name, t.Version, err, tail(logPath), logPath, t.source.mend())
	}
	return nil
}

// Lane names the resource that getting t takes: tools of two lanes can be got
// at once, those of one are better got one after another.
func (t Tool) Lane() string { return t.source.lane() }

func (t Tool) dir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache: %w (set XDG_CACHE_HOME or HOME)", err)
	}
	return filepath.Join(cache, "hallmark", "tools", t.Name+"-"+t.Version), nil
}

// Pins returns the directory of the pinned modules: test/tools of the checkout
// that the working directory is in.
func Pins() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		for _, sub := range []string{"tools", "test/tools"} {
			p := filepath.Join(dir, filepath.FromSlash(sub))
			if _, err := os.Stat(filepath.Join(p, "kubernetes", "go.mod")); err == nil {
				return p, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("finding test/tools: %s is in no checkout of Hallmark; run this from within one", wd)
		}
	}
}

// lock holds an advisory lock on the file; it ends with the process, however
// that ends. Waiting is a goroutine that outlives a cancelled caller only until
// the lock is free.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	var failed error // written before held is closed
	held := make(chan struct{})
	go func() {
		defer close(held)
		failed = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}()
	select {
	case <-held:
		if failed != nil {
			f.Close()
			return nil, failed
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() {
			<-held
			f.Close()
		}()
		return nil, ctx.Err()
	}
}

// tail returns the end of a log, in lines.
func tail(path string) string {
	const most, lines = 64 << 10, 12
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b[max(0, len(b)-most):])
	all := bytes.Split(b, []byte("\n"))
	return "  " + string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n  ")))
}
