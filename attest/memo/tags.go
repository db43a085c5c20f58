package memo

import "slices"

// tagged is one entry in the list of those that bear one tag. Lists rather than
// sets: nearly every tag has one entry, and a removal must cost the same with
// ten thousand.
type tagged[K comparable, V any] struct {
	entry      *entry[K, V]
	prev, next *tagged[K, V]
}

// link enters e under each of its tags. The lock is held.
func (c *Cache[K, V]) link(e *entry[K, V]) {
	e.links = make([]tagged[K, V], len(e.answer.Tags))
	for i, tag := range e.answer.Tags {
		l := &e.links[i]
		l.entry, l.next = e, c.tags[tag]
		if l.next != nil {
			l.next.prev = l
		}
		c.tags[tag] = l
	}
}

// evicted takes e out of the lists of its tags, whatever it left the cache for.
// The lock is held.
func (c *Cache[K, V]) evicted(_ K, e *entry[K, V]) {
	for i, tag := range e.answer.Tags {
		l := &e.links[i]
		if l.next != nil {
			l.next.prev = l.prev
		}
		switch {
		case l.prev != nil:
			l.prev.next = l.next
		case l.next != nil:
			c.tags[tag] = l.next
		default:
			delete(c.tags, tag)
		}
	}
}

// historySize is how many invalidations by tag a call may outlive; the answer of
// one that outlived more is taken for forgotten.
const historySize = 1024

// history is the last invalidations by tag, while calls are under way: what tags
// a call's answer will bear is known only when it is there.
type history struct {
	position uint64 // invalidations so far
	tags     []string
}

func (h *history) add(tag string) {
	if h.tags == nil {
		h.tags = make([]string, historySize)
	}
	h.tags[h.position%historySize] = tag
	h.position++
}

// last returns the position behind the last invalidation of one of tags since
// begun, or 0.
func (h *history) last(begun uint64, tags []string) uint64 {
	if h.position-begun > historySize {
		return h.position
	}
	for i := h.position; i > begun; i-- {
		if slices.Contains(tags, h.tags[(i-1)%historySize]) {
			return i
		}
	}
	return 0
}

// clear lets the texts go when no call is left that could ask.
func (h *history) clear() { clear(h.tags) }
