package kube

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// idle ends a request when nothing has been read for a while.
type idle struct {
	limit  time.Duration
	timer  *time.Timer
	cancel context.CancelFunc
	over   atomic.Bool
}

// newIdle returns a context that ends when the idle does; stop must be called.
func newIdle(ctx context.Context, limit time.Duration) (context.Context, *idle) {
	ctx, cancel := context.WithCancel(ctx)
	i := &idle{limit: limit, cancel: cancel}
	i.timer = time.AfterFunc(limit, func() {
		i.over.Store(true)
		cancel()
	})
	return ctx, i
}

func (i *idle) stop() {
	i.timer.Stop()
	i.cancel()
}

// fired tells whether the request was ended for being idle.
func (i *idle) fired() bool { return i.over.Load() }

// errTooLarge says that one object is larger than maxObject.
var errTooLarge = errors.New("an object is larger than 4 MiB")

// meter bounds what is read for one object, and tells idle that something comes.
type meter struct {
	r    io.Reader
	idle *idle
	used int
}

// renew begins another object.
func (m *meter) renew() { m.used = 0 }

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	if m.used >= maxObject {
		return 0, errTooLarge
	}
	n, err := m.r.Read(p)
	m.used += n
	if n > 0 {
		m.idle.timer.Reset(m.idle.limit)
	}
	return n, err
}
