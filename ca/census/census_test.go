package census_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/census"
)

// The doors of these tests: one of each kind, and one that is not configured.
const (
	streams = "streams"
	answers = "answers"
	strange = "strange"
)

const (
	life  = 6 * time.Hour // of a leaf
	aside = 2 * life
)

var start = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// authorities makes snapshots of any sequence under one of two roots.
type authorities struct {
	td    attest.TrustDomain
	roots []*x509.Certificate
	cfg   []ca.SnapshotConfig // by root

	mu    sync.Mutex // guards made
	made  map[[2]uint64]*ca.Snapshot
	begin time.Time
}

func newAuthorities(tb testing.TB, begin time.Time) *authorities {
	tb.Helper()
	a := &authorities{td: attesttest.Domain(tb, "cluster.local"), made: map[[2]uint64]*ca.Snapshot{}, begin: begin}
	for range 2 {
		rootKey, key := catest.Key(tb), catest.Key(tb)
		root := catest.Certify(tb, ca.Root, a.td, rootKey, ca.Parent{}, catest.RootLifetime, begin)
		issuing := catest.Certify(tb, ca.Issuing, a.td, key, ca.Parent{Certificate: root, Signer: rootKey}, catest.IssuingLifetime, begin)
		a.roots = append(a.roots, root)
		a.cfg = append(a.cfg, ca.SnapshotConfig{TrustDomain: a.td, Signer: key, Chain: []*x509.Certificate{issuing}})
	}
	return a
}

func (a *authorities) snapshot(tb testing.TB, root int, sequence uint64) *ca.Snapshot {
	tb.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	key := [2]uint64{uint64(root), sequence}
	if a.made[key] == nil {
		cfg := a.cfg[root]
		cfg.Sequence, cfg.Roots = sequence, a.roots
		snap, err := ca.NewSnapshot(cfg, a.begin)
		if err != nil {
			tb.Fatal(err)
		}
		a.made[key] = snap
	}
	return a.made[key]
}

// rootID names a root as a summary does.
func (a *authorities) rootID(tb testing.TB, root int) string {
	tb.Helper()
	return a.snapshot(tb, root, 1).RootID()
}

