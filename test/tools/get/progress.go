package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/hallmark-ca/hallmark/test/tools"
)

// progress shows one line a tool: redrawn every second on a terminal, else
// printed when something begins or ends.
type progress struct {
	out      io.Writer
	terminal bool

	mu    sync.Mutex // guards what follows
	lines []*line
	drawn int // lines on the screen
}

type line struct {
	name, version string
	state         state
	start         time.Time
	took          time.Duration
}

type state string

const (
	waiting state = "waiting"
	getting state = "getting"
	there   state = "already there"
	got     state = "got"
	failed  state = "failed"
)

func newProgress(f *os.File) *progress {
	info, err := f.Stat()
	return &progress{out: f, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

func (p *progress) add(t tools.Tool) {
	p.lines = append(p.lines, &line{name: t.Name, version: t.Version, state: waiting})
}

// run redraws until the context ends, and once more then.
func (p *progress) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		p.draw()
		select {
		case <-tick.C:
		case <-ctx.Done():
			p.draw()
			return
		}
	}
}

func (p *progress) started(name string) {
	p.change(name, func(l *line) { l.state, l.start = getting, time.Now() })
}

func (p *progress) ended(name string, fetched bool, err error) {
	p.change(name, func(l *line) {
		l.took = time.Since(l.start)
		switch {
		case err != nil:
			l.state = failed
		case fetched:
			l.state = got
		default:
			l.state = there
		}
	})
}

func (p *progress) change(name string, f func(*line)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lines {
		if l.name == name {
			f(l)
			if !p.terminal {
				fmt.Fprintln(p.out, l)
			}
		}
	}
}

func (p *progress) draw() {
	if !p.terminal {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn > 0 {
		fmt.Fprintf(p.out, "\x1b[%dA", p.drawn)
	}
	for _, l := range p.lines {
		fmt.Fprintf(p.out, "\x1b[2K%s\n", l)
	}
	p.drawn = len(p.lines)
}

// String is "kube-apiserver v1.36.3  getting  2m10s".
func (l *line) String() string {
	took := ""
	switch l.state {
	case getting:
		if d := time.Since(l.start); d >= time.Second {
			took = d.Round(time.Second).String()
		}
	case got, failed:
		took = l.took.Round(time.Second).String()
	}
	v := l.version
	if len(v) > 12 {
		v = v[:12] + "…"
	}
	return fmt.Sprintf("  %-24s %-14s %-14s %s", l.name, v, l.state, took)
}
