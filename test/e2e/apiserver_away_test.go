package e2e_test

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hallmark-ca/hallmark/test/bench/cluster"
	"github.com/hallmark-ca/hallmark/test/bench/envoy"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
	"github.com/hallmark-ca/hallmark/test/tools"
)

// The API server is away for longer than reviews are believed: known pods renew,
// at both doors; the token of a new pod, never reviewed, gets Unavailable; and
// when it is back, so is everything.
func TestAPIServerAway(t *testing.T) {
	t.Parallel()
	const reviewCache = 4 * time.Second
	tools.Need(t, "etcd", "kube-apiserver", "envoy")
	settings := shortLeaves("10s")
	settings["attest.reviewCache"] = reviewCache.String()
	s := newScene(t, 3*time.Minute, mesh.Config{Cluster: cluster.ForTest(t), Settings: settings})
	known, fresh := s.run("known"), s.run("fresh")
	token, freshToken, forged := s.used(known), s.token(fresh), s.forged(known)
	e, err := known.Envoy(s.ctx, envoy.Config{Caller: known.Identity(), Server: known.Identity()})
	must(t, err)
	_, err = e.AwaitIdentity(s.ctx)
	must(t, err)

	s.Cluster.StopAPI()
	away := time.Now()
	s.pass(reviewCache + 2*time.Second)
	for _, door := range doors {
		if err := s.ask(door, known, token); err != nil {
			t.Errorf("%s: a known pod is refused %s after the API server went: %v", door, time.Since(away).Round(time.Second), err)
		}
		wantDenied(t, s.ask(door, fresh, freshToken), codes.Unavailable, "APIServerAway")
	}
	id, err := e.Identity(s.ctx)
	must(t, err)
	for range 2 {
		if id, err = e.AwaitAnother(s.ctx, id); err != nil {
			t.Fatalf("the Envoy of a known pod does not renew: %v", err)
		}
	}
	wantTold(t, e, codes.PermissionDenied, 0)
	if err := s.Hallmark.Ready(s.ctx); err != nil {
		t.Errorf("a replica that can renew is not ready: %v", err)
	}
	// Who has proved nothing to the API server is refused for what it is, not for
	// want of it.
	wantDenied(t, s.ask("istio-ca", known, forged), codes.Unauthenticated)

	must(t, s.Cluster.StartAPI(s.ctx))
	s.eventually(30*time.Second, func() error { return s.ask("istio-ca", fresh, freshToken) })
	if _, err := e.AwaitAnother(s.ctx, id); err != nil {
		t.Error(err)
	}
}

// A replica that starts while the API server is away has no view, and grants
// nothing; when the API server is there it serves.
func TestAPIServerAwayAtStart(t *testing.T) {
	t.Parallel()
	tools.Need(t, "etcd", "kube-apiserver", "envoy")
	s := newScene(t, 3*time.Minute, mesh.Config{Cluster: cluster.ForTest(t)})
	pod := s.run("known")
	token := s.used(pod)
	s.Hallmark.Kill()
	s.Cluster.StopAPI()
	must(t, s.Hallmark.Launch())
	var err error
	s.eventually(30*time.Second, func() error {
		if err = s.ask("istio-ca", pod, token); err == nil {
			t.Fatal("granted without any view of the cluster")
		}
		if !isRefusal(err) {
			return err // it does not listen yet
		}
		return nil
	})
	wantDenied(t, err, codes.Unavailable)
	if s.Hallmark.Ready(s.ctx) == nil {
		t.Error("a replica without a view is ready")
	}
	must(t, s.Cluster.StartAPI(s.ctx))
	s.eventually(60*time.Second, func() error { return s.ask("istio-ca", pod, token) })
}
