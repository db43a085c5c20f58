package signing

import (
	"context"
	"sync"
)

// turns bound work that costs CPU, and share it out: each name has one turn at a
// time, so that whoever has much of it waits for itself.
type turns struct {
	slots chan struct{}

	mu  sync.Mutex // guards own
	own shares
}

func newTurns(n int) turns { return turns{slots: make(chan struct{}, n), own: newShares(1)} }

// take waits for name's turn until ctx ends.
func (t *turns) take(ctx context.Context, name string) (release func(), ok bool) {
	t.mu.Lock()
	own := t.own.enter(name)
	t.mu.Unlock()
	var taken []chan struct{}
	release = func() {
		for _, slots := range taken {
			<-slots
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.own.leave(name)
	}
	for _, slots := range []chan struct{}{own, t.slots} {
		select { // a turn that is free is taken whatever time is left
		case slots <- struct{}{}:
			taken = append(taken, slots)
			continue
		default:
		}
		select {
		case slots <- struct{}{}:
			taken = append(taken, slots)
		case <-ctx.Done():
			release()
			return func() {}, false
		}
	}
	return release, true
}

// shares give each of several names (registries, namespaces) a part of what may
// be done at once. There is one for a name as long as somebody uses it, so that
// there are never more than questions. Their owner's lock guards them; the slots
// are taken without it.
type shares struct {
	size   int
	byName map[string]*share
}

type share struct {
	slots chan struct{}
	uses  int
}

func newShares(size int) shares { return shares{max(1, size), map[string]*share{}} }

// users returns how often name is in use.
func (s *shares) users(name string) int {
	if one := s.byName[name]; one != nil {
		return one.uses
	}
	return 0
}

// enter returns the slots of name, until leave.
func (s *shares) enter(name string) chan struct{} {
	one := s.byName[name]
	if one == nil {
		one = &share{slots: make(chan struct{}, s.size)}
		s.byName[name] = one
	}
	one.uses++
	return one.slots
}

func (s *shares) leave(name string) {
	one := s.byName[name]
	if one.uses--; one.uses == 0 {
		delete(s.byName, name)
	}
}
