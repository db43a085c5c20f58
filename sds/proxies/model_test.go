package proxies_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

// modelSeed names a variable that runs the model check with one seed alone.
const modelSeed = "HALLMARK_MODEL_SEED"

// TestModel plays random interleavings of what can happen to a few streams of a
// few pods, before the real registration authority. What must hold of each
// response, [sdstest.Stream] checks when it comes; in the end each stream has
// ended, or has the newest that its pod may have.
func TestModel(t *testing.T) {
	t.Parallel()
	first, count := uint64(1), uint64(100)
	if text := os.Getenv(modelSeed); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, count = seed, 1
	} else if testing.Short() {
		count = 10
	}
	for seed := first; seed < first+count; seed++ {
		synctest.Test(t, func(t *testing.T) {
			m := &model{scene: newScene(t, 30*time.Minute, nil), rand: rand.New(rand.NewPCG(seed, 1))}
			m.play(t)
			if t.Failed() {
				for _, step := range m.steps {
					t.Log(step)
				}
				t.Fatalf("%s=%d go test -run TestModel ./sds/proxies plays this again", modelSeed, seed)
			}
		})
		if t.Failed() {
			return
		}
	}
}

type model struct {
	*scene
	rand    *rand.Rand
	pods    [2]modelPod
	streams [5]*sdstest.Stream // each of pod i % 2
	failing bool               // the ledger
	steps   []string
}

// modelPod is one pod, and what the gate says of its image.
type modelPod struct {
	pod    *attest.Pod
	token  string
	image  string
	ruling attest.Reason // zero: it passes
	gone   bool
}

func (m *model) log(format string, args ...any) {
	m.steps = append(m.steps, fmt.Sprintf(format, args...))
}

func (m *model) play(t *testing.T) {
	for i := range m.pods {
		p := &m.pods[i]
		p.image = fmt.Sprintf("registry.example/pod@sha256:%d%d", i, i)
		p.pod, p.token = m.Pod("shop", fmt.Sprint("pod-", i), "web", p.image)
	}
	for range 100 {
		if i := m.rand.IntN(len(m.streams)); m.rand.IntN(3) == 0 {
			m.environment(t, &m.pods[i%2])
		} else {
			m.client(t, i)
		}
		if m.rand.IntN(2) == 0 {
			synctest.Wait()
		}
		if t.Failed() {
			break
		}
	}
	m.settle(t)
	for _, c := range m.streams {
		if c != nil {
			c.Cancel()
			<-c.Done()
		}
	}
}

// environment does one thing to what stands behind the streams.
func (m *model) environment(t *testing.T, p *modelPod) {
	switch m.rand.IntN(10) {
	case 0:
		reasons := []attest.Reason{attest.ImageUnsigned, attest.RegistryAway, attest.EvidencePending}
		p.ruling = reasons[m.rand.IntN(len(reasons))]
		m.log("%s: %s", p.pod.Ref, p.ruling)
		m.Gate.Deny(p.image, p.ruling)
		m.feed.Announce(attest.Change{Digest: p.image[len(p.image)-9:]})
	case 1, 2:
		p.ruling = 0
		m.log("%s passes", p.pod.Ref)
		m.Gate.Pass(p.image)
		m.feed.Announce(attest.Change{})
	case 3:
		m.log("new root")
		m.Authority.AddRoot(t)
	case 4:
		m.log("new issuing CA")
		m.Authority.Renew(t)
	case 5:
		p.gone = !p.gone
		m.log("%s gone: %v", p.pod.Ref, p.gone)
		if p.gone {
			m.Cluster.Remove(p.pod.Ref)
			m.feed.Announce(attest.Change{Instance: attest.Instance{Cluster: p.pod.Cluster, PodUID: p.pod.Ref.UID}})
			return
		}
		next := *p.pod
		next.Ref.UID += "'"
		p.pod, p.token = &next, m.Cluster.Add(&next)
	case 6:
		m.failing = !m.failing
		m.log("ledger fails: %v", m.failing)
		if m.failing {
			m.Authority.Ledger.Fail(errLedger)
			return
		}
		m.Authority.Ledger.Fail(nil)
	default:
		d := time.Duration(1+m.rand.IntN(20)) * time.Minute
		if m.rand.IntN(2) == 0 {
			d /= 60
		}
		m.log("pass %s", d)
		<-time.After(d)
	}
}

