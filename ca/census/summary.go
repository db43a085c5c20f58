package census

import (
	"time"

	"github.com/hallmark-ca/hallmark/attest"
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
	for _, p := range gone {
		p.gone = true
	}
	c.sweep(s, v.at)
	for _, p := range s.pods {
		v.add(p)
	}
	for root, t := range s.leaves {
		v.addLeaves(root, t)
	}
	v.addLost(s.lost)
}

// gone returns the pods of s whose UID is gone, of those who matter. It asks
// without the lock.
func (c *Census) gone(s *shard, v *survey, crowded bool) []*pod {
	if c.cfg.Gone == nil {
		return nil
	}
	type question struct {
		pod   *pod
		ref   attest.PodRef
		known time.Time
	}
	var ask []question
	s.mu.Lock()
	for _, p := range s.pods {
		if !p.gone && (crowded || v.holdsUp(p)) {
			ask = append(ask, question{p, p.ref(), c.start.Add(time.Duration(p.heard()))})
		}
	}
	s.mu.Unlock()
	var gone []*pod
	for _, q := range ask {
		if c.cfg.Gone(q.pod.instance.Cluster, q.ref, q.known) {
			gone = append(gone, q.pod)
		}
	}
	return gone
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
