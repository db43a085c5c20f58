package kube

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/hallmark-ca/hallmark/attest"
)

// kind is one of the resources that the view holds.
type kind uint8

const (
	pods kind = iota
	nodes
	accounts
	kinds // how many there are
)

// String returns the resource's name in the API.
func (k kind) String() string { return [...]string{"pods", "nodes", "serviceaccounts"}[k] }

// path returns where the resource, or all of it, is in the API.
func (k kind) path(n name) string {
	path := "/api/v1"
	if n.namespace != "" {
		path += "/namespaces/" + n.namespace
	}
	path += "/" + k.String()
	if n.name != "" {
		path += "/" + n.name
	}
	return path
}

// deletedSize bounds the memory of pods that the watch has seen deleted.
const deletedSize = 1 << 13

// view is what the watches have told of the cluster.
//
// Its age: for each resource the time is kept at which the last event, bookmark
// or consistent list of the watch itself was taken in. An API server sends
// events in order, and a bookmark about once a minute where there are none, so
// that at such a moment the view holds all that came before; an open connection
// shows nothing, and after a gap longer than Limits.Stale events count only once
// a bookmark has shown that the backlog is through. Where neither comes for Limits.Silence (an API server may send
// no bookmarks for a resource that has not changed since it started), the watch
// is begun anew with a consistent list. The view is as old as its oldest part.
// What cannot be seen from here is an API server whose own copy lags behind its
// store; it ends its watches when it notices.
type view struct {
	now     func() time.Time
	forget  func(uid string)    // reviews of tokens that rest on it
	changed func(podUID string) // something that a decision rests on
	deleted *simplelru.LRU[string, struct{}]

	mu      sync.RWMutex // guards all below, and deleted
	pods    map[name]*attest.Pod
	uids    [kinds]map[name]string // of nodes and accounts
	listing [kinds]time.Time       // when the list under way began; zero: it comes by the watch
	fresh   [kinds]time.Time       // zero: never complete
	behind  [kinds]bool            // events do not count before the next bookmark or list
	waiting map[wanted]map[chan struct{}]struct{}
}

// wanted names what somebody waits for.
type wanted struct {
	kind kind
	name name
}

func newView(now func() time.Time, forget, changed func(string)) (*view, error) {
	deleted, err := simplelru.NewLRU[string, struct{}](deletedSize, nil)
	if err != nil {
		return nil, fmt.Errorf("making view: %w", err)
	}
	v := &view{now: now, forget: forget, changed: changed, deleted: deleted, pods: map[name]*attest.Pod{}, waiting: map[wanted]map[chan struct{}]struct{}{}}
	v.uids[nodes], v.uids[accounts] = map[name]string{}, map[name]string{}
	return v, nil
}

// facts are what the view knows of a token's pod.
type facts struct {
	live    attest.Live
	agree   bool // with the token, or finally against it
	deleted bool // the watch has seen the pod deleted
}

// facts looks b up. What agrees with the token needs no other proof; what does
// not may only be late.
func (v *view) facts(b attest.Bound) facts {
	v.mu.RLock()
	defer v.mu.RUnlock()
	f := facts{live: attest.Live{AsOf: slices.MinFunc(v.fresh[:], time.Time.Compare)}}
	f.live.ServiceAccountUID = v.uids[accounts][name{b.Namespace, b.ServiceAccount}]
	f.live.Pod = v.pods[name{b.Namespace, b.PodName}]
	if f.live.Pod != nil {
		f.live.NodeUID = v.uids[nodes][name{name: f.live.Pod.Node}]
	}
	if f.live.Pod != nil && f.live.Pod.Ref.UID == b.PodUID {
		ended := f.live.Pod.Terminating || finished(f.live.Pod)
		f.agree = ended || matches(b, f.live)
		return f
	}
	f.deleted = v.deleted.Contains(b.PodUID)
	return f
}

