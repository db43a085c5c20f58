package rotate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// sequences is how many random sequences are run; HALLMARK_ROTATE_SEQUENCES sets
// another number, HALLMARK_ROTATE_SEED runs one alone.
const sequences = 120

// TestChaos runs random sequences of steps, faults, deaths and clock jumps, and
// holds what was seen against the invariants. At the end of each, in calm, every
// rotation comes to its end.
func TestChaos(t *testing.T) {
	t.Parallel()
	if text := os.Getenv("HALLMARK_ROTATE_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		must(t, err)
		synctest.Test(t, func(t *testing.T) { chaos(t, seed) })
		return
	}
	n := sequences
	if text := os.Getenv("HALLMARK_ROTATE_SEQUENCES"); text != "" {
		var err error
		n, err = strconv.Atoi(text)
		must(t, err)
	} else if testing.Short() {
		n /= 5
	}
	const batches = 8
	for b := range batches {
		t.Run(fmt.Sprint(b), func(t *testing.T) {
			t.Parallel()
			for seed := b; seed < n && !t.Failed(); seed += batches {
				synctest.Test(t, func(t *testing.T) { chaos(t, uint64(seed)) })
			}
		})
	}
}

// trial is one sequence.
type trial struct {
	*world
	t    *testing.T
	m    *mesh
	rng  *rand.Rand
	r    *rotate.Runner
	stop func()
	born int // the process that r is
}

func chaos(t *testing.T, seed uint64) {
	defer func() {
		if t.Failed() {
			t.Logf("HALLMARK_ROTATE_SEED=%d runs it alone", seed)
		}
	}()
	rng := rand.New(rand.NewPCG(seed, 7))
	c := &trial{world: newWorld(t), t: t, rng: rng, stop: func() {}}
	c.m = c.populate(rng, rng.IntN(4))
	c.policy.Automatic = []rotate.Automatic{rotate.Disabled, rotate.Propose, rotate.RunAlone}[rng.IntN(3)]
	if rng.IntN(8) == 0 {
		c.policy.Windows = []rotate.Window{parseWindow(t, "00:00-06:00"), parseWindow(t, "12:00-18:00")}
	}
	if rng.IntN(4) == 0 { // at once, or never
		<-time.After(rootLifetime / 2)
	}
	chance := []float64{0, 0.01, 0.05, 0.3}[rng.IntN(4)]
	c.mu.Lock()
	luck := rand.New(rand.NewPCG(seed, 8)) // the Runner's, which runs beside
	c.fault = func(string) fault {
		if luck.Float64() >= chance {
			return none
		}
		return []fault{fails, fails, unknown, unknownYet, failsDone, rival, diesBefore, diesAfter}[luck.IntN(8)]
	}
	c.mu.Unlock()
	c.restart()
	for range 12 + rng.IntN(16) {
		c.operate()
		c.revive()
		c.world.check(t)
		if t.Failed() {
			break
		}
	}
	c.calm()
	c.stop()
	c.prove(t)
}

// restart ends the process and begins another.
func (c *trial) restart() {
	c.stop()
	c.r = c.start(c.t)
	c.mu.Lock()
	c.born = c.process
	c.m.cut() // its listeners are gone with it
	c.mu.Unlock()
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.r.Run(ctx) // it returns nil, as TestLifeByItself sees
	}()
	c.stop = func() { cancel(); <-done }
	<-time.After(time.Second) // so that it never looks at the moment when something else happens
}

func (c *trial) revive() {
	c.mu.Lock()
	dead := c.process != c.born
	c.mu.Unlock()
	if dead {
		c.restart()
	}
}

// pass lets minutes pass.
func (c *trial) pass(minutes int) {
	for range minutes {
		<-time.After(interval)
		c.revive()
		c.mu.Lock()
		c.m.tick()
		c.m.check()
		c.mu.Unlock()
	}
}

