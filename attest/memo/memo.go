package memo

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// ErrBusy says that as many calls are under way as may be.
var ErrBusy = errors.New("asking: too many calls are under way")

// negativeMax is the longest that any negative answer is believed.
const negativeMax = 10 * time.Second

// Config bounds a cache. All fields are required.
type Config struct {
	Size         int           // positive answers kept
	NegativeSize int           // negative answers kept
	Negative     time.Duration // how long a negative answer is kept at most; 10 s is the ceiling
	Running      int           // calls under way
	Timeout      time.Duration // deadline of the work
	Now          func() time.Time
}

// Answer is what some work found out.
type Answer[V any] struct {
	Value V
	Err   error
	// Until is when the answer ends. One that has ended already, such as that of
	// the zero time, is given to those who wait for it and not kept.
	Until time.Time
	// Negative answers are kept apart, and briefly. One with an error always is.
	Negative bool
	// Tags are names of what the answer rests on, for [Cache.ForgetTag].
	Tags []string
}

// Stats are counts since the cache was made, and what is in it now.
type Stats struct {
	Hits, NegativeHits    uint64 // answered from memory
	Joined, Called        uint64 // waited for another's call; began one
	Refused               uint64 // ErrBusy
	Kept, Negatives, Runs int    // now
}

// Cache remembers answers of type V by keys of type K.
type Cache[K comparable, V any] struct {
	cfg Config

	mu        sync.Mutex // guards all below
	positive  *simplelru.LRU[K, *entry[K, V]]
	negative  *simplelru.LRU[K, *entry[K, V]]
	tags      map[string]*tagged[K, V] // first entry of each tag
	calls     map[K]*call[K, V]        // those that may be joined
	forgotten history
	stats     Stats
}

// entry is one answer that is kept.
type entry[K comparable, V any] struct {
	key    K
	answer Answer[V]
	links  []tagged[K, V] // one for each tag
}

// call is one piece of work under way.
type call[K comparable, V any] struct {
	begun     uint64 // position in the history of invalidations
	forgotten bool   // by key

	done   chan struct{}
	answer Answer[V] // set before done is closed
	// outdated is the position of the last invalidation that the answer falls
	// under, 0 if there was none: those who joined after it want a newer one.
	outdated uint64
}

// New returns an empty cache.
func New[K comparable, V any](cfg Config) (*Cache[K, V], error) {
	if cfg.Running <= 0 || cfg.Timeout <= 0 || cfg.Negative <= 0 || cfg.Now == nil {
		return nil, errors.New("making cache: bounds and clock are required")
	}
	cfg.Negative = min(cfg.Negative, negativeMax)
	c := &Cache[K, V]{cfg: cfg, tags: map[string]*tagged[K, V]{}, calls: map[K]*call[K, V]{}}
	var err error
	if c.positive, err = simplelru.NewLRU(cfg.Size, c.evicted); err != nil {
		return nil, fmt.Errorf("making cache: %w", err)
	}
	if c.negative, err = simplelru.NewLRU(cfg.NegativeSize, c.evicted); err != nil {
		return nil, fmt.Errorf("making cache: %w", err)
	}
	return c, nil
}

// Get returns the answer that is kept for key.
func (c *Cache[K, V]) Get(key K) (Answer[V], bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.get(key)
}

func (c *Cache[K, V]) get(key K) (Answer[V], bool) {
	now := c.cfg.Now()
	for _, space := range []*simplelru.LRU[K, *entry[K, V]]{c.positive, c.negative} {
		e, ok := space.Get(key)
		switch {
		case !ok:
			continue
		case !now.Before(e.answer.Until):
			space.Remove(key)
			continue
		case e.answer.Negative:
			c.stats.NegativeHits++
		default:
			c.stats.Hits++
		}
		return e.answer, true
	}
	return Answer[V]{}, false
}