// client does one thing on one stream.
func (m *model) client(t *testing.T, i int) {
	c := m.streams[i]
	p := &m.pods[i%2]
	if c == nil || c.Ended() {
		if !p.gone {
			m.Cluster.Add(p.pod) // kubelet keeps the token fresh
		}
		m.log("open %d", i)
		c = sdstest.Open(t, m.server, p.token, time.Now)
		m.streams[i] = c
		c.First(nil, m.names()...)
		return
	}
	synctest.Wait()
	switch m.rand.IntN(10) {
	case 0:
		m.log("lose %d", i)
		c.Cancel()
	case 1:
		m.log("nack %d", i)
		c.Nack()
	case 2:
		names := m.names()
		m.log("nack %d with %v", i, names)
		c.Refuse(names...)
	case 3, 4:
		names := m.names()
		m.log("ask %d for %v", i, names)
		c.Ask(names...)
	default:
		m.log("ack %d", i)
		c.Ack()
	}
}

func (m *model) names() []string {
	return [][]string{{"default"}, {"ROOTCA"}, {"default", "ROOTCA"}, {"ROOTCA", "unknown"}, {}}[m.rand.IntN(5)]
}

// settle lets everything that is under way come to its end, and holds what the
// clients have against what they may have.
func (m *model) settle(t *testing.T) {
	m.Authority.Ledger.Fail(nil)
	for range 3 * 60 { // longer than any pause before a question is put again
		pass(time.Second)
		for _, c := range m.streams {
			if c != nil && !c.Ended() && c.Waiting() {
				c.Ack()
			}
		}
	}
	synctest.Wait()
	for i, c := range m.streams {
		if c == nil || c.Ended() {
			continue
		}
		p := &m.pods[i%2]
		if len(c.Names()) > 0 && (p.gone || p.ruling.Kind() == attest.KindForbidden) && len(c.Responses()) > 0 {
			t.Errorf("stream %d is open, and its pod is gone (%v) or refused (%s)", i, p.gone, p.ruling)
		}
		have := c.Have()
		for _, name := range c.Names() {
			if c.Refused(name) || name == "unknown" {
				continue
			}
			if have[name] == nil {
				t.Errorf("stream %d waits for %q", i, name)
				continue
			}
			if name == "ROOTCA" && !bytes.Equal(sdstest.Roots(t, have[name]), m.Authority.Current().BundlePEM()) {
				t.Errorf("stream %d has not the newest roots", i)
			}
			if name == "default" {
				leaf := sdstest.Leaf(t, have[name])
				if got, want := fmt.Sprintf("%032x", leaf.SerialNumber), m.newest(p.pod.Ref.UID); got != want {
					t.Errorf("stream %d has serial %s, and the newest is %s", i, got, want)
				}
				if !time.Now().Before(leaf.NotAfter) {
					t.Errorf("stream %d has a leaf that has ended", i)
				}
			}
		}
	}
}

// newest returns the serial of the last certificate that a pod was given.
func (m *model) newest(uid string) string {
	serial := ""
	issued := map[string]bool{}
	for _, o := range m.Authority.Ledger.Outcomes() {
		issued[o.Serial] = true
	}
	for _, i := range m.Authority.Ledger.Intents() {
		if i.PodUID == uid && issued[i.Serial] {
			serial = fmt.Sprintf("%032s", i.Serial)
		}
	}
	return serial
}