func (a *authorities) identity(tb testing.TB, namespace, account string) attest.Identity {
	tb.Helper()
	id, err := attest.NewIdentity(a.td, namespace, account)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// caller is a pod shop/NAME on node-1 with the account web.
func (a *authorities) caller(tb testing.TB, name string) attest.Caller {
	tb.Helper()
	return attest.Caller{
		Cluster: "Kubernetes", Identity: a.identity(tb, "shop", "web"), Node: "node-1",
		Pod: attest.PodRef{Namespace: "shop", Name: name, UID: "uid-" + name},
	}
}

// scene is a census and what it is told.
type scene struct {
	*census.Census
	*authorities
	tb      testing.TB
	now     time.Time // of the scene's own clock, if it has one
	root    int       // that leaves are under
	log     bytes.Buffer
	metrics *prometheus.Registry
	gone    map[string]bool // by pod
	asked   map[string]int  // Gone, by UID
	known   map[string]time.Time
}

// newScene makes a census whose clock is scene.now, unless change gives another.
func newScene(tb testing.TB, change func(*census.Config)) *scene {
	tb.Helper()
	s := &scene{tb: tb, now: start, metrics: prometheus.NewRegistry(), gone: map[string]bool{}, asked: map[string]int{}, known: map[string]time.Time{}}
	cfg := census.Config{
		Doors:      map[string]census.Kind{streams: census.Acked, answers: census.Carried},
		Registerer: s.metrics, Log: slog.New(slog.NewTextHandler(&s.log, nil)),
		Now: func() time.Time { return s.now },
		Gone: func(_ string, pod attest.PodRef, known time.Time) bool {
			s.asked[pod.UID]++
			s.known[pod.UID] = known
			return s.gone[pod.Name]
		},
	}
	if change != nil {
		change(&cfg)
	}
	s.authorities = newAuthorities(tb, cfg.Now())
	var err error
	if s.Census, err = census.New(cfg); err != nil {
		tb.Fatal(err)
	}
	s.Restored()
	return s
}

func (s *scene) pass(d time.Duration) { s.now = s.now.Add(d) }

// issue gives a leaf that ends in life.
func (s *scene) issue(door, pod string, sequence uint64) { s.issueFor(door, pod, sequence, life) }

func (s *scene) issueFor(door, pod string, sequence uint64, life time.Duration) {
	s.tb.Helper()
	caller := s.caller(s.tb, pod)
	s.Issued(door, &ca.Issued{
		Snapshot: s.snapshot(s.tb, s.root, sequence), NotAfter: s.now.Add(life),
		Facts: attest.Facts{Identity: caller.Identity, Caller: caller},
	})
}

func (s *scene) open(pod string)  { s.Opened(streams, s.caller(s.tb, pod), s.now) }
func (s *scene) close(pod string) { s.Closed(streams, s.caller(s.tb, pod)) }
func (s *scene) ack(pod string, sequence uint64) {
	s.Confirmed(streams, s.caller(s.tb, pod).Instance(), sequence)
}

func (s *scene) refuse(pod string) {
	caller := s.caller(s.tb, pod)
	s.Refused(answers, caller, caller.Identity)
}

// ask asks for a bundle of sequence 2 that was published at the start.
func (s *scene) ask() census.Summary {
	return s.Summary(census.Question{Sequence: 2, Since: start, AsideAfter: aside, Names: 10})
}

// want compares who is confirmed, behind (by pod) and set aside.
func (s *scene) want(step string, confirmed int, behind, asideNames string) census.Summary {
	s.tb.Helper()
	sum := s.ask()
	if got := fmt.Sprint(sum.Confirmed, " ", podsOf(sum.Behind), " ", podsOf(sum.Aside)); got != fmt.Sprint(confirmed, " ", behind, " ", asideNames) {
		s.tb.Errorf("%s: confirmed, behind, aside: %q, want %d %q %q", step, got, confirmed, behind, asideNames)
	}
	if sum.BehindCount != len(sum.Behind) || sum.AsideCount != len(sum.Aside) || sum.Consumers != sum.Confirmed+sum.BehindCount+sum.AsideCount {
		s.tb.Errorf("%s: the counts are not of the names: %+v", step, sum)
	}
	return sum
}

func podsOf(list []census.Consumer) string {
	var pods []string
	for _, c := range list {
		pods = append(pods, c.Pod.Name)
	}
	return strings.Join(pods, ",")
}

// step is something that happens, and who stands how after it.
type step struct {
	name          string
	do            func(s *scene)
	confirmed     int
	behind, aside string
}

func TestGateA(t *testing.T) {
	t.Parallel()
	wait := func(d time.Duration) func(*scene) { return func(s *scene) { s.pass(d) } }
	nothing := func(*scene) {}
	for name, steps := range map[string][]step{
		"nobody": {{"nobody is there", nothing, 0, "", ""}},
		"a stream confirms by its answer, and by nothing else": {
			{"opened", func(s *scene) { s.open("a") }, 0, "a", ""},
			{"given a leaf with the bundle", func(s *scene) { s.issue(streams, "a", 2) }, 0, "a", ""},
			{"not asked for again", wait(301 * time.Second), 0, "a", ""},
			{"accepted the bundle before", func(s *scene) { s.ack("a", 1) }, 0, "a", ""},
			{"accepted it", func(s *scene) { s.ack("a", 2) }, 1, "", ""},
			{"late word of the one before", func(s *scene) { s.ack("a", 1) }, 1, "", ""},
		},
		"a later bundle is as good": {
			{"", func(s *scene) { s.open("a"); s.ack("a", 7) }, 1, "", ""},
		},
		"a stream's word does not count for answers, nor before it is known": {
			{"", func(s *scene) {
				s.ack("a", 2)
				s.Confirmed(answers, s.caller(s.tb, "b").Instance(), 2)
				s.open("a")
				s.issue(answers, "b", 1)
				s.Confirmed(answers, s.caller(s.tb, "b").Instance(), 2)
			}, 0, "a,b", ""},
		},
		"a leaf keeps one live that has gone away": {
			{"given a leaf", func(s *scene) { s.open("a"); s.issue(streams, "a", 1); s.close("a") }, 0, "a", ""},
			{"its last second", wait(life), 0, "a", ""},
			{"over", wait(time.Second), 0, "", ""},
		},
		"a stream alone is live while it is open": {
			{"two streams", func(s *scene) { s.open("a"); s.open("a") }, 0, "a", ""},
			{"one of them", func(s *scene) { s.close("a") }, 0, "a", ""},
			{"none", func(s *scene) { s.close("a") }, 0, "", ""},
			{"back, as itself", func(s *scene) { s.ack("a", 2); s.open("a") }, 1, "", ""},
			{"more ends than there were streams", func(s *scene) { s.close("a"); s.close("a"); s.close("a"); s.open("a") }, 1, "", ""},
		},
		"who was forgotten comes back as a stranger": {
			{"", func(s *scene) { s.open("a"); s.ack("a", 2); s.close("a"); s.pass(16 * time.Minute); s.open("a") }, 0, "a", ""},
		},
		"the last moment in which it is remembered": {
			{"", func(s *scene) { s.open("a"); s.ack("a", 2); s.close("a"); s.pass(15 * time.Minute); s.open("a") }, 1, "", ""},
		},
		"one that never answers is set aside": {
			{"", func(s *scene) { s.open("a") }, 0, "a", ""},
			{"not yet", wait(aside - time.Nanosecond), 0, "a", ""},
			{"now", wait(time.Nanosecond), 0, "", "a"},
			{"another has as long", func(s *scene) { s.open("b") }, 0, "b", "a"},
			{"late, but an answer", func(s *scene) { s.ack("a", 2) }, 1, "b", ""},
			{"the other", wait(aside), 1, "", "b"},
		},
		"an answer counts when it was not asked for again": {
			{"before", func(s *scene) { s.issue(answers, "a", 1) }, 0, "a", ""},
			{"with the bundle", func(s *scene) { s.pass(time.Minute); s.issue(answers, "a", 2) }, 0, "a", ""},
			{"the last moment", wait(300 * time.Second), 0, "a", ""},
			{"past it", wait(time.Nanosecond), 1, "", ""},
			{"asked for again, later", func(s *scene) { s.issue(answers, "a", 2) }, 1, "", ""},
		},
		"asked for again in the last moment": {
			{"", func(s *scene) {
				s.issue(answers, "a", 1)
				s.issue(answers, "a", 2)
				s.pass(300 * time.Second)
				s.issue(answers, "a", 2)
				s.pass(300 * time.Second)
			}, 0, "a", ""},
			{"", wait(time.Nanosecond), 1, "", ""},
		},
		"asked for again for ever: until the older leaves have ended": {
			{"", func(s *scene) {
				s.issue(answers, "a", 1)
				for range int(life / (5 * time.Minute)) {
					s.pass(5 * time.Minute)
					s.issue(answers, "a", 2)
				}
			}, 0, "a", ""},
			{"the older has", wait(time.Nanosecond), 1, "", ""},
		},
		"refused when it asked again": {
			{"", func(s *scene) { s.issue(answers, "a", 1); s.issue(answers, "a", 2); s.pass(time.Minute); s.refuse("a") }, 0, "a", ""},
			{"it may have neither", wait(time.Hour), 0, "a", ""},
			{"the older has ended", wait(life), 0, "", ""},
		},
		"refused later": {
			{"", func(s *scene) {
				s.issue(answers, "a", 1)
				s.issue(answers, "a", 2)
				s.pass(301 * time.Second)
				s.refuse("a")
			}, 1, "", ""},
			{"strangers are refused, too", func(s *scene) { s.refuse("b") }, 1, "", ""},
		},
		"one that comes new has the bundle, or nothing": {
			{"", func(s *scene) { s.issue(answers, "a", 2) }, 1, "", ""},
		},
		"an older answer in the place of a newer": {
			{"", func(s *scene) { s.issue(answers, "a", 2); s.pass(time.Hour); s.issue(answers, "a", 1) }, 0, "a", ""},
			{"taken", wait(301 * time.Second), 0, "a", ""},
		},
		"all in one moment": {
			{"", func(s *scene) {
				s.issue(answers, "a", 1)
				s.issue(answers, "a", 2)
				s.issue(answers, "a", 1)
				s.open("b")
				s.issue(streams, "b", 2)
				s.ack("b", 2)
				s.close("b")
				s.open("b")
			}, 1, "a", ""},
		},
		"more bundles in use than are told apart": {
			{"asked for again for ever", func(s *scene) {
				for _, given := range []struct {
					sequence uint64
					life     time.Duration
				}{{1, time.Hour}, {2, 3 * time.Hour}, {3, 2 * time.Hour}, {4, 2 * time.Hour}} {
					s.issueFor(answers, "a", given.sequence, given.life)
				}
				s.refuse("a")
			}, 0, "a", ""},
			{"1 and 2 are taken for one, which has not ended", wait(2 * time.Hour), 0, "a", ""},
			{"with it, all have", wait(time.Hour + 1), 0, "", ""},
		},
		"a bundle between them": {
			{"", func(s *scene) {
				s.issueFor(answers, "a", 1, 4*time.Hour)
				for sequence := range uint64(3) {
					s.issueFor(answers, "a", 2+sequence, time.Hour)
				}
				s.refuse("a")
			}, 0, "a", ""},
			{"the last of the oldest", wait(4 * time.Hour), 0, "a", ""},
			{"over", wait(1), 0, "", ""},
		},
		"a door that is not configured": {
			{"", func(s *scene) {
				s.issue(strange, "a", 2)
				s.Confirmed(strange, s.caller(s.tb, "a").Instance(), 2)
				s.pass(301 * time.Second)
			}, 0, "a", ""},
			{"", wait(life), 0, "", ""},
		},
		"a pod at two doors is two": {
			{"", func(s *scene) { s.issue(answers, "a", 1); s.open("a") }, 0, "a,a", ""},
			{"", func(s *scene) { s.ack("a", 2) }, 1, "a", ""},
		},
		"a leaf that had ended when it was told of": {
			{"", func(s *scene) { s.issueFor(answers, "a", 1, -time.Hour) }, 0, "", ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, nil)
			for i, step := range steps {
				step.do(s)
				s.want(fmt.Sprint(i, " ", step.name), step.confirmed, step.behind, step.aside)
			}
		})
	}
}