// Do returns the answer that is kept for key, or that of a call for it, which it
// joins or begins. work MUST end with its context, whose deadline is the
// cache's and not the caller's.
//
// The error is the answer's, [ErrBusy], or that of ctx.
func (c *Cache[K, V]) Do(ctx context.Context, key K, work func(context.Context) Answer[V]) (V, error) {
	var none V
	for {
		c.mu.Lock()
		if a, ok := c.get(key); ok {
			c.mu.Unlock()
			return a.Value, a.Err
		}
		running := c.calls[key]
		if running == nil {
			if c.stats.Runs >= c.cfg.Running {
				c.stats.Refused++
				c.mu.Unlock()
				return none, ErrBusy
			}
			running = c.begin(ctx, key, work)
		} else {
			c.stats.Joined++
		}
		joined := c.forgotten.position
		c.mu.Unlock()

		select {
		case <-running.done:
		case <-ctx.Done():
			return none, fmt.Errorf("waiting for an answer: %w", ctx.Err())
		}
		if running.outdated == 0 || joined < running.outdated {
			return running.answer.Value, running.answer.Err
		}
	}
}

// begin starts a call. The lock is held.
func (c *Cache[K, V]) begin(ctx context.Context, key K, work func(context.Context) Answer[V]) *call[K, V] {
	run := &call[K, V]{begun: c.forgotten.position, done: make(chan struct{})}
	c.calls[key] = run
	c.stats.Called++
	c.stats.Runs++
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.Timeout)
		defer cancel()
		c.finish(key, run, guarded(ctx, work))
	}()
	return run
}

// guarded turns a panic of the work into an error: whoever waits is refused, and
// the process, with the keys that it holds in memory, lives on.
func guarded[V any](ctx context.Context, work func(context.Context) Answer[V]) (answer Answer[V]) {
	defer func() {
		if r := recover(); r != nil {
			answer = Answer[V]{Err: fmt.Errorf("asking: panic: %v\n%s", r, debug.Stack())}
		}
	}()
	return work(ctx)
}

// finish keeps the answer, unless something that it rests on was forgotten
// meanwhile, and wakes the waiters.
func (c *Cache[K, V]) finish(key K, run *call[K, V], answer Answer[V]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Runs--
	if c.calls[key] == run {
		delete(c.calls, key)
	}
	answer.Negative = answer.Negative || answer.Err != nil
	run.answer = answer
	run.outdated = c.forgotten.last(run.begun, answer.Tags)
	if c.stats.Runs == 0 {
		c.forgotten.clear()
	}
	if !run.forgotten && run.outdated == 0 {
		c.keep(key, answer)
	}
	close(run.done)
}

// keep stores an answer that has not ended. The lock is held.
func (c *Cache[K, V]) keep(key K, answer Answer[V]) {
	now := c.cfg.Now()
	space, other := c.positive, c.negative
	if answer.Negative {
		space, other = other, space
		if limit := now.Add(c.cfg.Negative); answer.Until.After(limit) {
			answer.Until = limit
		}
	}
	other.Remove(key)
	space.Remove(key) // its tags may be others
	if !now.Before(answer.Until) {
		return
	}
	e := &entry[K, V]{key: key, answer: answer}
	c.link(e)
	space.Add(key, e)
}

// Forget drops the answer for key, kept or under way.
func (c *Cache[K, V]) Forget(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(key)
	if run := c.calls[key]; run != nil {
		run.forgotten = true
		delete(c.calls, key) // whoever asks now begins anew
	}
}

// ForgetTag drops every answer with tag, kept or under way.
func (c *Cache[K, V]) ForgetTag(tag string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.tags[tag] != nil {
		c.drop(c.tags[tag].entry.key)
	}
	if c.stats.Runs > 0 {
		c.forgotten.add(tag)
	}
}

// ForgetAll drops everything, kept or under way.
func (c *Cache[K, V]) ForgetAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.positive.Purge()
	c.negative.Purge()
	for key, run := range c.calls {
		run.forgotten = true
		delete(c.calls, key)
	}
}

func (c *Cache[K, V]) drop(key K) {
	c.positive.Remove(key)
	c.negative.Remove(key)
}

// Stats returns the counts.
func (c *Cache[K, V]) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Kept, s.Negatives = c.positive.Len(), c.negative.Len()
	return s
}
