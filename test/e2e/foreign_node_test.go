package e2e_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/test/bench/envoy"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
)

// A node id that names another pod gets nothing of it: not its identity, not its
// key, not its place among the streams.
func TestNodeIDOfAnotherPod(t *testing.T) {
	s := newScene(t, 2*time.Minute, mesh.Config{})
	victim, thief := s.run("victim"), s.run("thief")
	ids := []string{
		victim.Name, string(victim.UID), victim.Namespace + "/" + victim.Name, victim.Identity(),
		fmt.Sprintf("sidecar~10.0.0.1~%s.%s~%s.svc.cluster.local", victim.Name, victim.Namespace, victim.Namespace),
	}
	own, err := s.fetch(s.token(victim), victim.Name, "default")
	must(t, err)
	key := own.Secrets["default"].GetTlsCertificate().GetPrivateKey().GetInlineBytes()
	for _, id := range ids {
		got, err := s.fetch(s.token(thief), id, "default", victim.Identity())
		if err != nil {
			t.Errorf("node %q: %v", id, err)
			continue
		}
		leaf, err := got.Leaf("default")
		must(t, err)
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != thief.Identity() {
			t.Errorf("node %q: the thief is %v", id, leaf.URIs)
		}
		if len(got.Secrets) != 1 {
			t.Errorf("node %q: the answer has %d secrets, want only its own", id, len(got.Secrets))
		}
		if string(got.Secrets["default"].GetTlsCertificate().GetPrivateKey().GetInlineBytes()) == string(key) {
			t.Errorf("node %q: the thief has the victim's key", id)
		}
	}
	entries, err := s.Hallmark.Query(s.ctx, "--identity", victim.Identity())
	must(t, err)
	for _, e := range entries {
		if e.Issuance != nil && e.Issuance.PodUID != string(victim.UID) {
			t.Errorf("a certificate of the victim's identity went to pod %s", e.Issuance.PodUID)
		}
	}
}

// The same with a real Envoy; and the victim's own Envoy does not notice.
func TestEnvoyWithAnothersNodeID(t *testing.T) {
	s := newScene(t, 2*time.Minute, mesh.Config{})
	victim, thief := s.run("victim"), s.run("thief")
	start := func(p *mesh.Pod) (*envoy.Envoy, envoy.Identity) {
		e, err := p.Envoy(s.ctx, envoy.Config{NodeID: victim.Name, Caller: victim.Identity(), Server: victim.Identity()})
		must(t, err)
		id, err := e.AwaitIdentity(s.ctx)
		must(t, err)
		return e, id
	}
	own, before := start(victim)
	other, got := start(thief)
	if got.ID != thief.Identity() {
		t.Errorf("the thief's Envoy is %s", got.ID)
	}
	other.Stop()
	streams, err := own.Streams(s.ctx)
	if err == nil && streams == 0 {
		err = errors.New("it has no stream any more")
	}
	must(t, err)
	after, err := own.Identity(s.ctx)
	must(t, err)
	if after.Serial() != before.Serial() {
		t.Error("the victim's certificate changed")
	}
}