// TestNode learns the node of a pod when it is told.
func TestNode(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	caller := s.caller(t, "a")
	caller.Node = ""
	s.Opened(streams, caller, s.now)
	s.open("a")
	if sum := s.ask(); sum.BehindCount != 1 || sum.Behind[0].Node != "node-1" || sum.Behind[0].Streams != 2 {
		t.Errorf("%+v", sum)
	}
}

// TestSequenceZero wants nobody to hold a bundle that was never given out.
func TestSequenceZero(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	s.issue(answers, "a", 2)
	s.open("b")
	s.ack("b", 2)
	s.pass(time.Hour)
	if sum := s.Summary(census.Question{}); sum.BehindCount != 2 || sum.Confirmed != 0 || sum.Behind != nil {
		t.Errorf("%+v", sum)
	}
}

// TestIdentities wants each identity that one instance asks for to be a
// consumer of its own, as those of a node's ztunnel are.
func TestIdentities(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	ztunnel := s.caller(t, "ztunnel")
	for i := range 200 {
		s.Issued(answers, &ca.Issued{
			Snapshot: s.snapshot(t, 0, uint64(1+i%2)), NotAfter: s.now.Add(life),
			Facts: attest.Facts{Identity: s.identity(t, "shop", fmt.Sprint("account-", i)), Caller: ztunnel},
		})
	}
	s.pass(301 * time.Second)
	sum := s.ask()
	if sum.Confirmed != 100 || sum.BehindCount != 100 || len(sum.Behind) != 10 {
		t.Errorf("%d confirmed, %d behind, %d by name", sum.Confirmed, sum.BehindCount, len(sum.Behind))
	}
	want := census.Consumer{
		Door: answers, Identity: s.identity(t, "shop", "account-0"), Instance: ztunnel.Instance(), Pod: ztunnel.Pod, Node: "node-1",
		Confirmed: 1, Until: start.Add(life), Seen: start,
	}
	if diff := cmp.Diff(want, sum.Behind[0], cmp.Comparer(func(a, b attest.Identity) bool { return a == b })); diff != "" {
		t.Errorf("the first by name (-want +got):\n%s", diff)
	}
}

