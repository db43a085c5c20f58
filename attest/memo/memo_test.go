package memo_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/attest/memo"
)

func config() memo.Config {
	return memo.Config{Size: 4, NegativeSize: 4, Negative: 10 * time.Second, Running: 2, Timeout: 5 * time.Second, Now: time.Now}
}

func newCache(t *testing.T, change func(*memo.Config)) *memo.Cache[string, int] {
	t.Helper()
	cfg := config()
	if change != nil {
		change(&cfg)
	}
	c, err := memo.New[string, int](cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// answers returns work that gives value for an hour, and counts how often.
func answers(n *atomic.Int32, value int, tags ...string) func(context.Context) memo.Answer[int] {
	return func(context.Context) memo.Answer[int] {
		n.Add(1)
		return memo.Answer[int]{Value: value, Until: time.Now().Add(time.Hour), Tags: tags}
	}
}

func want(t *testing.T, c *memo.Cache[string, int], key string, work func(context.Context) memo.Answer[int], value int) {
	t.Helper()
	got, err := c.Do(t.Context(), key, work)
	if err != nil || got != value {
		t.Fatalf("Do(%q) = %d, %v, want %d", key, got, err, value)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*memo.Config){
		"size":     func(c *memo.Config) { c.Size = 0 },
		"negative": func(c *memo.Config) { c.NegativeSize = 0 },
		"time":     func(c *memo.Config) { c.Negative = 0 },
		"running":  func(c *memo.Config) { c.Running = 0 },
		"timeout":  func(c *memo.Config) { c.Timeout = 0 },
		"clock":    func(c *memo.Config) { c.Now = nil },
	} {
		cfg := config()
		change(&cfg)
		if _, err := memo.New[string, int](cfg); err == nil {
			t.Errorf("without %s: no error", name)
		}
	}
}

func TestKeepsUntilItEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, nil)
		var calls atomic.Int32
		work := answers(&calls, 7)
		want(t, c, "a", work, 7)
		<-time.After(time.Hour - time.Nanosecond)
		want(t, c, "a", work, 7)
		if calls.Load() != 1 {
			t.Fatalf("%d calls before the answer ended", calls.Load())
		}
		<-time.After(time.Nanosecond)
		if _, ok := c.Get("a"); ok {
			t.Fatal("an answer that has ended was given")
		}
		want(t, c, "a", work, 7)
		if calls.Load() != 2 {
			t.Fatalf("%d calls after the answer ended", calls.Load())
		}
	})
}

func TestJoinsCallsAndLetsWaitersLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, nil)
		var calls atomic.Int32
		release := make(chan struct{})
		work := func(ctx context.Context) memo.Answer[int] {
			calls.Add(1)
			select {
			case <-release:
				return memo.Answer[int]{Value: 1, Until: time.Now().Add(time.Hour)}
			case <-ctx.Done():
				return memo.Answer[int]{Err: ctx.Err()}
			}
		}
		type result struct {
			value int
			err   error
			after time.Duration
		}
		results := make(chan result, 3)
		begin := time.Now()
		for _, patience := range []time.Duration{time.Second, 2 * time.Second, time.Minute} {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				v, err := c.Do(ctx, "a", work)
				results <- result{v, err, time.Since(begin)}
			}()
		}
		for _, patience := range []time.Duration{time.Second, 2 * time.Second} {
			r := <-results
			if !errors.Is(r.err, context.DeadlineExceeded) || r.after != patience {
				t.Fatalf("a waiter of %s got %v after %s", patience, r.err, r.after)
			}
		}
		close(release) // the work went on without those who left
		if r := <-results; r.err != nil || r.value != 1 || r.after != 2*time.Second {
			t.Fatalf("the last waiter got %+v", r)
		}
		want(t, c, "a", work, 1)
		if calls.Load() != 1 {
			t.Fatalf("%d calls", calls.Load())
		}
		got := c.Stats()
		if diff := cmp.Diff(memo.Stats{Hits: 1, Joined: 2, Called: 1, Kept: 1}, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWorkHasItsOwnDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, nil)
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err := c.Do(ctx, "a", func(ctx context.Context) memo.Answer[int] {
			<-ctx.Done()
			return memo.Answer[int]{Err: ctx.Err()}
		})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 5*time.Second {
			t.Fatalf("%v after %s", err, time.Since(begin))
		}
		if s := c.Stats(); s.Negatives != 0 || s.Runs != 0 {
			t.Fatalf("an answer without an end was kept: %+v", s)
		}
	})
}

func TestBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, nil)
		release := make(chan struct{})
		block := func(context.Context) memo.Answer[int] { <-release; return memo.Answer[int]{Value: 3} }
		done := make(chan error, 3)
		for _, key := range []string{"a", "b", "a"} {
			go func() { _, err := c.Do(t.Context(), key, block); done <- err }()
		}
		synctest.Wait()
		if _, err := c.Do(t.Context(), "c", block); !errors.Is(err, memo.ErrBusy) {
			t.Fatalf("a third call: %v", err)
		}
		close(release)
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		want(t, c, "c", block, 3)
		if s := c.Stats(); s.Refused != 1 || s.Runs != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestForgottenCallStillCounts: calls whose key was forgotten are still under
// way, and the bound is theirs, too.
func TestForgottenCallStillCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, nil)
		release := make(chan struct{})
		block := func(context.Context) memo.Answer[int] { <-release; return memo.Answer[int]{} }
		done := make(chan error, 2)
		for range 2 {
			go func() { _, err := c.Do(t.Context(), "a", block); done <- err }()
			synctest.Wait()
			c.Forget("a")
		}
		if _, err := c.Do(t.Context(), "a", block); !errors.Is(err, memo.ErrBusy) {
			t.Errorf("a third call: %v", err)
		}
		close(release)
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestNegativesAreApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, func(cfg *memo.Config) { cfg.Negative = time.Hour }) // the ceiling holds
		var calls atomic.Int32
		for i := range 4 {
			want(t, c, fmt.Sprintf("good%d", i), answers(&calls, i), i)
		}
		bad := errors.New("no")
		refuse := func(context.Context) memo.Answer[int] {
			calls.Add(1)
			return memo.Answer[int]{Err: bad, Until: time.Now().Add(time.Hour)}
		}
		for i := range 100 {
			if _, err := c.Do(t.Context(), fmt.Sprintf("bad%d", i), refuse); !errors.Is(err, bad) {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff([]int{4, 4}, []int{c.Stats().Kept, c.Stats().Negatives}); diff != "" {
			t.Fatal(diff)
		}
		before := calls.Load()
		for i := range 4 {
			want(t, c, fmt.Sprintf("good%d", i), answers(&calls, -1), i)
		}
		if _, err := c.Do(t.Context(), "bad99", refuse); !errors.Is(err, bad) || calls.Load() != before {
			t.Fatalf("%v, %d calls more", err, calls.Load()-before)
		}
		<-time.After(10 * time.Second)
		if _, ok := c.Get("bad99"); ok {
			t.Error("a refusal outlived 10 s")
		}
		// What was refused may be granted, and takes the refusal's place.
		want(t, c, "bad98", answers(&calls, 5), 5)
	})
}

func TestNegativeValue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, nil)
		work := func(context.Context) memo.Answer[int] {
			return memo.Answer[int]{Value: 9, Negative: true, Until: time.Now().Add(time.Hour)}
		}
		want(t, c, "a", work, 9)
		want(t, c, "a", work, 9)
		if s := c.Stats(); s.NegativeHits != 1 || s.Negatives != 1 || s.Kept != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestForget(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	for name, forget := range map[string]func(*memo.Cache[string, int]){
		"key": func(c *memo.Cache[string, int]) { c.Forget("a") },
		"tag": func(c *memo.Cache[string, int]) { c.ForgetTag("pod") },
		"all": func(c *memo.Cache[string, int]) { c.ForgetAll() },
	} {
		c := newCache(t, nil)
		want(t, c, "a", answers(&calls, 1, "pod", "account"), 1)
		want(t, c, "b", answers(&calls, 1, "other", "account"), 1)
		forget(c)
		if _, ok := c.Get("a"); ok {
			t.Errorf("%s: the answer is still there", name)
		}
		if _, ok := c.Get("b"); ok == (name == "all") {
			t.Errorf("%s: the other answer: %t", name, ok)
		}
		c.ForgetTag("account")
		if s := c.Stats(); s.Kept != 0 {
			t.Errorf("%s: %d are left after the tag of all was forgotten", name, s.Kept)
		}
	}
}

