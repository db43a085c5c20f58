package proxies_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/sds/proxies"
)

// TestLogIsNotFilled: a refused pod that comes back at once, one that refuses
// all it is sent, and one with new names each time write a few lines, and are
// counted all the same; another's first line is there.
func TestLogIsNotFilled(t *testing.T) {
	const loops = 100
	few := func(t *testing.T, s *scene, line string, want bool) {
		t.Helper()
		if n := strings.Count(s.Log.String(), `"msg":"`+line); n > 10 || want != (n > 0) {
			t.Errorf("%d lines %q", n, line)
		}
	}
	play(t, nil, func(t *testing.T, s *scene) {
		for i := range loops {
			s.open(t, s.token, fmt.Sprint("name-", i)).Cancel()
			synctest.Wait()
		}
		few(t, s, "a proxy asks for a name", true)
		if got := s.Count(t, "hallmark_sds_unknown_names_total"); got != loops {
			t.Errorf("%v unknown names are counted", got)
		}

		for range loops {
			c := s.open(t, s.token, "default")
			c.Nack()
			synctest.Wait()
			c.Cancel()
			d := s.open(t, s.token, "default")
			d.Ack()
			synctest.Wait()
			d.Cancel()
			synctest.Wait()
		}
		few(t, s, "a proxy refused a secret", true)
		few(t, s, "a proxy accepted what it had refused", true)
		if got := s.Count(t, "hallmark_sds_answers_total", "answer", "nack"); got != loops {
			t.Errorf("%v refusals of secrets are counted", got)
		}

		s.Gate.Deny(image, attest.ImageUnsigned)
		for range loops {
			expectEnd(t, s.open(t, s.token, "default"), codes.PermissionDenied, "ImageUnsigned")
		}
		few(t, s, "a proxy is refused", true)
		if got := s.Count(t, "hallmark_sds_asks_total", "result", "refused"); got != loops {
			t.Errorf("%v refusals are counted", got)
		}
		_, token := s.Pod("shop", "web-1", "web", image)
		expectEnd(t, s.open(t, token, "default"), codes.PermissionDenied, "ImageUnsigned")
		lines := strings.Split(s.Log.String(), "\n")
		if last := lines[len(lines)-2]; !strings.Contains(last, `"msg":"a proxy is refused`) || !strings.Contains(last, "web-1") {
			t.Errorf("the last line is %s", last)
		}
	})
}

// between is a registration authority that a test can hold at its answer.
type between struct {
	proxies.Registrar
	check func() // before a check's answer leaves
	issue func() // likewise
}

func (b *between) Check(ctx context.Context, door string, caller attest.Caller, identity attest.Identity) error {
	err := b.Registrar.Check(ctx, door, caller, identity)
	if b.check != nil {
		b.check()
	}
	return err
}

func (b *between) Issue(ctx context.Context, door string, caller attest.Caller, identity attest.Identity, req ca.Request) (*ca.Issued, error) {
	issued, err := b.Registrar.Issue(ctx, door, caller, identity, req)
	if b.issue != nil {
		b.issue()
	}
	return issued, err
}

// TestDigestTurnsDuringAQuestion: the pod's image was swapped, the question of it
// is under way, and the new image is refused before its answer is here.
func TestDigestTurnsDuringAQuestion(t *testing.T) {
	b := &between{}
	play(t, func(cfg *proxies.Config) { b.Registrar, cfg.RA = cfg.RA, b }, func(t *testing.T, s *scene) {
		c := s.subscribed(t, s.token, "default")
		const swapped = "registry.example/web@sha256:bb"
		s.Cluster.Change(s.pod.Ref, func(p *attest.Pod) {
			p.Containers = []attest.Container{{Name: "app", Image: swapped, ImageID: swapped, Running: true}}
		})
		reached, release := make(chan struct{}), make(chan struct{})
		b.check = func() {
			b.check = nil
			close(reached)
			<-release
		}
		s.feed.Announce(attest.Change{Instance: s.instance()})
		<-reached
		s.Gate.Deny(swapped, attest.ImageUnsigned)
		s.announce(attest.Change{Digest: "sha256:bb"})
		close(release)
		expectEnd(t, c, codes.PermissionDenied, "ImageUnsigned")
	})
}

// TestPanicOfAQuestion ends one proxy's streams, which can come back; the process
// and the others live.
func TestPanicOfAQuestion(t *testing.T) {
	b := &between{}
	play(t, func(cfg *proxies.Config) { b.Registrar, cfg.RA, cfg.Parallel = cfg.RA, b, 1 }, func(t *testing.T, s *scene) {
		_, token := s.Pod("shop", "web-1", "web", "registry.example/other@sha256:cc")
		other := s.subscribed(t, token, "default")
		for range 3 { // also in its turn, which is given back
			c := s.subscribed(t, s.token, "default")
			b.check = func() { panic("a fault of ours") }
			s.announce(attest.Change{Digest: digest})
			expectEnd(t, c, codes.Unavailable, "InternalError")
		}
		b.issue = func() { panic("a fault of ours") }
		expectEnd(t, s.open(t, s.token, "default"), codes.Unavailable, "InternalError")
		b.check, b.issue = nil, nil
		expectOpen(t, other)
		c := s.subscribed(t, s.token, "default")
		if got := s.Refused(t, attest.InternalError, proxies.Door); got != 4 {
			t.Errorf("%v refusals are counted, want 4", got)
		}
		if got := s.Count(t, "hallmark_sds_proxies"); got != 2 {
			t.Errorf("%v proxies are kept, want 2", got)
		}
		if log := s.Log.String(); !strings.Contains(log, `"a proxy's question panicked`) || !strings.Contains(log, "attack_test.go") {
			t.Error("the panic and its place are not logged")
		}
		next(t, c, time.Second, time.Hour)
	})
}

// TestChangesBeforeRun: what was announced before anybody listened is asked about
// once somebody does.
func TestChangesBeforeRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := assemble(t, 30*time.Minute, nil)
		c := s.subscribed(t, s.token, "default")
		s.Gate.Deny(image, attest.ImageUnsigned)
		s.announce(attest.Change{Digest: digest})
		expectOpen(t, c)
		run(t, s.proxies.Run)
		pass(11 * time.Second)
		expectEnd(t, c, codes.PermissionDenied, "ImageUnsigned")
	})
}