// TestAnswersOfAnAuthority feeds the census what a real authority issues.
func TestAnswersOfAnAuthority(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	now := func() time.Time { return s.now }
	authority := catest.New(t, s.td, now, nil)
	cluster := attesttest.NewCluster(s.td, now)
	registrar := attesttest.NewRegistrar(t, cluster, &attesttest.Gate{}, now)
	token := cluster.Add(attesttest.Pod("shop", "web-0", "web", "registry.example/web@sha256:aa"))
	issue := func() *ca.Issued {
		issued, err := authority.Issue(context.Background(), attesttest.Grant(t, registrar, token), ca.Request{CSR: catest.CSR(t, catest.Key(t), attest.Identity{})})
		if err != nil {
			t.Fatal(err)
		}
		s.Issued(answers, issued)
		return issued
	}
	first := issue()
	authority.AddRoot(t)
	published := authority.Current().Sequence()
	question := census.Question{Sequence: published, Since: s.now, AsideAfter: aside, Names: 10}
	sum := s.Summary(question)
	if len(sum.Behind) != 1 || sum.Behind[0].Pod.String() != "shop/web-0" || sum.Behind[0].Node != "node-1" || !sum.Behind[0].Until.Equal(first.NotAfter) {
		t.Fatalf("%+v", sum)
	}
	second := issue()
	s.pass(301 * time.Second)
	sum = s.Summary(question)
	want := map[string]census.Leaves{first.Snapshot.RootID(): {Count: 2, Until: later(first.NotAfter, second.NotAfter)}}
	if sum.Confirmed != 1 || sum.BehindCount != 0 || !cmp.Equal(sum.Leaves, want) {
		t.Errorf("%+v, want leaves %v", sum, want)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// TestEarliest wants to know when the gate can open, and when it will.
func TestEarliest(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		do               func(s *scene)
		earliest, latest time.Duration // from the start; 0: none
	}{
		"nobody behind":             {func(s *scene) { s.open("a"); s.ack("a", 2) }, 0, 0},
		"a stream":                  {func(s *scene) { s.pass(time.Hour); s.open("a") }, time.Hour, time.Hour + aside},
		"a leaf without a stream":   {func(s *scene) { s.issue(streams, "a", 1); s.pass(time.Second) }, time.Second, life},
		"an answer to be asked for": {func(s *scene) { s.issue(answers, "a", 1); s.pass(time.Hour) }, time.Hour + 5*time.Minute, life},
		"an answer to be waited for": {func(s *scene) {
			s.issue(answers, "a", 1)
			s.pass(time.Hour)
			s.issue(answers, "a", 2)
			s.pass(time.Minute)
		}, time.Hour + 5*time.Minute, time.Hour + 5*time.Minute},
		"an answer that ends sooner":   {func(s *scene) { s.issueFor(answers, "a", 1, time.Minute) }, time.Minute, time.Minute},
		"a door that is not known":     {func(s *scene) { s.issue(strange, "a", 1) }, life, life},
		"the one that takes longest":   {func(s *scene) { s.issue(answers, "a", 1); s.pass(time.Hour); s.open("b") }, time.Hour + 5*time.Minute, time.Hour + aside},
		"set aside it holds no longer": {func(s *scene) { s.open("a"); s.pass(aside); s.issueFor(streams, "b", 1, time.Hour) }, aside, aside + time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, nil)
			test.do(s)
			sum := s.ask()
			for _, c := range []struct {
				name string
				got  time.Time
				want time.Duration
			}{{"earliest", sum.Earliest, test.earliest}, {"latest", sum.Latest, test.latest}} {
				if want := start.Add(c.want); c.want == 0 && !c.got.IsZero() || c.want != 0 && !c.got.Equal(want) {
					t.Errorf("%s %s, want %s after the start", c.name, c.got, c.want)
				}
			}
			if sum = s.Summary(census.Question{Sequence: 2, Since: start}); name == "a stream" && !sum.Latest.IsZero() {
				t.Errorf("nobody is ever set aside, and the gate opens by itself at %s", sum.Latest)
			}
		})
	}
}

