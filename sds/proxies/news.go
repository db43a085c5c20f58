package proxies

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
)

// news collects what was announced until it is taken: announcers do not wait.
type news struct {
	arrived chan struct{} // one token

	mu     sync.Mutex // guards latest
	latest latest
}

// latest is what has been announced. It is bounded by the proxies that are
// known, and by maxDigests, above which everybody is touched.
type latest struct {
	snapshot  *ca.Snapshot
	instances map[attest.Instance]bool
	digests   map[string]bool
	everybody bool
}

const maxDigests = 1000

func (n *news) snapshot(s *ca.Snapshot) {
	n.mu.Lock()
	n.latest.snapshot = s
	n.mu.Unlock()
	n.tell()
}

func (n *news) change(c attest.Change, known func(attest.Instance) bool) {
	byPod, byImage := c.Instance != attest.Instance{}, c.Digest != ""
	if byPod && !byImage && !known(c.Instance) {
		return
	}
	n.mu.Lock()
	l := &n.latest
	if byPod {
		if l.instances == nil {
			l.instances = map[attest.Instance]bool{}
		}
		l.instances[c.Instance] = true
	}
	if byImage {
		if l.digests == nil {
			l.digests = map[string]bool{}
		}
		l.digests[c.Digest] = true
	}
	if len(l.digests) > maxDigests || !byPod && !byImage {
		l.everybody, l.digests = true, nil
	}
	n.mu.Unlock()
	n.tell()
}

func (n *news) tell() {
	select {
	case n.arrived <- struct{}{}:
	default: // what is there is taken together
	}
}

func (n *news) take() latest {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.latest
	n.latest = latest{}
	return l
}

// announce has every proxy that is touched asked about again.
func (ps *Proxies) announce(l latest) {
	for instance := range l.instances {
		ps.mu.Lock()
		p := ps.byPod[instance]
		ps.mu.Unlock()
		if p != nil {
			p.changed(urgent)
		}
	}
	if len(l.digests) == 0 && !l.everybody {
		return
	}
	for _, p := range ps.all() {
		if len(l.digests) > 0 {
			p.digestsChanged(l.digests)
		}
		if l.everybody {
			p.everybodyChanged()
		}
	}
}

// digestsIn returns every digest that an issuance rests on, as "sha256:…".
func digestsIn(f *attest.Facts) []string {
	var list []string
	add := func(name string) {
		if i := strings.LastIndex(name, "sha256:"); i >= 0 && !slices.Contains(list, name[i:]) {
			list = append(list, name[i:])
		}
	}
	for _, e := range f.Images {
		add(e.Digest)
		add(e.Image)
	}
	for _, pod := range f.Pods {
		for _, c := range pod.Containers {
			add(c.Image)
			add(c.ImageID)
		}
	}
	return list
}

// rootID is the name that [ca.Snapshot.RootID] has for a root.
func rootID(root *x509.Certificate) string { return hex.EncodeToString(root.SubjectKeyId) }

// crew counts goroutines and takes no more once it is waited for.
type crew struct {
	mu      sync.Mutex // guards stopped, and that none is added to group after
	stopped bool
	group   sync.WaitGroup
}

// start runs fn on a goroutine of its own, if the crew takes any more.
func (c *crew) start(fn func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return false
	}
	c.group.Go(fn)
	return true
}

func (c *crew) wait() {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	c.group.Wait()
}

// slot waits for leave to put a question that nobody waits for. Once somebody
// does, or the certificate is close to its end, the question is put without
// leave. It reports false where the work is over.
func (ps *Proxies) slot(ctx context.Context, q turn) (release func(), ok bool) {
	var last <-chan time.Time
	if q.last > 0 {
		timer := time.NewTimer(q.last)
		defer timer.Stop()
		last = timer.C
	}
	select {
	case ps.slots <- struct{}{}:
		return func() { <-ps.slots }, true
	case <-q.hurry:
	case <-last:
	case <-ctx.Done():
		return nil, false
	}
	return func() {}, true
}