// matches tells whether node and account are those that the token names.
func matches(b attest.Bound, live attest.Live) bool {
	return live.ServiceAccountUID == b.ServiceAccountUID &&
		(b.NodeName == "" || b.NodeName == live.Pod.Node) &&
		(b.NodeUID == "" || b.NodeUID == live.NodeUID)
}

func finished(p *attest.Pod) bool { return p.Phase != "Pending" && p.Phase != "Running" }

// times returns when each resource was seen last; zero: it was never complete.
func (v *view) times() [kinds]time.Time {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.fresh
}

// wait returns a channel that gets a value when one of what is named may have
// changed, until stop is called.
func (v *view) wait(names ...wanted) (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, n := range names {
		if v.waiting[n] == nil {
			v.waiting[n] = map[chan struct{}]struct{}{}
		}
		v.waiting[n][ch] = struct{}{}
	}
	return ch, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, n := range names {
			delete(v.waiting[n], ch)
			if len(v.waiting[n]) == 0 {
				delete(v.waiting, n)
			}
		}
	}
}

// wake tells those who wait. The lock is held.
func (v *view) wake(n wanted) {
	for ch := range v.waiting[n] {
		select {
		case ch <- struct{}{}:
		default: // it knows
		}
	}
}

// opening is how a source begins to tell of its resource.
type opening uint8

const (
	openList    opening = iota // with a list of now
	openInitial                // with a watch that sends such a list first
	openWatch                  // with a watch from where the last one ended
)

// begun notes that a source opens.
func (v *view) begun(k kind, how opening, stale time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.now()
	switch how {
	case openList:
		v.listing[k] = now
	case openInitial:
		v.listing[k] = time.Time{}
	case openWatch:
		// What comes first may be as old as the gap.
		v.behind[k] = now.Sub(v.fresh[k]) > stale
	}
}

// told notes that an event of k has been taken in. The lock is held.
func (v *view) told(k kind) {
	if !v.behind[k] {
		v.fresh[k] = v.now()
	}
}

// caughtUp notes that all of k until at has been taken in. The lock is held.
func (v *view) caughtUp(k kind, at time.Time) { v.behind[k], v.fresh[k] = false, at }

// effects are what has to be told once the lock is free.
type effects struct{ forget, changed []string }

func (v *view) tell(e effects) {
	for _, uid := range e.forget {
		v.forget(uid)
	}
	for _, uid := range e.changed {
		v.changed(uid)
	}
}

// gone notes that old is no longer there. The lock is held.
func (v *view) gone(k kind, n name, uid string, e *effects) {
	e.forget = append(e.forget, uid)
	switch k {
	case pods:
		v.deleted.Add(uid, struct{}{})
		e.changed = append(e.changed, uid)
	case nodes:
		e.changed = append(e.changed, v.podsWhere(func(p *attest.Pod) bool { return p.Node == n.name })...)
	case accounts:
		e.changed = append(e.changed, v.podsWhere(func(p *attest.Pod) bool {
			return p.Ref.Namespace == n.namespace && p.ServiceAccount == n.name
		})...)
	}
}

// podsWhere returns the UIDs of the pods for which is holds. Nodes and accounts
// go rarely: an index would cost each pod memory at all times.
func (v *view) podsWhere(is func(*attest.Pod) bool) []string {
	var uids []string
	for _, p := range v.pods {
		if is(p) {
			uids = append(uids, p.Ref.UID)
		}
	}
	return uids
}

// put takes an object in. The lock is held.
func (v *view) put(k kind, o *object, e *effects) {
	defer v.wake(wanted{k, o.name})
	if k != pods {
		old := v.uids[k][o.name]
		v.uids[k][o.name] = o.uid
		if old != "" && old != o.uid {
			v.gone(k, o.name, old, e)
		}
		return
	}
	old := v.pods[o.name]
	v.pods[o.name] = o.pod
	switch {
	case old == nil:
	case old.Ref.UID != o.uid:
		v.gone(k, o.name, old.Ref.UID, e)
	case differs(old, o.pod):
		e.changed = append(e.changed, o.uid)
	}
}

