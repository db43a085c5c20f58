package census_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := func() census.Config {
		s := newScene(t, nil)
		return census.Config{Doors: map[string]census.Kind{streams: census.Acked}, Registerer: prometheus.NewRegistry(), Log: s.logger(), Now: time.Now}
	}
	if _, err := census.New(good()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*census.Config){
		"no doors":      func(c *census.Config) { c.Doors = nil },
		"our own door":  func(c *census.Config) { c.Doors = map[string]census.Kind{ca.DoorSelf: census.Acked} },
		"no kind":       func(c *census.Config) { c.Doors = map[string]census.Kind{streams: 0} },
		"another kind":  func(c *census.Config) { c.Doors = map[string]census.Kind{streams: 3} },
		"a nameless":    func(c *census.Config) { c.Doors = map[string]census.Kind{"": census.Acked} },
		"negative":      func(c *census.Config) { c.MaxConsumers = -1 },
		"no log":        func(c *census.Config) { c.Log = nil },
		"no clock":      func(c *census.Config) { c.Now = nil },
		"no registerer": func(c *census.Config) { c.Registerer = nil },
		"same metrics twice": func(c *census.Config) {
			if _, err := census.New(*c); err != nil {
				t.Fatal(err)
			}
		},
	} {
		cfg := good()
		change(&cfg)
		if _, err := census.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func (s *scene) gauge(name string) float64 {
	s.tb.Helper()
	families, err := s.metrics.Gather()
	if err != nil {
		s.tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	s.tb.Fatalf("no metric %s", name)
	return 0
}

// TestFull wants gates shut, and it said, while there are consumers for whom
// there was no room.
func TestFull(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(cfg *census.Config) { cfg.MaxConsumers = 2 })
	s.open("a")
	s.ack("a", 2)
	s.issue(streams, "a", 2)
	s.issueFor(answers, "b", 2, 24*time.Hour)
	s.want("as many as there is room for", 2, "", "")
	full := func(step string, unkept int) census.Summary {
		t.Helper()
		sum := s.Summary(census.Question{Sequence: 2, Since: start, AsideAfter: time.Second, SeenSince: s.now, Names: 10})
		if sum.Unkept != unkept || sum.BehindCount != unkept || sum.Consumers != sum.Confirmed+unkept || len(sum.Behind) != 0 || sum.UnseenCount < unkept || sum.AsideCount != 0 {
			t.Errorf("%s: want %d not kept and behind: %+v", step, unkept, sum)
		}
		if got, want := s.gauge("hallmark_census_incomplete"), min(unkept, 1); got != float64(want) {
			t.Errorf("%s: incomplete is %v", step, got)
		}
		return sum
	}
	s.issueFor(answers, "c", 2, time.Hour)
	s.open("d")
	s.ack("d", 2)
	sum := full("two more", 2)
	if !sum.Earliest.Equal(start.Add(time.Hour)) || !sum.Latest.IsZero() {
		t.Errorf("earliest %s, latest %s", sum.Earliest, sum.Latest)
	}
	if n := sum.Leaves[s.rootID(t, 0)].Count; n != 3 {
		t.Errorf("%d leaves, want also that of the one who is not kept", n)
	}
	if n := strings.Count(s.log.String(), "cannot be kept"); n != 1 || s.gauge("hallmark_census_turned_away_total") != 2 {
		t.Errorf("said %d times; turned away %v", n, s.gauge("hallmark_census_turned_away_total"))
	}
	s.close("d")
	sum = full("the stream is closed", 1)
	if !sum.Latest.Equal(start.Add(time.Hour)) {
		t.Errorf("latest %s", sum.Latest)
	}
	s.pass(time.Hour)
	full("the last second of the leaf", 1)
	s.pass(time.Second)
	full("over", 0)
	if !strings.Contains(s.log.String(), "known again") {
		t.Errorf("the log does not say that it is over:\n%s", &s.log)
	}
	// Whoever lapses makes room also where nobody asks for a summary.
	s.close("a")
	s.pass(life + 20*time.Minute)
	for i := range 64 * census.Shards { // one of these is in the shard of a
		if s.issue(streams, fmt.Sprint("next-", i), 2); s.gauge("hallmark_census_consumers") != 2 {
			t.Fatalf("%v consumers", s.gauge("hallmark_census_consumers"))
		}
	}
	if n := strings.Count(s.log.String(), "cannot be kept"); n != 2 {
		t.Errorf("said %d times, want once each time that it comes to that", n)
	}
	if sum := s.ask(); sum.Unkept == 0 || sum.Unkept >= 64*census.Shards || len(sum.Behind) != 1 {
		t.Errorf("%d not kept, behind %v", sum.Unkept, sum.Behind)
	}
}

// TestStreamsNotKept has a consumer be known with one stream of two.
func TestStreamsNotKept(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(cfg *census.Config) { cfg.MaxConsumers = 1 })
	s.open("a")
	s.open("b") // no room
	s.close("a")
	s.pass(time.Hour)
	s.ask() // a is forgotten
	s.open("b")
	s.ack("b", 2)
	if sum := s.ask(); sum.Confirmed != 1 || sum.Unkept != 1 {
		t.Errorf("%+v", sum)
	}
	s.close("b")
	if sum := s.ask(); sum.Unkept != 1 {
		t.Errorf("one of two streams is closed, and it is not known which: %+v", sum)
	}
	s.close("b")
	if sum := s.ask(); sum.Unkept != 0 || sum.Consumers != 0 {
		t.Errorf("%+v", sum)
	}
}

