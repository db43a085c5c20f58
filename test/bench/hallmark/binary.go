package hallmark

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/hallmark-ca/hallmark/test/tools"
)

var built struct {
	sync.Mutex // guards what follows
	path       string
}

// Binary builds the product from the checkout that the working directory is in
// and returns the program's path. It builds once in a process; what has not
// changed since an earlier process costs a fraction of a second.
func Binary(ctx context.Context) (string, error) {
	built.Lock()
	defer built.Unlock()
	if built.path != "" {
		return built.path, nil
	}
	path, err := build(ctx)
	if err != nil {
		return "", fmt.Errorf("building hallmark: %w", err)
	}
	built.path = path
	return path, nil
}

// build keeps the program under a name of the checkout, where go build finds
// that it is up to date, and returns a name of the content, which no later
// build touches.
func build(ctx context.Context) (string, error) {
	pins, err := tools.Pins()
	if err != nil {
		return "", err
	}
	checkout := filepath.Join(pins, "..", "..")
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache: %w (set XDG_CACHE_HOME or HOME)", err)
	}
	of := sha256.Sum256([]byte(checkout))
	dir := filepath.Join(cache, "hallmark", "build", hex.EncodeToString(of[:8]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close() // which unlocks it
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	newest := filepath.Join(dir, "newest")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", newest, "./cmd/hallmark")
	cmd.Dir, cmd.Env = checkout, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, bytes.TrimSpace(said.Bytes()))
	}
	return keep(dir, newest)
}

// keep gives the program a second name, which says what is in it, and takes
// away those of earlier ones: who runs them does not mind.
func keep(dir, newest string) (string, error) {
	info, err := os.Stat(newest)
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, fmt.Sprintf("hallmark-%x-%x", info.ModTime().UnixNano(), info.Size()))
	old, err := filepath.Glob(filepath.Join(dir, "hallmark-*"))
	if err != nil {
		return "", err
	}
	for _, o := range old {
		if o == name {
			return name, nil
		}
	}
	for _, o := range old[:max(0, len(old)-4)] { // a test that runs meanwhile may start its own again
		if err := os.Remove(o); err != nil {
			return "", err
		}
	}
	return name, os.Link(newest, name)
}