// TestTime plays a morning on the clocks of a process.
func TestTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, func(cfg *census.Config) { cfg.Now = time.Now })
		published := time.Now()
		summary := func() census.Summary {
			s.now = time.Now()
			return s.Summary(census.Question{Sequence: 2, Since: published, AsideAfter: aside, Names: 10})
		}
		s.now = time.Now()
		s.open("a")
		s.issue(streams, "a", 1)
		s.issue(answers, "b", 1)
		acked := time.AfterFunc(time.Hour, func() { s.ack("a", 2) })
		defer acked.Stop()
		<-time.After(time.Hour - 1)
		if sum := summary(); sum.BehindCount != 2 {
			t.Fatalf("%+v", sum)
		}
		<-time.After(1)
		synctest.Wait()
		if sum := summary(); podsOf(sum.Behind) != "b" || !sum.Latest.Equal(published.Add(life)) {
			t.Fatalf("%+v", sum)
		}
		<-time.After(life - time.Hour)
		if sum := summary(); podsOf(sum.Behind) != "b" {
			t.Fatalf("its leaf has a moment left: %+v", sum)
		}
		<-time.After(1)
		if sum := summary(); sum.BehindCount != 0 || sum.Confirmed != 1 || len(sum.Leaves) != 0 {
			t.Fatalf("%+v", sum)
		}
	})
}