// TestNameless wants what names no consumer to hold the gates like one for whom
// there is no room.
func TestNameless(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	caller := s.caller(t, "a")
	s.Issued(answers, &ca.Issued{Snapshot: s.snapshot(t, 0, 2), NotAfter: s.now.Add(life), Facts: attest.Facts{Caller: caller}})
	caller.Pod.UID = ""
	s.Opened(streams, caller, s.now)
	if sum := s.ask(); sum.Unkept != 2 || sum.BehindCount != 2 || sum.Confirmed != 0 {
		t.Errorf("%+v", sum)
	}
}

// TestGone wants a pod that is gone to hold nothing but its leaves, and nobody
// else to be asked after.
func TestGone(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	for _, pod := range []string{"a", "b", "c", "d"} {
		s.issue(answers, pod, 1)
		s.issue(streams, pod, 1)
		s.open(pod)
	}
	s.pass(time.Minute)
	s.ack("c", 1)
	s.ack("d", 2)
	s.issue(answers, "d", 2)
	s.pass(301 * time.Second)
	s.gone["a"], s.gone["b"], s.gone["d"] = true, true, true
	s.close("a")
	s.want("a and b are gone", 2, "c,c", "")
	if diff := cmp.Diff(map[string]int{"uid-a": 1, "uid-b": 1, "uid-c": 1}, s.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	if !s.known["uid-a"].Equal(start) || !s.known["uid-c"].Equal(start.Add(time.Minute)) {
		t.Errorf("known to have been there %v", s.known)
	}
	if n := s.gauge("hallmark_census_consumers"); n != 5 {
		t.Errorf("%v are kept, want c, d, and b's stream", n)
	}
	s.issue(answers, "b", 1) // was under way
	s.want("again", 2, "c,c", "")
	s.close("b")
	s.want("b's stream has ended", 2, "c,c", "")
	if n := s.gauge("hallmark_census_consumers"); n != 4 {
		t.Errorf("%v are kept", n)
	}
	if sum := s.ask(); sum.Leaves[s.rootID(t, 0)].Count != 10 {
		t.Errorf("the leaves of those that are gone are outstanding all the same: %+v", sum.Leaves)
	}
	if s.asked["uid-d"] != 0 || s.asked["uid-b"] != 1 {
		t.Errorf("asked %v", s.asked)
	}
}

// TestCrowded wants everybody to be asked after while there is little room.
func TestCrowded(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(cfg *census.Config) { cfg.MaxConsumers = 8 })
	for i := range 8 {
		s.issue(answers, fmt.Sprint(i), 2)
		s.gone[fmt.Sprint(i)] = i < 4
	}
	if s.ask(); len(s.asked) != 8 || s.gauge("hallmark_census_consumers") != 4 {
		t.Errorf("asked %v, %v are kept", s.asked, s.gauge("hallmark_census_consumers"))
	}
	if s.ask(); s.asked["uid-7"] != 1 {
		t.Errorf("asked %v", s.asked)
	}
}

