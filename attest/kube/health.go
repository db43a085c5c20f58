package kube

import (
	"sync"
	"time"
)

const (
	// tripAfter is how many calls in a row go unanswered before the API server is
	// taken for away.
	tripAfter = 5
	// tripFor is how often one call then finds out whether it is back.
	tripFor = 2 * time.Second
)

// health remembers whether the API server answers. Without it, each caller would
// wait for its own time-out while the server hangs, and the bounds on calls in
// flight would refuse callers that the last view could serve.
type health struct {
	mu       sync.Mutex // guards all below
	failures int        // in a row
	next     time.Time  // when one may try again
}

// leave is what a caller is told who wants to ask.
type leave int

const (
	refused leave = iota // the server is away
	given
	trial // the server is away, and this call finds out whether it is back
)

// allow tells whether to ask. While the server is away, one caller in a while is
// told yes.
func (h *health) allow(now time.Time) leave {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failures < tripAfter {
		return given
	}
	if now.Before(h.next) {
		return refused
	}
	h.next = now.Add(tripFor)
	return trial
}

// report says how a call ended.
func (h *health) report(now time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil || !away(err) {
		h.failures = 0
		return
	}
	h.failures++
	if h.failures == tripAfter {
		h.next = now.Add(tripFor)
	}
}
