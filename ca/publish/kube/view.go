package kube

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/publish"
)

// view is what the watches have told, and what follows of it.
type view struct {
	now      func() time.Time
	targets  map[kind]*target
	takeOver []string
	delay    time.Duration // of kubelet
	wake     func(key)     // something about the object has changed

	mu         sync.Mutex // guards all below
	wanted     *wanted    // nil: no snapshot yet
	namespaces map[string]*namespace
	entries    map[key]*entry
	events     uint64
	synced     [kinds]bool
	failing    [kinds]string // what is wrong with each watch; "": nothing
}

// namespace is one that is to have an object.
type namespace struct {
	uid         string
	terminating bool
	// bornUnder is the sequence that was wanted when the watch saw the namespace
	// made; 0: it is older than our view.
	bornUnder uint64
}

// entry is one object, there or not.
type entry struct {
	object   *object // nil: there is none
	held     checksum
	sequence uint64    // of the bundle that held is of; 0: what is there is none of ours
	at       time.Time // from when on its readers have it
	other    bool      // its readers may have read another content
	problem  string    // that the last decision or write left
	contest  contest
	event    uint64 // the last that told of it, by the view's count
	done     done
}

// done is a write that was answered and that the watch has not shown yet: there
// is no need for another.
type done struct {
	wanted *wanted // nil: there is none
	event  uint64  // of what it was decided on
}

func newView(cfg *Config, targets map[kind]*target, wake func(key)) *view {
	return &view{
		now: cfg.Now, targets: targets, takeOver: cfg.TakeOver, delay: cfg.KubeletDelay, wake: wake,
		namespaces: map[string]*namespace{}, entries: map[key]*entry{},
	}
}

// want takes in a new bundle.
func (v *view) want(w *wanted) {
	v.mu.Lock()
	v.wanted = w
	for k, e := range v.entries {
		v.settle(k, e)
	}
	keys := v.keysLocked()
	v.mu.Unlock()
	for _, k := range keys {
		v.wake(k)
	}
}

// keys returns every object that there is to be.
func (v *view) keys() []key {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.keysLocked()
}

func (v *view) keysLocked() []key {
	var out []key
	if v.targets[configMaps] != nil {
		for name := range v.namespaces {
			out = append(out, key{configMaps, name})
		}
	}
	if v.targets[trustBundles] != nil {
		out = append(out, key{kind: trustBundles})
	}
	return out
}

// entry returns what is known of k. The caller holds mu.
func (v *view) entry(k key) *entry {
	e := v.entries[k]
	if e == nil {
		e = &entry{}
		v.count(e)
		v.entries[k] = e
	}
	return e
}

// count notes that something was told of e. The caller holds mu.
func (v *view) count(e *entry) {
	v.events++
	e.event = v.events
}

// put takes in an object that is there.
func (v *view) put(k kind, o *object, byWatch bool) {
	v.mu.Lock()
	woken, ok := v.putLocked(k, o, byWatch)
	v.mu.Unlock()
	if ok {
		v.wake(woken)
	}
}

func (v *view) putLocked(k kind, o *object, byWatch bool) (key, bool) {
	if k == namespaces {
		old := v.namespaces[o.Name]
		if old == nil || old.uid != string(o.UID) {
			old = &namespace{uid: string(o.UID)}
			if byWatch && v.wanted != nil {
				old.bornUnder = v.wanted.sequence
			}
			v.namespaces[o.Name] = old
		}
		old.terminating = o.terminating
		return key{configMaps, o.Name}, true
	}
	t := v.targets[k]
	if o.Name != t.name {
		return key{}, false
	}
	at := key{k, o.Namespace}
	e := v.entry(at)
	e.object = o
	v.count(e)
	v.settle(at, e)
	return at, true
}

// remove takes in that an object is gone.
func (v *view) remove(k kind, o *object) {
	v.mu.Lock()
	at := key{k, o.Namespace}
	if k == namespaces {
		delete(v.namespaces, o.Name)
		at = key{configMaps, o.Name}
		if e := v.entries[at]; e != nil && e.object == nil {
			delete(v.entries, at)
		}
		v.mu.Unlock()
		return
	}
	if e := v.entries[at]; e != nil {
		v.gone(at, e)
	}
	v.mu.Unlock()
	v.wake(at)
}

// gone forgets an object. Who mounted it goes on with what they have, which may
// be anything.
func (v *view) gone(at key, e *entry) {
	e.object = nil
	v.count(e)
	v.settle(at, e)
	if v.namespaces[at.namespace] == nil && at.kind == configMaps {
		delete(v.entries, at)
	}
}