// TestLeaves counts by root, to the last second, whoever holds them.
func TestLeaves(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	old, next := s.rootID(t, 0), s.rootID(t, 1)
	want := func(step string, want map[string]census.Leaves) {
		t.Helper()
		if diff := cmp.Diff(want, s.ask().Leaves); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step, diff)
		}
	}
	want("none", map[string]census.Leaves{})
	s.issue(answers, "a", 1)
	s.pass(time.Hour)
	s.issue(answers, "a", 1)
	s.issue(strange, "b", 1)
	s.root = 1
	s.issueFor(answers, "a", 2, 24*time.Hour)
	ends := start.Add(life + time.Hour)
	after := census.Leaves{Count: 1, Until: start.Add(25 * time.Hour)}
	want("three and one", map[string]census.Leaves{old: {Count: 3, Until: ends}, next: after})
	s.pass(life - time.Hour + time.Minute)
	want("the first has ended", map[string]census.Leaves{old: {Count: 2, Until: ends}, next: after})
	s.pass(time.Hour - time.Minute)
	want("the last second", map[string]census.Leaves{old: {Count: 2, Until: ends}, next: after})
	s.pass(time.Nanosecond)
	want("over", map[string]census.Leaves{next: after})
}

// TestRehearsal wants everybody back on a new connection who had a stream.
func TestRehearsal(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	for _, pod := range []string{"stays", "returns", "fails", "leafless", "old-connection", "unknown-connection", "gone", "back-off"} {
		s.open(pod)
		s.ack(pod, 2)
		if pod != "leafless" {
			s.issue(streams, pod, 2)
		}
	}
	s.issue(streams, "away", 2) // has a leaf, and no stream
	s.ack("away", 2)
	s.issue(answers, "answers", 2)
	s.open("left-before")
	s.close("left-before")
	s.pass(time.Nanosecond)
	s.close("back-off")
	s.pass(2 * time.Minute)
	s.gone["gone"] = true
	began := s.now
	unseen := func() string {
		t.Helper()
		sum := s.Summary(census.Question{Sequence: 2, Since: start, AsideAfter: aside, SeenSince: began, Names: 100})
		if sum.UnseenCount != len(sum.Unseen) || sum.BehindCount != 0 {
			t.Errorf("%+v", sum)
		}
		return podsOf(sum.Unseen)
	}
	if got := unseen(); got != "back-off,fails,leafless,old-connection,returns,stays,unknown-connection" {
		t.Errorf("when it begins: %s", got)
	}
	if sum := s.ask(); sum.UnseenCount != 0 {
		t.Errorf("unseen and not asked: %+v", sum)
	}
	s.pass(time.Second)
	for _, pod := range []string{"returns", "fails", "leafless", "back-off"} {
		s.close(pod)
	}
	s.Opened(streams, s.caller(t, "old-connection"), began.Add(-time.Nanosecond))
	s.Opened(streams, s.caller(t, "unknown-connection"), time.Time{})
	s.pass(time.Second)
	s.Opened(streams, s.caller(t, "returns"), began)
	s.Opened(streams, s.caller(t, "returns"), began.Add(-time.Hour)) // also that is proof
	s.open("back-off")
	s.open("new")
	s.ack("new", 2)
	if got := unseen(); got != "fails,leafless,old-connection,stays,unknown-connection" {
		t.Errorf("those that did not return: %s", got)
	}
	s.pass(2 * time.Minute)
	// It was a failure, and all come back under the old certificate; but the
	// leafless one, which is no consumer any more.
	for _, pod := range []string{"fails", "stays"} {
		s.open(pod)
	}
	s.pass(15 * time.Minute)
	began = s.now
	if got := unseen(); got != "back-off,fails,new,old-connection,returns,stays,unknown-connection" {
		t.Errorf("the next one: %s", got)
	}
}

// restored returns what the ledger has of one leaf.
func (s *scene) restored(door, pod, status string, ends time.Duration) ledger.Entry {
	caller := s.caller(s.tb, pod)
	return ledger.Entry{Status: status, Intent: &ledger.Intent{
		Time: start.Add(-time.Hour), Identity: caller.Identity.String(), Cluster: caller.Cluster, Namespace: caller.Pod.Namespace, Pod: caller.Pod.Name,
		PodUID: caller.Pod.UID, Node: caller.Node, Door: door, Root: s.rootID(s.tb, 0), NotAfter: start.Add(ends),
	}}
}

