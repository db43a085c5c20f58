package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ca/hallmark/test/bench/mesh"
)

// The registry is away and the server was restarted: what runs and was verified
// renews, from the evidence on disk, also after a policy edit; what is new is
// refused with a reason of its own, and passes when the registry is back.
func TestRegistryAway(t *testing.T) {
	t.Parallel()
	s := newScene(t, 3*time.Minute, mesh.Config{})
	running := s.signed("app")
	known := s.run("known", app(running.String()))
	token := s.used(known)
	fresh := s.run("fresh", app(s.signed("app").String())) // never asked about

	s.Registry.Stop()
	s.Hallmark.Kill()
	must(t, s.Hallmark.Start(s.ctx))
	for _, door := range doors {
		if err := s.ask(door, known, token); err != nil {
			t.Errorf("%s: a running digest is refused: %v", door, err)
		}
		wantDenied(t, s.ask(door, fresh, s.token(fresh)), codes.Unavailable, "RegistryAway")
	}
	// Another pod of the running digest is no new digest.
	second := s.run("second", app(running.String()))
	if _, err := s.create(second, s.token(second)); err != nil {
		t.Errorf("a second pod of a running digest is refused: %v", err)
	}
	must(t, s.SetPolicy("signed", mesh.Policy("renamed", s.Registry.Addr()+"/**", s.Key)))
	s.eventually(30*time.Second, func() error { return s.issuedUnder(known, token, "renamed") })

	must(t, s.Registry.Restart())
	again := s.token(fresh)
	s.eventually(30*time.Second, func() error {
		_, err := s.create(fresh, again)
		return err
	})
}

// issuedUnder asks for a certificate and is nil once the record of it names the
// policy.
func (s *scene) issuedUnder(p *mesh.Pod, token, policy string) error {
	s.t.Helper()
	leaf, err := s.create(p, token)
	must(s.t, err) // a running digest is never refused
	entries, err := s.Hallmark.Query(s.ctx, "--serial", leaf.SerialNumber.Text(16))
	must(s.t, err)
	for _, e := range entries {
		for _, image := range e.Issuance.Images {
			if strings.Contains(strings.Join(image.Policies, ","), policy) {
				return nil
			}
		}
	}
	return fmt.Errorf("the record does not name policy %s: %+v", policy, entries)
}

// isRefusal tells whether the server itself refused, rather than not being there.
func isRefusal(err error) bool {
	st, ok := status.FromError(err)
	return ok && strings.Contains(st.Message(), "(id ")
}
