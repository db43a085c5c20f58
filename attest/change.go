package attest

import "sync"

// Change tells that something a decision rests on is different now. It decides
// nothing: whoever holds a certificate for what changed asks again, and acts
// on the answer. The fields that are set name what changed; one without any
// touches everybody.
type Change struct {
	Instance Instance // one pod: gone, terminating, other images
	Digest   string   // pods that run this image
}

// Feed hands each announced Change to all who subscribed. The zero value is
// ready.
type Feed struct {
	mu   sync.RWMutex // guards subs and next
	subs map[int]func(Change)
	next int
}

// Subscribe calls fn for each change from now on, until stop is called. fn runs
// on the announcer's goroutine: it MUST return at once and MUST NOT call
// Subscribe or stop.
func (f *Feed) Subscribe(fn func(Change)) (stop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.subs == nil {
		f.subs = map[int]func(Change){}
	}
	id := f.next
	f.next++
	f.subs[id] = fn
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subs, id)
	}
}

// Announce hands c to every subscriber.
func (f *Feed) Announce(c Change) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, fn := range f.subs {
		fn(c)
	}
}