// TestRestore wants a restart to know of each leaf that lives, and of no
// confirmation.
func TestRestore(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	own := s.restored(ca.DoorSelf, "own", ledger.Issued, time.Hour)
	own.Intent.Identity, own.Intent.PodUID = "hallmark.example", ""
	for _, e := range []ledger.Entry{
		s.restored(answers, "a", ledger.Issued, time.Hour),
		s.restored(answers, "b", ledger.MaybeIssued, 2*time.Hour),
		s.restored(streams, "c", ledger.Issued, 3*time.Hour),
		s.restored(streams, "c", "a status of tomorrow", 4*time.Hour),
		s.restored(strange, "d", ledger.Issued, time.Hour),
		s.restored(answers, "ended", ledger.Issued, -time.Second),
		s.restored(answers, "left", ledger.Abandoned, time.Hour),
		s.restored(answers, "failed", ledger.Failed, time.Hour),
		{Status: "refused", Refusal: &ledger.Refusal{}},
		own,
	} {
		s.Restore(e)
	}
	sum := s.want("restored", 0, "a,b,c,d", "")
	if want := (census.Leaves{Count: 5, Until: start.Add(4 * time.Hour)}); sum.Leaves[s.rootID(t, 0)] != want {
		t.Errorf("leaves %v", sum.Leaves)
	}
	a := sum.Behind[0]
	if a.Node != "node-1" || a.Pod.String() != "shop/a" || !a.Seen.Equal(start.Add(-time.Hour)) || a.Confirmed != 0 {
		t.Errorf("%+v", a)
	}
	// One that had no stream in this process may have had one before.
	sum = s.Summary(census.Question{Sequence: 2, SeenSince: start.Add(-time.Hour), Names: 10})
	if got := podsOf(sum.Unseen); got != "c" {
		t.Errorf("unseen: %s", got)
	}
	s.pass(time.Minute)
	s.issue(answers, "a", 2)
	s.open("c")
	s.ack("c", 2)
	sum = s.Summary(census.Question{Sequence: 2, SeenSince: start, Names: 10})
	if got := podsOf(sum.Unseen); got != "" {
		t.Errorf("unseen: %s", got)
	}
	s.pass(301 * time.Second)
	s.want("two have come", 2, "b,d", "")
	s.close("c")
	sum = s.Summary(census.Question{Sequence: 2, SeenSince: s.now.Add(5 * time.Minute), Names: 10})
	if got := podsOf(sum.Unseen); got != "" {
		t.Errorf("unseen: %s", got)
	}
	// Nobody is set aside sooner than if it were new.
	s.pass(aside - 7*time.Minute)
	s.Restore(s.restored(answers, "late", ledger.Issued, 48*time.Hour))
	s.want("later", 0, "late", "")
}

// TestRestoreNeverMixes wants what the ledger says later to take nothing from
// what was seen.
func TestRestoreNeverMixes(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	s.open("a")
	s.ack("a", 2)
	s.close("a")
	s.pass(10 * time.Minute)
	s.Restore(s.restored(streams, "a", ledger.Issued, time.Hour))
	s.want("a has confirmed", 1, "", "")
	if sum := s.Summary(census.Question{Sequence: 3, SeenSince: s.now, Names: 1}); sum.UnseenCount != 0 || !sum.Behind[0].Seen.Equal(start) {
		t.Errorf("%+v", sum)
	}
}

// TestRestoring wants no gate to open before the ledger is read, and what it
// holds that names nobody to hold the gates.
func TestRestoring(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	c, err := census.New(census.Config{Doors: map[string]census.Kind{streams: census.Acked}, Registerer: prometheus.NewRegistry(), Log: s.logger(), Now: func() time.Time { return s.now }})
	if err != nil {
		t.Fatal(err)
	}
	q := census.Question{Sequence: 2, SeenSince: start, AsideAfter: time.Nanosecond}
	if sum := c.Summary(q); !sum.Restoring || sum.BehindCount != 1 || sum.UnseenCount != 1 || sum.Consumers != 1 || !sum.Latest.IsZero() {
		t.Errorf("%+v", sum)
	}
	damaged := s.restored(streams, "a", ledger.Issued, time.Hour)
	damaged.Intent.Identity = "spiffe://elsewhere"
	c.Restore(damaged)
	c.Restored()
	if sum := c.Summary(q); sum.Restoring || sum.BehindCount != 1 || sum.Unkept != 1 || sum.Leaves[damaged.Intent.Root].Count != 1 {
		t.Errorf("%+v", sum)
	}
	s.pass(time.Hour + time.Second)
	if sum := c.Summary(q); sum.BehindCount != 0 || sum.Unkept != 0 || len(sum.Leaves) != 0 {
		t.Errorf("%+v", sum)
	}
}

