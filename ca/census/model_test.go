package census_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// modelSeed names a variable that runs the model check with one seed alone.
const modelSeed = "HALLMARK_MODEL_SEED"

// TestModel tells a census and a naive model the same random story. The model
// keeps everything that it was ever told, and answers from the words of the
// rules. Where more bundles are in use at once than the census tells apart, it
// may call fewer confirmed than the model, and never more.
func TestModel(t *testing.T) {
	t.Parallel()
	first, count := uint64(1), uint64(400)
	if text := os.Getenv(modelSeed); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, count = seed, 1
	} else if testing.Short() {
		count = 40
	}
	shared := newAuthorities(t, start)
	var seen model
	for seed := first; seed < first+count; seed++ {
		m := &model{scene: newScene(t, nil), rand: rand.New(rand.NewPCG(seed, 3)), many: seed%4 == 0, sequence: 1, consumers: map[modelKey]*modelConsumer{}, buried: map[string]bool{}}
		m.authorities = shared
		m.play()
		if t.Failed() {
			for _, step := range m.steps {
				t.Log(step)
			}
			t.Fatalf("%s=%d go test -run TestModel ./ca/census plays this again", modelSeed, seed)
		}
		seen.add(m)
	}
	if count > 1 && (seen.confirmed == 0 || seen.behind == 0 || seen.aside == 0 || seen.unseen == 0) {
		t.Errorf("the stories never came to each end: %d confirmed, %d behind, %d aside, %d unseen", seen.confirmed, seen.behind, seen.aside, seen.unseen)
	}
}

type model struct {
	*scene
	rand                             *rand.Rand
	many                             bool // bundles change often
	sequence                         uint64
	published, changed               time.Time
	consumers                        map[modelKey]*modelConsumer
	leaves                           []modelLeaf
	buried                           map[string]bool // pods that were found gone
	steps                            []string
	confirmed, behind, aside, unseen int
}

func (m *model) add(other *model) {
	m.confirmed, m.behind, m.aside, m.unseen = m.confirmed+other.confirmed, m.behind+other.behind, m.aside+other.aside, m.unseen+other.unseen
}

type modelKey struct{ door, pod, account string }

func (k modelKey) String() string { return k.door + " " + k.pod + " " + k.account }

type modelLeaf struct {
	root     int
	sequence uint64
	end      time.Time
}

// modelAsk is a question for a leaf, and the bundle that the answer carried; 0:
// it was refused.
type modelAsk struct {
	at       time.Time
	sequence uint64
}

// modelConsumer is all that ever happened to one.
type modelConsumer struct {
	first      time.Time
	restored   bool
	leaves     []modelLeaf
	asks       []modelAsk
	acks       []uint64
	streams    int
	connected  []time.Time
	lastClosed time.Time
}

func (c *modelConsumer) liveLeaves(now time.Time) []modelLeaf {
	return slices.DeleteFunc(slices.Clone(c.leaves), func(l modelLeaf) bool { return now.After(l.end) })
}

func (c *modelConsumer) live(now time.Time) bool { return c.streams > 0 || len(c.liveLeaves(now)) > 0 }

// forgotten: neither leaf nor stream, and none for a quarter of an hour.
func (c *modelConsumer) forgotten(now time.Time) bool {
	return !c.live(now) && c.lastClosed.Before(now.Add(-15*time.Minute))
}

// holds is gate A in the words of the rules. Of answers that may be lost, it
// keeps every bundle that the consumer may be holding.
func (c *modelConsumer) holds(door string, sequence uint64, now time.Time) bool {
	if door == streams {
		return slices.ContainsFunc(c.acks, func(s uint64) bool { return s >= sequence })
	}
	if door != answers {
		return false
	}
	may := []uint64{0}
	for i, ask := range c.asks {
		next := now
		if i+1 < len(c.asks) {
			next = c.asks[i+1].at
		}
		switch {
		case ask.sequence == 0:
		case next.Sub(ask.at) > 300*time.Second:
			may = []uint64{ask.sequence}
		default:
			may = append(may, ask.sequence)
		}
	}
	leaves := c.liveLeaves(now)
	return slices.Min(may) >= sequence || len(leaves) > 0 && !slices.ContainsFunc(leaves, func(l modelLeaf) bool { return l.sequence < sequence })
}

func (m *model) consumer(k modelKey, create bool) *modelConsumer {
	c := m.consumers[k]
	if c != nil && c.forgotten(m.now) {
		delete(m.consumers, k)
		c = nil
	}
	if c == nil && create {
		c = &modelConsumer{first: m.now}
		m.consumers[k] = c
	}
	return c
}

