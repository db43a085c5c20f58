package attesttest

import (
	"context"
	"sync"

	"github.com/hallmark-ca/hallmark/attest"
)

// Gate is an [attest.ImageGate] that lets every image pass but those it was
// told about. The zero value is ready.
type Gate struct {
	mu       sync.Mutex // guards all below
	rulings  map[string]func(*attest.ImageEvidence) error
	judged   int
	blocking chan struct{}
}

// Deny makes the gate refuse pods that run image, for reason.
func (g *Gate) Deny(image string, reason attest.Reason) {
	g.rule(image, func(*attest.ImageEvidence) error {
		return attest.Deny(reason, image, "told to refuse it")
	})
}

// Audit makes the gate let image pass with the remark that reason would refuse
// it.
func (g *Gate) Audit(image string, reason attest.Reason) {
	g.rule(image, func(e *attest.ImageEvidence) error {
		e.Verdict, e.Reason, e.Policies, e.Authority, e.Signer = attest.VerdictWouldDeny, reason, nil, "", ""
		return nil
	})
}

// Provisional makes the gate let image pass on what its tag resolved to.
func (g *Gate) Provisional(image string) {
	g.rule(image, func(e *attest.ImageEvidence) error {
		e.Provisional = true
		return nil
	})
}

// Pass takes back what was said of image.
func (g *Gate) Pass(image string) {
	g.rule(image, func(*attest.ImageEvidence) error { return nil })
}

// Block makes every check wait for its context's end, or for the returned
// function.
func (g *Gate) Block() (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	ch := make(chan struct{})
	g.blocking = ch
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.blocking = nil
		close(ch)
	})
}

// Checks returns how many checks there have been.
func (g *Gate) Checks() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.judged
}

func (g *Gate) rule(image string, ruling func(*attest.ImageEvidence) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rulings == nil {
		g.rulings = map[string]func(*attest.ImageEvidence) error{}
	}
	g.rulings[image] = ruling
}

// Check implements [attest.ImageGate].
func (g *Gate) Check(ctx context.Context, pods []*attest.Pod) ([]attest.ImageEvidence, error) {
	g.mu.Lock()
	g.judged++
	blocking := g.blocking
	g.mu.Unlock()
	if blocking != nil {
		select {
		case <-blocking:
		case <-ctx.Done():
			return nil, attest.Deny(attest.EvidencePending, "", "%v", ctx.Err())
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var evidence []attest.ImageEvidence
	for _, pod := range pods {
		for _, c := range pod.Containers {
			e := attest.ImageEvidence{
				Container: c.Name, Kind: c.Kind, Image: c.Image, Digest: c.ImageID, Verdict: attest.VerdictPass,
				Policies: []string{"everything"}, Authority: "everything/anybody", Signer: "nobody",
			}
			if ruling := g.rulings[c.Image]; ruling != nil {
				if err := ruling(&e); err != nil {
					return nil, err
				}
			}
			evidence = append(evidence, e)
		}
	}
	return evidence, nil
}
