package census

import "time"

// SetElapsed puts a clock that nobody sets in the place of the process's own.
func (c *Census) SetElapsed(elapsed func() time.Duration) {
	c.elapsed = func(time.Time) time.Duration { return elapsed() }
}

// Shards is how many locks there are.
const Shards = shards
