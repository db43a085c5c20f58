package publish_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/publish/kube"
	"github.com/hallmark-ca/hallmark/test/bench/cluster"
)

func (s *scene) clientOf(cfg *rest.Config) kubernetes.Interface {
	s.t.Helper()
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// newSceneOf is another trust domain in the same namespaces.
func newSceneOf(t *testing.T, s *scene, trustDomain string) *scene {
	t.Helper()
	td, err := attest.ParseTrustDomain(trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	other := *s
	other.authority = catest.New(t, td, time.Now, nil)
	return &other
}

// holder returns who holds the Lease.
func (s *scene) holder() string {
	s.t.Helper()
	lease, err := s.client.CoordinationV1().Leases(s.home()).Get(s.t.Context(), kube.LeaseName, metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}

// TestOneWrites has two replicas, of which one writes and both report.
func TestOneWrites(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "replicas")
	s.selected("replicas-1", "replicas-2")
	first := s.start("first", nil)
	s.current(first, "replicas-1", "replicas-2")
	second := s.start("second", nil)
	s.current(second, "replicas-1", "replicas-2")
	if h := s.holder(); !strings.HasPrefix(h, "first_") {
		t.Errorf("%q holds the Lease", h)
	}
	if strings.Contains(second.log.String(), "bundle written") {
		t.Error("a replica without the Lease writes")
	}
	s.authority.AddRoot(t)
	s.current(second, "replicas-1", "replicas-2")

	// In order, the next one takes over at once.
	first.stop()
	began := time.Now()
	s.until("taking over", func() string {
		if h := s.holder(); !strings.HasPrefix(h, "second_") {
			return fmt.Sprintf("%q holds the Lease", h)
		}
		return ""
	})
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v, as if the first had died", took)
	}
	s.authority.AddRoot(t)
	s.current(second, "replicas-1", "replicas-2")
}

// TestDeadReplica leaves a Lease behind that nobody renews.
func TestDeadReplica(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "dead")
	s.selected("dead-1")
	first := s.start("first", nil)
	s.current(first, "dead-1")
	first.stop()
	lease, err := s.client.CoordinationV1().Leases(s.home()).Get(t.Context(), kube.LeaseName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dead, now := "dead_1", metav1.NewMicroTime(time.Now().Add(time.Hour)) // its clock is wrong, too
	lease.Spec.HolderIdentity, lease.Spec.RenewTime = &dead, &now
	if _, err := s.client.CoordinationV1().Leases(s.home()).Update(t.Context(), lease, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.authority.AddRoot(t)
	began := time.Now()
	second := s.start("second", nil)
	s.current(second, "dead-1")
	if took := time.Since(began); took < 6*time.Second {
		t.Errorf("the Lease was taken after %v, before it ran out", took)
	}
}

// TestOldReplica has a replica that holds the Lease and is behind: it must not
// bring back an old bundle.
func TestOldReplica(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "old")
	s.selected("old-1")
	behind := newSceneOf(t, s, "cluster.local") // at sequence 2
	s.authority.AddRoot(t)
	s.authority.AddRoot(t)
	r := s.start("new", nil)
	s.current(r, "old-1")
	r.stop()
	old := behind.start("old", nil)
	s.until("noticing", func() string {
		if p := old.problem("old-1"); !strings.Contains(p, "this replica is behind") {
			return "problem: " + p
		}
		if !strings.HasPrefix(s.holder(), "old_") {
			return "it does not hold the Lease"
		}
		return ""
	})
	if s.content("old-1") != string(s.authority.Current().BundlePEM()) {
		t.Error("an older bundle was written over a newer one")
	}
}

func TestAPIServerAwayAndBack(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.ForTest(t), "away")
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprintf("away-%02d", i))
	}
	s.selected(names...)
	r := s.start("a", nil)
	s.current(r, names...)
	s.cluster.StopAPI()
	s.until("noticing", func() string {
		for _, read := range r.Report() {
			if read.Name == "configmaps" && strings.Contains(read.Problem, "not known") && !read.Holds(1, time.Now().Add(time.Hour)) {
				return ""
			}
		}
		return fmt.Sprint(r.behind())
	})
	s.authority.AddRoot(t) // meanwhile
	if err := s.cluster.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	// An API server that has just begun to listen does not know its roles yet.
	r.forbidden.forget()
	began := time.Now()
	s.current(r, names...)
	s.until("all well", func() string { return strings.Join(r.behind(), "\n") })
	t.Logf("whole %v after the API server is back", time.Since(began).Round(time.Millisecond))
}

// TestAnswersAreLost has a proxy in the way that drops the answers of two writes
// in three, and answers for the API server that it is overloaded.
func TestAnswersAreLost(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "lost")
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("lost-%02d", i))
	}
	s.selected(names...)
	faults := &faults{}
	r := s.startThrough("a", faults)
	s.until("faults", func() string {
		if faults.count.Load() < 12 {
			return "there are none"
		}
		return ""
	})
	s.authority.AddRoot(t)
	faults.off.Store(true)
	s.current(r, names...)
	s.until("all well", func() string { return strings.Join(r.behind(), "\n") })
	if s.configMap(names[0]) == nil || !strings.HasPrefix(s.holder(), "a_") {
		t.Errorf("%q holds the Lease", s.holder())
	}
}

// faults sends writes on and loses the answer, or refuses them, by turns.
type faults struct {
	next  http.RoundTripper
	count atomic.Int64
	off   atomic.Bool
}

// RoundTrip implements http.RoundTripper.
func (f *faults) RoundTrip(req *http.Request) (*http.Response, error) {
	if f.off.Load() || req.Method != http.MethodPatch {
		return f.next.RoundTrip(req)
	}
	switch f.count.Add(1) % 3 {
	case 0:
		return f.next.RoundTrip(req)
	case 1:
		res, err := f.next.RoundTrip(req)
		if err == nil {
			res.Body.Close()
		}
		return nil, errors.New("the answer is lost")
	}
	return &http.Response{StatusCode: http.StatusTooManyRequests, Header: http.Header{}, Body: http.NoBody, Request: req, ProtoMajor: 1, ProtoMinor: 1}, nil
}

// TestAccess takes each rule away and wants the probe to name it.
func TestAccess(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "access")
	r := s.build("a", nil, nil)
	for _, f := range r.Probe(t.Context()) {
		if f.Err != nil {
			t.Errorf("with all rules: %s: %v", f.What, f.Err)
		}
	}
	none := newScene(t, cluster.Shared(t), "noaccess")
	bare := none.permit(nil)
	cfg := none.config("a")
	cfg.REST = bare
	p := none.buildAs(cfg)
	found := map[string]bool{}
	for _, f := range p.Probe(t.Context()) {
		if f.Err != nil {
			found[f.What] = true
		}
	}
	for _, a := range p.Access() {
		if a.Resource == "clustertrustbundles" && (a.Verb == "list" || a.Verb == "watch") {
			continue // Kubernetes gives these to every account
		}
		if !found["access: "+a.String()] {
			t.Errorf("the probe does not miss %s", a)
		}
	}
}

// buildAs makes a publisher that acts as cfg.REST says.
func (s *scene) buildAs(cfg kube.Config) *kube.Publisher {
	s.t.Helper()
	cfg.Log, cfg.Registerer = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	p, err := kube.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}
