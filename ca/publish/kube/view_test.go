package kube_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/ca/publish"
	"github.com/hallmark-ca/hallmark/ca/publish/kube"
)

const (
	delay = 2 * time.Minute
	td    = "cluster.local"
)

// clock is a view with a time of its own.
type clock struct {
	*kube.View
	t   *testing.T
	now time.Time
}

func newClock(t *testing.T) *clock {
	c := &clock{t: t, now: time.Now()}
	c.View = kube.NewView(func() time.Time { return c.now }, delay)
	return c
}

// reader returns the report of one namespace.
func (c *clock) reader(namespace string) publish.Reader {
	c.t.Helper()
	for _, r := range c.Report() {
		if r.Name == "configmap "+namespace+"/"+kube.IstioConfigMap {
			return r
		}
	}
	c.t.Fatalf("no reader of %s in %+v", namespace, c.Report())
	return publish.Reader{}
}

// holds wants the namespace to hold a sequence from at on; sequence 0: nothing.
func (c *clock) holds(when, namespace string, sequence uint64, at time.Time) {
	c.t.Helper()
	r := c.reader(namespace)
	if r.Sequence != sequence || sequence != 0 && !r.At.Equal(at) || sequence == 0 && !r.At.IsZero() {
		c.t.Errorf("%s: %+v; want sequence %d from %s", when, r, sequence, at)
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	c := newClock(t)
	if r := c.Report(); len(r) != 2 || r[0].Problem == "" || r[1].Problem == "" {
		t.Errorf("before anything is known: %+v", r)
	}
	c.Lists("a")
	if r := c.reader("a"); r.Problem == "" {
		t.Errorf("before there is a bundle: %+v", r)
	}
	c.Want(kube.Wanted(td, 1, "one"))
	c.holds("without an object", "a", 0, time.Time{})
	c.Holds("a", "one")
	first := c.now.Add(delay)
	c.holds("written", "a", 1, first)

	c.now = c.now.Add(time.Minute)
	c.Holds("a", "one")
	c.holds("told once more", "a", 1, first)
	c.Want(kube.Wanted(td, 2, "two"))
	c.holds("a new bundle that is not there yet", "a", 1, first)
	if r := c.reader("a"); r.Problem == "" {
		t.Errorf("a new bundle that is not there yet is no problem: %+v", r)
	}
	c.Holds("a", "two")
	c.holds("a new bundle", "a", 2, c.now.Add(delay))
	c.Want(kube.Wanted(td, 3, "two"))
	c.holds("another sequence of the same content", "a", 3, c.now.Add(delay))

	c.now = c.now.Add(time.Hour)
	c.Holds("a", "by hand")
	c.holds("changed by hand", "a", 0, time.Time{})
	c.Holds("a", "two")
	c.holds("taken back", "a", 3, c.now.Add(delay))
	c.Holds("a", "")
	c.holds("gone", "a", 0, time.Time{})
	c.now = c.now.Add(time.Hour)
	c.Holds("a", "two")
	c.holds("made anew", "a", 3, c.now.Add(delay))

	// The object may be ahead of this replica.
	c.Holds("a", "four")
	c.holds("ahead", "a", 0, time.Time{})
	c.now = c.now.Add(time.Second)
	c.Want(kube.Wanted(td, 4, "four"))
	c.holds("caught up", "a", 4, c.now.Add(delay))

	c.Failing(errors.New("connection refused"))
	var failing bool
	for _, r := range c.Report() {
		failing = failing || strings.Contains(r.Problem, "connection refused") && r.Sequence == 0 && !r.Holds(1, c.now.Add(time.Hour))
	}
	if !failing {
		t.Errorf("with a watch that fails: %+v", c.Report())
	}
	c.Failing(nil)
	c.Terminates("a", "a")
	if r := c.Report(); len(r) != 0 {
		t.Errorf("of a namespace that terminates: %+v", r)
	}
}

// TestNewNamespaces do not hold up a gate: nobody there can have read anything
// older.
func TestNewNamespaces(t *testing.T) {
	t.Parallel()
	c := newClock(t)
	c.Want(kube.Wanted(td, 1, "one"))
	c.Lists("old")
	c.Holds("old", "one")
	c.holds("one that was there at start", "old", 1, c.now.Add(delay))

	c.Made("new", "1")
	c.Holds("new", "one")
	c.holds("a new one", "new", 1, c.now)
	c.Want(kube.Wanted(td, 2, "two"))
	c.Holds("new", "two")
	c.holds("a new one, at its second bundle", "new", 2, c.now.Add(delay))

	c.Made("raced", "1")
	c.Holds("raced", "one")
	c.Holds("raced", "two")
	c.holds("one in which another was faster", "raced", 2, c.now.Add(delay))

	c.Made("gone", "1")
	c.Holds("gone", "one")
	c.Gone("gone")
	c.Made("gone", "2")
	c.Holds("gone", "two")
	c.holds("one of the same name, with the old object still in sight", "gone", 2, c.now.Add(delay))
	c.Holds("gone", "")
	c.Gone("gone")
	c.Made("gone", "3")
	c.Holds("gone", "two")
	c.holds("one of the same name, made anew", "gone", 2, c.now)

	c.Made("late", "1")
	c.Want(kube.Wanted(td, 3, "three"))
	c.Holds("late", "three")
	c.holds("one made before the bundle", "late", 3, c.now.Add(delay))
}
