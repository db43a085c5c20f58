package ra

import (
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/hallmark-ca/hallmark/attest"
)

// allowance is how many lines are written at once, and after how long one more.
type allowance struct {
	burst int
	every time.Duration
}

// How much is logged: a flood costs neither disk nor CPU, and the counters have
// it all.
var (
	perReason = allowance{20, time.Second}
	perKey    = allowance{5, time.Minute}
	perKind   = allowance{200, time.Second}
)

// budget counts what was written. Its owner's lock guards it.
type budget struct {
	spent   int
	since   time.Time
	leftOut uint64
}

// has tells whether one more may be written.
func (b *budget) has(a allowance, now time.Time) bool {
	if back := int(now.Sub(b.since) / a.every); back > 0 {
		b.spent, b.since = max(0, b.spent-back), now
	}
	return b.spent < a.burst
}

// spend takes one, and returns how many were left out before it.
func (b *budget) spend() (leftOut uint64) {
	b.spent++
	leftOut, b.leftOut = b.leftOut, 0
	return leftOut
}

// sampler lets some refusals of each reason through to the log. What strangers
// do has budgets of its own, so that it hides nothing of what callers do. The
// zero value is ready.
type sampler struct {
	budgets [2][256]struct {
		mu sync.Mutex // guards budget
		budget
	} // by known caller, and reason
}

// take tells whether to log, and how many like it were left out before.
func (s *sampler) take(reason attest.Reason, known bool, now time.Time) (leftOut uint64, ok bool) {
	b := &s.budgets[0][reason]
	if known {
		b = &s.budgets[1][reason]
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.has(perReason, now) {
		b.leftOut++
		return 0, false
	}
	return b.spend(), true
}

// samplerKeys bounds the memory of who was logged, at about 200 bytes each. One
// that was pushed out begins anew, within what its kind of line has in all.
const samplerKeys = 1 << 12

// Sampler lets some of a front end's own lines through to the log. Each kind of
// line has 5 at once for one instance, then one a minute, so that one hides
// nothing of the others; and 200 at once for all instances, then one a second,
// so that many cannot fill a disk either. Nothing that a client does resets it.
type Sampler struct {
	mu    sync.Mutex // guards all below
	keys  *lru.Cache[sampled, *budget]
	kinds map[string]*budget
}

type sampled struct {
	kind     string
	instance attest.Instance
}

// NewSampler returns a Sampler that has let nothing through yet.
func NewSampler() (*Sampler, error) {
	keys, err := lru.New[sampled, *budget](samplerKeys)
	if err != nil {
		return nil, fmt.Errorf("making sampler: %w", err)
	}
	return &Sampler{keys: keys, kinds: map[string]*budget{}}, nil
}

// Take tells whether to log a line of kind about instance, and how many of them
// were left out since the last. Kinds are the program's own, and few.
func (s *Sampler) Take(kind string, instance attest.Instance, now time.Time) (leftOut uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.kinds[kind]
	if all == nil {
		all = &budget{since: now}
		s.kinds[kind] = all
	}
	key := sampled{kind, instance}
	own, known := s.keys.Get(key)
	if !known {
		own = &budget{since: now}
		s.keys.Add(key, own)
	}
	if !own.has(perKey, now) || !all.has(perKind, now) {
		own.leftOut++
		return 0, false
	}
	all.spend()
	return own.spend(), true
}
