package ra

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
)

// queue bounds the work that is done at once, and who waits for it. It turns
// away at once whoever would wait past the deadline: work that is ready too late
// only delays the others.
type queue struct {
	slots   chan struct{}
	most    int64 // who may wait
	waiting atomic.Int64
	now     func() time.Time

	mu   sync.Mutex    // guards mean
	mean time.Duration // of the time that one piece of work takes
}

// weight of the newest sample in the mean, as a divisor.
const meanWeight = 16

func newQueue(slots, most int, now func() time.Time) *queue {
	return &queue{slots: make(chan struct{}, slots), most: int64(most), now: now}
}

// enter waits for a slot. Its error is a refusal, or ctx's own.
func (q *queue) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case q.slots <- struct{}{}:
		return nil
	default:
	}
	before := q.waiting.Add(1)
	defer q.waiting.Add(-1)
	if before > q.most {
		return attest.Deny(attest.Overloaded, "", "%d wait already", q.most)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if need, left := q.estimate(before), time.Until(deadline); need > left {
			return attest.Deny(attest.Overloaded, "", "about %s would pass, and %s are left", need, left)
		}
	}
	select {
	case q.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	// Both may have been ready.
	if err := ctx.Err(); err != nil {
		<-q.slots
		return err
	}
	return nil
}

// leave gives the slot back that was taken at since.
func (q *queue) leave(since time.Time) {
	<-q.slots
	took := q.now().Sub(since)
	q.mu.Lock()
	q.mean += (took - q.mean) / meanWeight
	q.mu.Unlock()
}

// estimate is how long whoever is at place in the queue waits and works.
func (q *queue) estimate(place int64) time.Duration {
	q.mu.Lock()
	mean := q.mean
	q.mu.Unlock()
	return mean + mean*time.Duration(place)/time.Duration(cap(q.slots))
}