// operate does one thing that may happen.
func (c *trial) operate() {
	ctx, r := c.t.Context(), c.r
	force := rotate.Force{Pass: c.rng.IntN(4) == 0, Reason: "chance"}
	err := error(nil)
	switch c.rng.IntN(20) {
	case 0, 1:
		err = r.Start(ctx, who)
	case 2, 3:
		err = r.Activate(ctx, who, force)
	case 4, 5:
		err = r.Retire(ctx, who, "", force)
	case 6:
		err = r.Retire(ctx, who, c.any(), force)
	case 7:
		err = r.Abort(ctx, who)
	case 8:
		err = r.Trust(ctx, who, foreignRoot(c.t, fmt.Sprint(c.rng.Uint64()), nil))
	case 9:
		err = r.Untrust(ctx, who, c.any(), force)
	case 10:
		err = r.Pause(ctx, who)
	case 11:
		err = r.Resume(ctx, who)
	case 12, 13:
		err = r.RunAll(ctx, who)
	case 14:
		_, err = r.Status(ctx)
	case 15:
		c.restart()
	case 16:
		c.jumps()
	case 17:
		c.misbehave()
	default:
		c.pass(1 + c.rng.IntN(60))
	}
	var refused *rotate.RefusedError
	if err != nil && !errors.As(err, &refused) && !errors.Is(err, errAway) && !errors.Is(err, errDead) && !errors.Is(err, journal.ErrStateUnknown) && !errors.Is(err, journal.ErrConflict) {
		c.t.Errorf("a command failed for a reason of its own: %v", err)
	}
	c.pass(c.rng.IntN(4))
}

// any returns the ID of some root.
func (c *trial) any() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Roots[c.rng.IntN(len(c.state.Roots))].ID
}

// jumps sets the clock: for good, or wrong for some minutes.
func (c *trial) jumps() {
	by := time.Minute + time.Duration(c.rng.Int64N(int64(5*time.Hour)))
	if c.rng.IntN(2) == 0 {
		by = -by
	}
	if c.rng.IntN(2) == 0 {
		c.jump(by)
		return
	}
	// No process that begins meanwhile could know, and one that has not looked
	// yet has nothing to hold it against.
	c.pass(2)
	c.mu.Lock()
	faulty := c.fault
	c.fault = func(string) fault { return none }
	c.mu.Unlock()
	c.revive()
	born := c.born
	c.mu.Lock()
	calls := len(c.calls)
	c.offset += by
	c.m.wrongBy = by
	c.mu.Unlock()
	c.pass(1 + c.rng.IntN(10))
	c.mu.Lock()
	c.offset -= by
	c.m.wrongBy = 0
	c.fault = faulty
	for _, call := range c.calls[calls:] {
		if call == "append" || call == "destroy" {
			c.wrong("%s by a clock that had just jumped by %s", call, by)
		}
	}
	c.mu.Unlock()
	if born != c.born {
		c.t.Error("a process died with no fault")
	}
}

// misbehave changes what the proxies do.
func (c *trial) misbehave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.m.proxies {
		p.silent = c.rng.IntN(3) == 0
		p.pin = ""
		if c.rng.IntN(3) == 0 {
			p.pin = c.serving
		}
	}
}

// calm ends all faults and wants everything to come to its end.
func (c *trial) calm() {
	c.mu.Lock()
	c.fault = func(string) fault { return none }
	for _, p := range c.m.proxies {
		p.silent, p.pin = false, ""
	}
	c.mu.Unlock()
	asked := false
	for range 40 {
		if !asked {
			asked = c.r.RunAll(c.t.Context(), who) == nil
		} else if c.over() {
			return
		}
		c.pass(60)
	}
	s, err := c.r.Status(c.t.Context())
	c.t.Errorf("after 40 hours of calm the rotation has not come to its end: asked %v, %+v, %v", asked, s, err)
}

// over tells whether no root is on its way, and no key is kept that has to go.
func (c *trial) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.state.Roots {
		switch {
		case r.Phase != journal.Active && r.Phase != journal.Trusted && r.Phase != journal.Retired && r.Phase != journal.Aborted:
			return false
		case r.Phase != journal.Active && r.KeyURI != "" && (r.Destroyed == nil || c.keys[r.ID] != nil):
			return false
		}
	}
	return c.state.Course == journal.Manual
}