// remove drops the object of that name, whatever its UID: a watch tells of
// deletions in order. The lock is held.
func (v *view) remove(k kind, n name, e *effects) {
	defer v.wake(wanted{k, n})
	if k != pods {
		if old, ok := v.uids[k][n]; ok {
			delete(v.uids[k], n)
			v.gone(k, n, old, e)
		}
		return
	}
	if old := v.pods[n]; old != nil {
		delete(v.pods, n)
		v.gone(k, n, old.Ref.UID, e)
	}
}

// differs tells whether something that a decision rests on is different.
// Containers start and stop; only for ephemeral ones does it matter.
func differs(a, b *attest.Pod) bool {
	same := func(x, y attest.Container) bool {
		if x.Kind != attest.ContainerEphemeral {
			x.Running = y.Running
		}
		return x == y
	}
	return a.Terminating != b.Terminating || finished(a) != finished(b) || a.Node != b.Node || a.ServiceAccount != b.ServiceAccount ||
		!maps.Equal(a.Labels, b.Labels) || !slices.EqualFunc(a.Containers, b.Containers, same)
}

// replace takes a complete list in.
func (v *view) replace(k kind, list []*object) {
	var e effects
	v.mu.Lock()
	there := make(map[name]struct{}, len(list))
	for _, o := range list {
		there[o.name] = struct{}{}
		v.put(k, o, &e)
	}
	for n := range v.uids[k] {
		if _, ok := there[n]; !ok {
			v.remove(k, n, &e)
		}
	}
	if k == pods {
		for n := range v.pods {
			if _, ok := there[n]; !ok {
				v.remove(k, n, &e)
			}
		}
	}
	if at := v.listing[k]; at.IsZero() {
		v.caughtUp(k, v.now())
	} else {
		v.caughtUp(k, at)
	}
	v.mu.Unlock()
	v.tell(e)
}

// store is the view as client-go's reflector sees it, for one resource.
type store struct {
	view *view
	kind kind
}

// Add implements cache.ReflectorStore.
func (s store) Add(obj any) error { return s.Update(obj) }

// Update implements cache.ReflectorStore.
func (s store) Update(obj any) error {
	o, ok := obj.(*object)
	if !ok {
		return fmt.Errorf("taking in %s: got %T", s.kind, obj)
	}
	var e effects
	s.view.mu.Lock()
	s.view.put(s.kind, o, &e)
	s.view.told(s.kind)
	s.view.mu.Unlock()
	s.view.tell(e)
	return nil
}

// Delete implements cache.ReflectorStore.
func (s store) Delete(obj any) error {
	o, ok := obj.(*object)
	if !ok {
		return fmt.Errorf("taking in %s: got %T", s.kind, obj)
	}
	var e effects
	s.view.mu.Lock()
	s.view.remove(s.kind, o.name, &e)
	s.view.told(s.kind)
	s.view.mu.Unlock()
	s.view.tell(e)
	return nil
}

// Replace implements cache.ReflectorStore.
func (s store) Replace(list []any, _ string) error {
	objects := make([]*object, 0, len(list))
	for _, item := range list {
		o, ok := item.(*object)
		if !ok {
			return fmt.Errorf("taking in %s: got %T", s.kind, item)
		}
		objects = append(objects, o)
	}
	s.view.replace(s.kind, objects)
	return nil
}

// Resync implements cache.ReflectorStore.
func (store) Resync() error { return nil }

// Bookmark implements cache.ReflectorBookmarkStore: all that came before has
// been taken in.
func (s store) Bookmark(string) error {
	s.view.mu.Lock()
	defer s.view.mu.Unlock()
	s.view.caughtUp(s.kind, s.view.now())
	return nil
}

// uid returns the UID of a node or account, "" where there is none.
func (v *view) uid(k kind, n name) string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.uids[k][n]
}