// TestForgetDuringCall is the promise that invalidation is exact: the answer of a
// call that was under way is neither kept nor given to those who came later.
func TestForgetDuringCall(t *testing.T) {
	t.Parallel()
	for name, forget := range map[string]func(*memo.Cache[string, int]){
		"key": func(c *memo.Cache[string, int]) { c.Forget("a") },
		"tag": func(c *memo.Cache[string, int]) { c.ForgetTag("pod") },
		"all": func(c *memo.Cache[string, int]) { c.ForgetAll() },
		"many tags": func(c *memo.Cache[string, int]) {
			c.ForgetTag("pod")
			for i := range 5000 {
				c.ForgetTag(fmt.Sprint(i))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCache(t, func(cfg *memo.Config) { cfg.Running = 10 })
				releases := make(chan chan struct{}, 10)
				var calls atomic.Int32
				work := func(context.Context) memo.Answer[int] {
					value := int(calls.Add(1))
					release := make(chan struct{})
					releases <- release
					<-release
					return memo.Answer[int]{Value: value, Until: time.Now().Add(time.Hour), Tags: []string{"pod"}}
				}
				before, after := make(chan int, 1), make(chan int, 1)
				ask := func(to chan<- int) {
					v, err := c.Do(t.Context(), "a", work)
					if err != nil {
						t.Error(err)
					}
					to <- v
				}
				go ask(before)
				synctest.Wait()
				forget(c)
				go ask(after)
				synctest.Wait()
				close(<-releases)
				if v := <-before; v != 1 {
					t.Errorf("who asked before got the answer of call %d", v)
				}
				synctest.Wait()
				if a, ok := c.Get("a"); ok {
					t.Errorf("the forgotten answer is kept: %+v", a)
				}
				close(<-releases)
				if v := <-after; v != 2 {
					t.Errorf("who asked after got the answer of call %d", v)
				}
				if a, ok := c.Get("a"); !ok || a.Value != 2 {
					t.Errorf("kept is %+v, %t", a, ok)
				}
			})
		})
	}
}

func TestOtherTagDuringCall(t *testing.T) {
	t.Parallel()
	c := newCache(t, nil)
	want(t, c, "a", func(context.Context) memo.Answer[int] {
		c.ForgetTag("other")
		return memo.Answer[int]{Value: 1, Until: time.Now().Add(time.Hour), Tags: []string{"pod"}}
	}, 1)
	if _, ok := c.Get("a"); !ok {
		t.Error("a stranger's tag kept the answer from being kept")
	}
}

func TestPanicIsAnError(t *testing.T) {
	t.Parallel()
	c := newCache(t, nil)
	_, err := c.Do(t.Context(), "a", func(context.Context) memo.Answer[int] { panic("boom") })
	if err == nil || !strings.Contains(err.Error(), "boom") {
		t.Fatalf("got %v", err)
	}
	if s := c.Stats(); s.Runs != 0 || s.Negatives != 0 {
		t.Errorf("%+v", s)
	}
}

// TestTagsFollowEntries: what leaves the cache for want of room leaves the lists
// of its tags, in whatever order.
func TestTagsFollowEntries(t *testing.T) {
	t.Parallel()
	c := newCache(t, nil)
	var calls atomic.Int32
	for i := range 50 {
		want(t, c, fmt.Sprint(i), answers(&calls, i, "all", fmt.Sprint("mod", i%3)), i)
		if i%7 == 0 {
			c.Forget(fmt.Sprint(i - 2))
		}
		if i%11 == 0 {
			c.ForgetTag("mod1")
		}
	}
	c.ForgetTag("mod0")
	c.ForgetTag("mod2")
	for i := range 50 {
		if a, ok := c.Get(fmt.Sprint(i)); ok && i%3 != 1 {
			t.Errorf("%d is kept: %+v", i, a)
		}
	}
	c.ForgetTag("all")
	if s := c.Stats(); s.Kept != 0 {
		t.Errorf("%d are left", s.Kept)
	}
}

// TestConcurrent is for the race detector.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, func(cfg *memo.Config) { cfg.Running = 100 })
		done := make(chan struct{})
		var calls atomic.Int32
		for g := range 8 {
			go func() {
				defer func() { done <- struct{}{} }()
				for i := range 300 {
					key := fmt.Sprint(i % 6)
					if _, err := c.Do(t.Context(), key, answers(&calls, i, "tag"+key)); err != nil {
						t.Error(err)
					}
					switch (i + g) % 5 {
					case 0:
						c.Forget(key)
					case 1:
						c.ForgetTag("tag" + key)
					case 2:
						c.Stats()
					}
				}
			}()
		}
		for range 8 {
			<-done
		}
		if s := c.Stats(); s.Runs != 0 || s.Kept > 4 {
			t.Errorf("%+v", s)
		}
	})
}

func BenchmarkHit(b *testing.B) {
	cfg := config()
	cfg.Size = 1 << 12
	c, err := memo.New[[32]byte, int](cfg)
	if err != nil {
		b.Fatal(err)
	}
	work := func(context.Context) memo.Answer[int] {
		return memo.Answer[int]{Value: 1, Until: time.Now().Add(time.Hour), Tags: []string{"a", "b"}}
	}
	if _, err := c.Do(b.Context(), [32]byte{}, work); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := c.Get([32]byte{}); !ok {
			b.Fatal("not kept")
		}
	}
}
