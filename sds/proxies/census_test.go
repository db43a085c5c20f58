package proxies_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds/proxies"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

// notes is a census that writes down what it is told.
type notes struct {
	mu    sync.Mutex
	lines []string
}

func (n *notes) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, fmt.Sprintf(format, args...))
}

func (n *notes) Opened(_ string, c attest.Caller, _ time.Time) { n.note("opened %s", c.Pod.Name) }
func (n *notes) Closed(_ string, c attest.Caller)              { n.note("closed %s", c.Pod.Name) }
func (n *notes) Confirmed(_ string, _ attest.Instance, sequence uint64) {
	n.note("confirmed %d", sequence)
}

// since returns what was noted since the last call.
func (n *notes) since() []string {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	lines := n.lines
	n.lines = nil
	return lines
}

func (n *notes) want(t *testing.T, what string, lines ...string) {
	t.Helper()
	if got := n.since(); !slices.Equal(got, lines) {
		t.Errorf("%s: noted %q, want %q", what, got, lines)
	}
}

func TestCensusHearsOfABundleThatAllStreamsAccepted(t *testing.T) {
	census := &notes{}
	play(t, func(cfg *proxies.Config) { cfg.Census = census }, func(t *testing.T, s *scene) {
		svid := s.subscribed(t, s.token, "default")
		census.want(t, "a stream without a bundle", "opened web-0")
		first, second := s.subscribed(t, s.token, "ROOTCA"), s.subscribed(t, s.token, "ROOTCA")
		census.want(t, "the first bundle", "opened web-0", "confirmed 1", "opened web-0", "confirmed 1")

		s.Authority.AddRoot(t)
		synctest.Wait()
		first.Ack()
		census.want(t, "one of two streams accepted the new one")
		second.Nack()
		census.want(t, "the other refused it")
		third := s.subscribed(t, s.token, "ROOTCA") // the same bytes, on a new stream
		census.want(t, "bytes that were refused before prove nothing", "opened web-0")

		s.Authority.AddRoot(t)
		synctest.Wait()
		for _, c := range []*sdstest.Stream{first, third} {
			c.Ack()
		}
		census.want(t, "all but one accepted the newest")
		second.Cancel() // the one that is behind goes
		census.want(t, "who is left has accepted it", "confirmed 3", "closed web-0")
		expectOpen(t, svid, first, third)
	})
}
