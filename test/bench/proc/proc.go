// Package proc runs one program with one owner: it is dead and waited for when
// Stop returns, when the context of Start ends, or when this process dies
// (Linux tells the kernel to see to that).
//
// The program's children die with it: it leads a process group of its own,
// which also keeps a terminal's Ctrl-C from it, so that its owner decides the
// order in which things end. What it prints goes to a file.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config says what to run.
type Config struct {
	Path string
	Args []string
	Env  []string // nil: this process' own
	Dir  string   // working directory; "": this process' own
	Log  string   // file that standard output and error are appended to
	// Grace is how long Stop waits between SIGTERM and SIGKILL. 0: SIGKILL at once.
	Grace time.Duration
}

// Process is a program that was started.
type Process struct {
	cfg    Config
	cmd    *exec.Cmd
	done   chan struct{} // closed when the program is dead and waited for
	err    error         // why it ended; read after done
	asked  sync.Once
	wanted chan struct{} // closed when its end was asked for
}

// Start runs the program. It is killed when ctx ends; Stop must be called all
// the same, to wait for it.
func Start(ctx context.Context, cfg Config) (*Process, error) {
	log, err := os.OpenFile(cfg.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", filepath.Base(cfg.Path), err)
	}
	// Not bound to ctx here: its end comes by follow, with grace.
	p := &Process{cfg: cfg, cmd: exec.CommandContext(context.WithoutCancel(ctx), cfg.Path, cfg.Args...), done: make(chan struct{}), wanted: make(chan struct{})}
	p.cmd.Env, p.cmd.Dir = cfg.Env, cfg.Dir
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = attributes()

	started := make(chan error)
	go p.own(log, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", filepath.Base(cfg.Path), err)
	}
	go p.follow(ctx)
	return p, nil
}

// own starts the program and waits for it on one thread: the kernel's promise
// to kill a child with its parent is bound to the thread that made it.
func (p *Process) own(log io.Closer, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer log.Close()
	if err := p.cmd.Start(); err != nil {
		started <- err
		return
	}
	started <- nil
	p.err = p.cmd.Wait()
	p.signal(syscall.SIGKILL) // the rest of its group
	close(p.done)
}

// follow ends the program when its context or its owner asks for it.
func (p *Process) follow(ctx context.Context) {
	select {
	case <-p.done:
		return
	case <-ctx.Done():
	case <-p.wanted:
	}
	if p.cfg.Grace > 0 {
		p.signal(syscall.SIGTERM)
		t := time.NewTimer(p.cfg.Grace)
		defer t.Stop()
		select {
		case <-p.done:
			return
		case <-t.C:
		}
	}
	p.signal(syscall.SIGKILL)
}

// signal reaches the whole group; a group that is gone is what was wanted.
func (p *Process) signal(s syscall.Signal) { _ = syscall.Kill(-p.cmd.Process.Pid, s) }

// Stop ends the program and returns when it is dead. It may be called often.
func (p *Process) Stop() {
	p.asked.Do(func() { close(p.wanted) })
	<-p.done
}

// Kill is Stop without grace: SIGKILL, as the kernel does when memory is short.
func (p *Process) Kill() {
	p.signal(syscall.SIGKILL)
	p.Stop()
}

// Pause stops the program as it is, Resume has it go on.
func (p *Process) Pause() { p.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

// Done is closed when the program is dead.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the program ended, once Done is closed; nil is exit status 0.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Pid is the program's process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Await asks ready, every 20 ms, until it returns nil. It gives up when the
// program dies or ctx ends; the error then holds what ready said last and the
// end of the log.
func (p *Process) Await(ctx context.Context, ready func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	name := filepath.Base(p.cfg.Path)
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("waiting for %s: it ended (%s)\n%s", name, ending(p.err), p.Tail())
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w (%w)\n%s", name, context.Cause(ctx), err, p.Tail())
		}
	}
}

func ending(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// Tail returns the last lines of the log.
func (p *Process) Tail() string {
	const most, lines = 16 << 10, 15
	f, err := os.Open(p.cfg.Log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil && !errors.Is(err, io.EOF) {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	end := string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n  ")))
	return "end of " + p.cfg.Log + ":\n  " + strings.ToValidUTF8(end, "?")
}