// TestClock wants a clock that is set to open no gate, and to shut none for
// ever.
func TestClock(t *testing.T) {
	t.Parallel()
	var ran time.Duration // of the process
	setup := func() *scene {
		ran = 0
		s := newScene(t, nil)
		s.SetElapsed(func() time.Duration { return ran })
		s.issue(answers, "a", 1)
		s.issue(answers, "b", 2)
		s.open("c")
		s.pass(time.Hour)
		ran += time.Hour
		return s
	}
	s := setup()
	s.pass(48 * time.Hour) // wrongly
	if sum := s.want("set ahead", 1, "a,c", ""); sum.Leaves[s.rootID(t, 0)].Count != 2 {
		t.Errorf("leaves %v", sum.Leaves)
	}
	if !strings.Contains(s.log.String(), "the clock was set") {
		t.Error("not said")
	}
	s.pass(life - time.Hour + 1)
	ran += life - time.Hour + 1
	if sum := s.want("the leaves have ended on both clocks", 0, "c", ""); len(sum.Leaves) != 0 {
		t.Errorf("leaves %v", sum.Leaves)
	}
	s.pass(aside - (life - time.Hour) - 2)
	ran += aside - (life - time.Hour) - 2
	s.want("not yet two lives after the clock was set", 0, "c", "")
	s.pass(1)
	ran++
	s.want("two lives after the clock was set", 0, "", "c")

	s = setup()
	s.pass(-3 * time.Hour) // 10:00, and leaves that end at 18:00
	s.pass(life)
	ran += life
	if sum := s.want("set back", 1, "a,c", ""); sum.Leaves[s.rootID(t, 0)].Count < 1 || !sum.Leaves[s.rootID(t, 0)].Until.Equal(start.Add(life)) {
		t.Errorf("leaves %v at %s", sum.Leaves, s.now)
	}
	s.pass(2*time.Hour + 1)
	ran += 2*time.Hour + 1
	if sum := s.want("over, by both clocks", 0, "c", ""); len(sum.Leaves) != 0 {
		t.Errorf("leaves %v", sum.Leaves)
	}
	// The 300 s are the process's own.
	s.issue(answers, "d", 1)
	s.issue(answers, "d", 2)
	s.pass(time.Hour)
	s.want("set ahead by an hour", 0, "c,d", "")
	if n := strings.Count(s.log.String(), "the clock was set"); n != 2 {
		t.Errorf("said %d times, want twice", n)
	}
	ran += 301 * time.Second
	s.want("settled", 1, "c", "")
}

// TestAtOnce has everything happen at once to a few pods, in every shard.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(cfg *census.Config) { cfg.Gone, cfg.Now = nil, time.Now })
	s.now = time.Now()
	const workers, pods, rounds = 8, 40, 50
	s.snapshot(t, 0, 2)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for r := range rounds {
				for p := range pods {
					pod := fmt.Sprint("pod-", p)
					s.open(pod)
					s.issue(streams, pod, 2)
					s.ack(pod, 2)
					s.issue(answers, fmt.Sprint(pod, "-", w), 2)
					s.refuse(fmt.Sprint(pod, "-", w))
					s.close(pod)
				}
				if r%10 == w {
					s.ask()
				}
			}
		})
	}
	group.Wait()
	sum := s.ask()
	if want := pods + pods*workers; sum.Confirmed != want || sum.Consumers != want || sum.UnseenCount != 0 {
		t.Errorf("%+v, want %d confirmed", sum, want)
	}
	if n := sum.Leaves[s.rootID(t, 0)].Count; n != 2*workers*pods*rounds {
		t.Errorf("%d leaves", n)
	}
}

// TestChurn wants pods that come and go to leave nothing behind.
func TestChurn(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(cfg *census.Config) { cfg.MaxConsumers = 3000 })
	for hour := range 48 {
		for i := range 200 {
			pod := fmt.Sprint("pod-", hour, "-", i)
			s.open(pod)
			s.issue(streams, pod, 1)
			s.issue(answers, pod, 1)
			s.close(pod)
		}
		s.pass(time.Hour)
		if sum := s.ask(); sum.Unkept != 0 || sum.Consumers > 400*int(life/time.Hour) {
			t.Fatalf("hour %d: %+v", hour, sum)
		}
	}
	s.pass(24 * time.Hour)
	if sum := s.ask(); sum.Consumers != 0 || len(sum.Leaves) != 0 || s.gauge("hallmark_census_consumers") != 0 {
		t.Errorf("%+v", sum)
	}
}

// TestMemory wants a consumer to cost no more than 1 KiB, with two leaves and
// texts as long as those of a mesh. It runs before the tests that run at once.
func TestMemory(t *testing.T) {
	s := newScene(t, func(cfg *census.Config) { cfg.Now = time.Now })
	const n = 50_000
	before := heap()
	fill(s, n)
	each := (heap() - before) / n
	t.Logf("%d bytes a consumer", each)
	if each > 1024 {
		t.Errorf("%d bytes a consumer", each)
	}
	runtime.KeepAlive(s)
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