func (m *model) say(format string, args ...any) {
	m.steps = append(m.steps, m.now.Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (m *model) key() modelKey {
	return modelKey{
		door: []string{streams, streams, answers, answers, strange}[m.rand.IntN(5)],
		pod:  fmt.Sprint("pod-", m.rand.IntN(3)), account: []string{"web", "other"}[m.rand.IntN(2)],
	}
}

func (m *model) callerOf(k modelKey) attest.Caller {
	caller := m.caller(m.tb, k.pod)
	caller.Identity = m.identity(m.tb, "shop", k.account)
	return caller
}

func (m *model) play() {
	m.published, m.changed = start, start
	for range m.rand.IntN(6) {
		m.restore()
	}
	for range 120 {
		switch k := m.key(); m.rand.IntN(10) {
		case 0, 1, 2:
			m.time()
		case 3:
			m.publish()
			if m.many {
				m.issueTo(k)
			}
		case 4, 5:
			m.issueTo(k)
		case 6:
			m.toggle(k)
		case 7:
			m.ackOf(k)
		case 8:
			m.turn(k)
		default:
			m.compare()
		}
		if m.tb.(*testing.T).Failed() {
			return
		}
	}
	m.compare()
}

func (m *model) time() {
	steps := []time.Duration{0, 1, time.Second, 299 * time.Second, 300 * time.Second, 301 * time.Second, time.Minute, 14 * time.Minute, 15 * time.Minute, time.Hour, life / 2, life, life + 1}
	m.pass(steps[m.rand.IntN(len(steps))])
}

// publish changes the bundle, no sooner than leaves with two before it can live
// unless there are to be many.
func (m *model) publish() {
	if !m.many && m.now.Sub(m.changed) <= life {
		return
	}
	m.sequence, m.changed = m.sequence+1, m.now
	if m.rand.IntN(2) == 0 {
		m.published = m.now
	}
	m.say("bundle %d", m.sequence)
}

func (m *model) restore() {
	k := m.key()
	ends := time.Duration(m.rand.IntN(int(life)))
	m.say("restore %s for %s", k, ends)
	e := m.restored(k.door, k.pod, ledger.MaybeIssued, ends)
	e.Intent.Identity = m.callerOf(k).Identity.String()
	m.Restore(e)
	c := m.consumer(k, true)
	c.restored = true
	m.gave(c, modelLeaf{0, 0, start.Add(ends)})
}

func (m *model) gave(c *modelConsumer, l modelLeaf) {
	c.leaves = append(c.leaves, l)
	m.leaves = append(m.leaves, l)
}

func (m *model) issueTo(k modelKey) {
	if m.gone[k.pod] {
		return
	}
	l := modelLeaf{m.rand.IntN(2), m.sequence - min(uint64(m.rand.IntN(5)/4), m.sequence-1), m.now.Add(life - time.Duration(m.rand.IntN(int(time.Hour))))}
	m.say("issue %s with %d under %d", k, l.sequence, l.root)
	caller := m.callerOf(k)
	m.Issued(k.door, &ca.Issued{Snapshot: m.snapshot(m.tb, l.root, l.sequence), NotAfter: l.end, Facts: attest.Facts{Identity: caller.Identity, Caller: caller}})
	c := m.consumer(k, true)
	m.gave(c, l)
	c.asks = append(c.asks, modelAsk{m.now, l.sequence})
}

func (m *model) toggle(k modelKey) {
	c := m.consumer(k, false)
	if c != nil && c.streams > 0 && m.rand.IntN(2) == 0 {
		m.say("close %s", k)
		m.Closed(k.door, m.callerOf(k))
		c.streams--
		c.lastClosed = m.now
		return
	}
	if m.gone[k.pod] {
		return
	}
	at := m.now.Add(-time.Duration(m.rand.IntN(2)) * time.Minute)
	m.say("open %s, connected at %s", k, at.Format("15:04:05"))
	m.Opened(k.door, m.callerOf(k), at)
	c = m.consumer(k, true)
	c.streams++
	c.connected = append(c.connected, at)
}

func (m *model) ackOf(k modelKey) {
	sequence := m.sequence - min(uint64(m.rand.IntN(3)/2), m.sequence-1)
	m.say("ack %s of %d", k, sequence)
	m.Confirmed(k.door, m.callerOf(k).Instance(), sequence)
	for other := range maps.Keys(m.consumers) {
		if other.door == k.door && other.pod == k.pod {
			if c := m.consumer(other, false); c != nil {
				c.acks = append(c.acks, sequence)
			}
		}
	}
}

// turn has somebody be refused, or a pod go.
func (m *model) turn(k modelKey) {
	if m.rand.IntN(16) == 0 {
		m.say("%s is gone", k.pod)
		m.gone[k.pod] = true
		return
	}
	m.say("refuse %s", k)
	caller := m.callerOf(k)
	m.Refused(k.door, caller, caller.Identity)
	if c := m.consumer(k, false); c != nil {
		c.asks = append(c.asks, modelAsk{m.now, 0})
	}
}

// verdicts is who stands how, by name.
type verdicts struct{ Confirmed, Behind, Aside, Unseen []string }

func (m *model) compare() {
	q := census.Question{Sequence: m.sequence - min(uint64(m.rand.IntN(3)), m.sequence-1), Since: m.published, AsideAfter: aside, Names: 100}
	if m.rand.IntN(2) == 0 {
		q.SeenSince = m.now.Add(-time.Duration(m.rand.IntN(5)) * time.Minute)
	}
	m.say("ask for %d, seen since %s", q.Sequence, q.SeenSince.Format("15:04:05"))
	sum := m.Summary(q)
	want := m.expect(q)
	got := verdicts{Behind: namesOf(sum.Behind), Aside: namesOf(sum.Aside), Unseen: namesOf(sum.Unseen)}
	m.confirmed, m.behind, m.aside, m.unseen = m.confirmed+sum.Confirmed, m.behind+sum.BehindCount, m.aside+sum.AsideCount, m.unseen+sum.UnseenCount
	if m.many {
		for _, name := range slices.Concat(want.Behind, want.Aside) {
			if !slices.Contains(got.Behind, name) && !slices.Contains(got.Aside, name) {
				m.tb.Errorf("%s has confirmed, and the model knows better", name)
			}
		}
	} else {
		if sum.Confirmed != len(want.Confirmed) {
			m.tb.Errorf("%d have confirmed, the model says %v", sum.Confirmed, want.Confirmed)
		}
		want.Confirmed = nil
		if diff := cmp.Diff(want, got); diff != "" {
			m.tb.Errorf("(-model +census):\n%s", diff)
		}
	}
	if sum.Unkept != 0 || sum.Consumers != sum.Confirmed+sum.BehindCount+sum.AsideCount || len(sum.Behind) != sum.BehindCount || len(sum.Aside) != sum.AsideCount || len(sum.Unseen) != sum.UnseenCount {
		m.tb.Errorf("the counts do not agree: %+v", sum)
	}
	if sum.BehindCount > 0 && (sum.Earliest.Before(m.now) || sum.Latest.Before(sum.Earliest) && !sum.Latest.IsZero()) {
		m.tb.Errorf("at %s, earliest %s, latest %s", m.now, sum.Earliest, sum.Latest)
	}
	m.compareLeaves(sum.Leaves)
}

func (m *model) expect(q census.Question) verdicts {
	found := map[string]verdicts{} // by pod
	for k := range maps.Clone(m.consumers) {
		c := m.consumer(k, false)
		if c == nil || m.buried[k.pod] {
			continue
		}
		v, name := found[k.pod], k.String()
		if m.waitedFor(k, c, q.SeenSince) {
			v.Unseen = append(v.Unseen, name)
		}
		switch {
		case !c.live(m.now):
		case c.holds(k.door, q.Sequence, m.now):
			v.Confirmed = append(v.Confirmed, name)
		case !m.now.Before(later(q.Since, c.first).Add(q.AsideAfter)):
			v.Aside = append(v.Aside, name)
		default:
			v.Behind = append(v.Behind, name)
		}
		found[k.pod] = v
	}
	var all verdicts
	for pod, v := range found {
		if m.gone[pod] && len(v.Behind)+len(v.Aside)+len(v.Unseen) > 0 {
			m.buried[pod] = true
			continue
		}
		all.Confirmed = append(all.Confirmed, v.Confirmed...)
		all.Behind, all.Aside, all.Unseen = append(all.Behind, v.Behind...), append(all.Aside, v.Aside...), append(all.Unseen, v.Unseen...)
	}
	for _, list := range [][]string{all.Confirmed, all.Behind, all.Aside, all.Unseen} {
		slices.Sort(list)
	}
	return all
}

// waitedFor is the rehearsal in the words of the rules.
func (m *model) waitedFor(k modelKey, c *modelConsumer, began time.Time) bool {
	if began.IsZero() || slices.ContainsFunc(c.connected, func(t time.Time) bool { return !t.Before(began) }) {
		return false
	}
	cutOff := !c.lastClosed.IsZero() && !c.lastClosed.Before(began.Add(-2*time.Minute))
	unknown := c.restored && c.lastClosed.IsZero() && k.door == streams && c.live(m.now)
	return c.streams > 0 || cutOff || unknown
}

// compareLeaves allows a leaf to be counted to the end of its minute, unless it
// is the last.
func (m *model) compareLeaves(got map[string]census.Leaves) {
	for root := range 2 {
		var live, rounded int
		var until time.Time
		for _, l := range m.leaves {
			if l.root != root {
				continue
			}
			until = later(until, l.end)
			if !m.now.After(l.end) {
				live++
			}
			if l.end.Sub(start)/time.Minute >= m.now.Sub(start)/time.Minute {
				rounded++
			}
		}
		sum, listed := got[m.rootID(m.tb, root)]
		switch {
		case listed != (live > 0):
			m.tb.Errorf("root %d: %d leaves live, in the answer: %v", root, live, listed)
		case listed && (sum.Count < live || sum.Count > rounded || !sum.Until.Equal(until)):
			m.tb.Errorf("root %d: %+v, want between %d and %d until %s", root, sum, live, rounded, until)
		}
	}
}

func namesOf(list []census.Consumer) []string {
	var out []string
	for _, c := range list {
		account := c.Identity.String()[len("spiffe://cluster.local/ns/shop/sa/"):]
		out = append(out, modelKey{c.Door, c.Pod.Name, account}.String())
	}
	slices.Sort(out)
	return out
}
