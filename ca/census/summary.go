package census

import (
	"slices"
	"time"
)

// jump is how far the wall clock must be set to be noticed.
const jump = int64(30 * time.Second)

// Summary answers a question. It forgets who has lapsed and who is gone, so it
// is to be called every minute or so also while no root goes round.
func (c *Census) Summary(q Question) Summary {
	at := c.now()
	v := newSurvey(q, at, c.clockSet(at))
	crowded := c.count.Load() > int64(c.cfg.MaxConsumers)*7/8
	for i := range c.shards {
		c.survey(&c.shards[i], v, crowded)
	}
	if !c.restored.Load() {
		v.addRestoring()
	}
	sum := v.summary()
	c.tell(sum)
	return sum
}

// survey shows one shard to v.
func (c *Census) survey(s *shard, v *survey, crowded bool) {
	gone := c.gone(s, v, crowded)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range gone {
		d.pod.gone = true
	}
	for _, p := range s.pods {
		c.prune(s, p, v.at)
		v.add(p)
	}
	s.expire(v.at)
	for root, t := range s.leaves {
		v.addLeaves(root, t)
	}
	v.addLost(s.lost)
}

// suspect is a pod that may be gone, and when it existed.
type suspect struct {
	pod   *pod
	known time.Time
}

// gone returns the pods of s whose UID is gone, of those who matter. It asks
// without the lock.
func (c *Census) gone(s *shard, v *survey, crowded bool) []suspect {
	if c.cfg.Gone == nil {
		return nil
	}
	ask := v.ask[:0]
	s.mu.Lock()
	for _, p := range s.pods {
		if !p.gone && (crowded || v.holdsUp(p)) {
			ask = append(ask, suspect{p, c.start.Add(time.Duration(p.heard()))})
		}
	}
	s.mu.Unlock()
	v.ask = ask
	return slices.DeleteFunc(ask, func(d suspect) bool { return !c.cfg.Gone(d.pod.instance.Cluster, d.pod.ref(), d.known) })
}

// clockSet returns when the wall clock was last found to have been set.
func (c *Census) clockSet(at instant) int64 {
	drift := at.wall - c.start.UnixNano() - at.steady
	c.mu.Lock()
	defer c.mu.Unlock()
	if by := drift - c.drift; by > jump || by < -jump {
		c.cfg.Log.Warn("the clock was set: nobody is set aside for what it says has passed", "by", time.Duration(by))
		c.jumped = at.steady
		c.drift = drift
	}
	return c.jumped
}

// tell keeps metric and log in step with what was found.
func (c *Census) tell(sum Summary) {
	if sum.Unkept > 0 || sum.Restoring {
		c.metrics.incomplete.Set(1)
		return
	}
	c.metrics.incomplete.Set(0)
	if c.told.CompareAndSwap(true, false) {
		c.cfg.Log.Info("every consumer is known again", "consumers", sum.Consumers)
	}
}