// replace takes in a whole list.
func (v *view) replace(k kind, list []*object) {
	there := map[string]bool{}
	v.mu.Lock()
	for _, o := range list {
		v.putLocked(k, o, false)
		there[o.Namespace+"/"+o.Name] = true
	}
	if k == namespaces {
		for name := range v.namespaces {
			if !there["/"+name] {
				delete(v.namespaces, name)
			}
		}
	} else {
		for at, e := range v.entries {
			if at.kind != k {
				continue
			}
			v.count(e) // the list is newer than any write
			if e.object != nil && !there[at.namespace+"/"+v.targets[k].name] {
				v.gone(at, e)
			}
		}
	}
	v.synced[k] = true
	keys := v.keysLocked()
	v.mu.Unlock()
	for _, at := range keys {
		v.wake(at)
	}
}

// settle says anew which bundle the readers of an entry have, and since when.
func (v *view) settle(at key, e *entry) {
	o := e.object
	switch {
	case o == nil || !o.has:
		if e.sequence != 0 || e.held != (checksum{}) {
			e.other = true
		}
		e.sequence, e.held, e.at = 0, checksum{}, time.Time{}
	case v.wanted != nil && o.sum == v.wanted.sum:
		if e.sequence == 0 || e.held != o.sum {
			e.at = v.now().Add(v.delay)
			if ns := v.namespaces[at.namespace]; ns != nil && ns.bornUnder == v.wanted.sequence && !e.other {
				e.at = v.now() // nobody there can have read anything else
			}
		}
		e.held, e.sequence = o.sum, v.wanted.sequence
	case e.held == o.sum && e.sequence != 0:
		// The bundle of before, still.
	default:
		e.sequence, e.held, e.at, e.other = 0, o.sum, time.Time{}, true
	}
}

// told notes how a request of a watch went.
func (v *view) told(k kind, err error) (text string, news bool) {
	if err != nil {
		text = attest.Escape(err.Error())
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	news = v.failing[k] != text
	v.failing[k] = text
	return text, news
}

// task is an object as it is decided about.
type task struct {
	object *object
	wanted *wanted
	event  uint64
}

// version is the object's, "" where there is none.
func (t task) version() string {
	if t.object == nil {
		return ""
	}
	return t.object.ResourceVersion
}

// task returns what there is to decide about k; false: nothing, for now.
func (v *view) task(k key) (task, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.wanted == nil || !v.synced[k.kind] {
		return task{}, false
	}
	if k.kind == configMaps {
		if ns := v.namespaces[k.namespace]; ns == nil || ns.terminating {
			return task{}, false
		}
	}
	e := v.entry(k)
	return task{e.object, v.wanted, e.event}, e.done != done{v.wanted, e.event}
}

// note keeps what came of k.
func (v *view) note(k key, change func(*entry)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.entries[k]; e != nil {
		change(e)
	}
}

// report lists all readers, by name.
func (v *view) report() []publish.Reader {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []publish.Reader
	for k := range kinds {
		if v.targets[k] == nil && (k != namespaces || v.targets[configMaps] == nil) {
			continue
		}
		switch {
		case v.failing[k] != "":
			out = append(out, publish.Reader{Name: k.String(), Problem: "what is there is not known: " + v.failing[k]})
		case !v.synced[k]:
			out = append(out, publish.Reader{Name: k.String(), Problem: "what is there is not known yet"})
		}
	}
	for _, k := range v.keysLocked() {
		if ns := v.namespaces[k.namespace]; k.kind == configMaps && ns.terminating {
			continue
		}
		r := publish.Reader{Name: v.targets[k.kind].reader(k.namespace), Problem: unwritten}
		if e := v.entries[k]; e != nil {
			r.Sequence, r.At = e.sequence, e.at
			r.Problem = v.problem(e)
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b publish.Reader) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// unwritten is the problem of an object that has none, and is not right yet.
const unwritten = "not written yet"

// problem says what keeps the newest bundle from e. A replica that does not
// write has only the decision to go by.
func (v *view) problem(e *entry) string {
	if e.problem != "" {
		return e.problem
	}
	if v.wanted == nil {
		return unwritten
	}
	if what := decide(e.object, v.wanted, v.takeOver); what.problem != "" {
		return what.problem
	}
	if e.sequence != v.wanted.sequence {
		return unwritten
	}
	return ""
}

// clear forgets what writing left, once others write.
func (v *view) clear() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.entries {
		e.problem = ""
	}
}

// store is one kind of the view, as client-go's reflector fills it.
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
	s.view.put(s.kind, o, true)
	return nil
}

// Delete implements cache.ReflectorStore.
func (s store) Delete(obj any) error {
	o, ok := obj.(*object)
	if !ok {
		return fmt.Errorf("taking in %s: got %T", s.kind, obj)
	}
	s.view.remove(s.kind, o)
	return nil
}

// Replace implements cache.ReflectorStore.
func (s store) Replace(list []any, _ string) error {
	all := make([]*object, 0, len(list))
	for _, item := range list {
		o, ok := item.(*object)
		if !ok {
			return fmt.Errorf("taking in %s: got %T", s.kind, item)
		}
		all = append(all, o)
	}
	s.view.replace(s.kind, all)
	return nil
}

// Resync implements cache.ReflectorStore.
func (store) Resync() error { return nil }
