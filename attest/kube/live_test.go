package kube_test

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/kube"
)

// check asks for the pod's live facts and holds them against its token.
func (w *world) check(ctx context.Context, pod *corev1.Pod) (attest.Live, error) {
	b := w.bound(pod)
	live, err := w.cluster.Live(ctx, b)
	if err != nil {
		return live, err
	}
	return live, attest.CheckLive(b, live)
}

func TestLive(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	_, err := w.check(t.Context(), w.pod)
	refused(t, "before the first list", err, attest.ViewNotSynced)
	w.run(t)
	live, err := w.check(t.Context(), w.pod)
	if err != nil {
		t.Fatal(err)
	}
	want := attest.Live{Pod: &attest.Pod{
		Cluster: "Kubernetes", Ref: attest.PodRef{Namespace: "shop", Name: "cart-1", UID: "pod-uid"}, ServiceAccount: "cart",
		Node: "node-1", Phase: "Running", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		Labels: map[string]string{"app": "cart"},
		Containers: []attest.Container{
			{Name: "app", Image: "registry.example/cart:1", ImageID: "registry.example/cart@sha256:1", Running: true},
		},
	}, NodeUID: "node-uid", ServiceAccountUID: "sa-uid", Current: true}
	if diff := cmp.Diff(want, live, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.IgnoreFields(attest.Live{}, "AsOf")); diff != "" {
		t.Error(diff)
	}
	if age := w.now().Sub(live.AsOf); age < 0 || age > 10*time.Second {
		t.Errorf("the view is %s old", age)
	}
	if n := w.count("get pods") + w.count("get nodes") + w.count("get serviceaccounts"); n != 0 {
		t.Errorf("%d GETs for what the view knows", n)
	}
}

// TestContainers: every container that can run something counts.
func TestContainers(t *testing.T) {
	t.Parallel()
	pod := newPod("cart-1", "pod-uid")
	pod.Spec.HostNetwork = true
	pod.Spec.InitContainers = []corev1.Container{
		{Name: "setup", Image: "setup:1"}, {Name: "proxy", Image: "proxy:1", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways)},
	}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{
		{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "debug:1"}},
		{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug-2", Image: "debug:2"}},
	}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "model", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "model:1"}}},
		{Name: "unclear", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "unclear:1"}}},
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	mount := func(volume, image string) corev1.VolumeMountStatus {
		return corev1.VolumeMountStatus{Name: volume, VolumeStatus: &corev1.VolumeStatus{Image: &corev1.ImageVolumeStatus{ImageRef: image}}}
	}
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{
		{Name: "setup", ImageID: "setup@sha256:2", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}},
		{Name: "proxy", ImageID: "proxy@sha256:3", State: running, VolumeMounts: []corev1.VolumeMountStatus{mount("unclear", "unclear@sha256:1")}},
	}
	pod.Status.ContainerStatuses[0].VolumeMounts = []corev1.VolumeMountStatus{mount("model", "model@sha256:5"), mount("unclear", "unclear@sha256:2")}
	pod.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{{Name: "debug", ImageID: "debug@sha256:4", State: running}}
	w := newWorld(t, nil)
	w.put(pod)
	w.run(t)
	live, err := w.check(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	want := []attest.Container{
		{Name: "setup", Kind: attest.ContainerInit, Image: "setup:1", ImageID: "setup@sha256:2"},
		{Name: "proxy", Kind: attest.ContainerSidecar, Image: "proxy:1", ImageID: "proxy@sha256:3", Running: true},
		{Name: "app", Kind: attest.ContainerApp, Image: "registry.example/cart:1", ImageID: "registry.example/cart@sha256:1", Running: true},
		{Name: "debug", Kind: attest.ContainerEphemeral, Image: "debug:1", ImageID: "debug@sha256:4", Running: true},
		{Name: "debug-2", Kind: attest.ContainerEphemeral, Image: "debug:2"},
		{Name: "model", Kind: attest.ContainerVolume, Image: "model:1", ImageID: "model@sha256:5"},
		{Name: "unclear", Kind: attest.ContainerVolume, Image: "unclear:1"},
	}
	if diff := cmp.Diff(want, live.Pod.Containers); diff != "" || !live.Pod.HostNetwork {
		t.Error(diff)
	}
}

func TestPodThatGoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil).run(t)
	changed := w.changes()
	is := func(what string, want attest.Reason) {
		t.Helper()
		_, err := w.check(t.Context(), w.pod)
		refused(t, what, err, want)
	}
	ending := w.pod.DeepCopy()
	ending.DeletionTimestamp = ptr.To(metav1.Now())
	w.put(ending)
	changed.wait(t, "pod-uid")
	is("terminating", attest.PodTerminating)
	w.remove(ending, false)
	changed.wait(t, "pod-uid")
	begin := time.Now()
	is("deleted", attest.PodGone)
	if w.count("get pods") != 0 || time.Since(begin) > 90*time.Millisecond {
		t.Errorf("the watch's word was not enough: %d GETs, %s", w.count("get pods"), time.Since(begin))
	}
	w.put(newPod("cart-1", "pod-uid-2"))
	eventually(t, "the new pod is live", func() bool { _, err := w.check(t.Context(), newPod("cart-1", "pod-uid-2")); return err == nil })
	is("replaced, which the watch has seen", attest.PodReplaced)
	is2 := newPod("cart-1", "pod-uid-0") // a token of before this process
	_, err := w.check(t.Context(), is2)
	refused(t, "replaced before", err, attest.PodReplaced)
	finished := newPod("cart-1", "pod-uid-2")
	finished.Status.Phase = corev1.PodSucceeded
	w.put(finished)
	changed.wait(t, "pod-uid-2")
	_, err = w.check(t.Context(), finished)
	refused(t, "finished", err, attest.PodFinished)
}

// TestFreshPod: one that is ahead of the watch is waited for, then looked up.
func TestFreshPod(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *kube.Config) { c.Limits.FreshWait = 5 * time.Second }).run(t)
	late := newPod("late", "late-uid")
	done := make(chan error, 1)
	go func() { _, err := w.check(t.Context(), late); done <- err }()
	w.put(late)
	if err := <-done; err != nil || w.count("get pods") != 0 {
		t.Errorf("%v, %d GETs", err, w.count("get pods"))
	}
}

// quiet makes the watches deliver nothing more, while requests are answered.
func (w *world) quiet(t testing.TB) {
	t.Helper()
	w.locked(func() { w.bookmarks = 0 })
	w.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if what := r.Header.Get("X-What"); strings.HasPrefix(what, "watch") || strings.HasPrefix(what, "initial") || strings.HasPrefix(what, "list") {
			<-r.Context().Done()
			return true
		}
		return false
	})
	opened := func() (n [3]int) {
		for i, resource := range []string{"pods", "nodes", "serviceaccounts"} {
			n[i] = w.count("watch "+resource) + w.count("initial "+resource)
		}
		return n
	}
	before := opened()
	w.CloseClientConnections()
	eventually(t, "the watches are opened again", func() bool {
		now := opened()
		return now[0] > before[0] && now[1] > before[1] && now[2] > before[2]
	})
}

func TestLookUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil).run(t)
	w.quiet(t)
	fresh, other := newPod("fresh", "fresh-uid"), newPod("other", "other-uid")
	w.put(fresh)
	w.put(other)
	w.remove(w.pod, true)
	live, err := w.check(t.Context(), fresh)
	if err != nil || !live.Current || live.NodeUID != "node-uid" || w.count("get pods") != 1 || w.count("get nodes")+w.count("get serviceaccounts") != 0 {
		t.Errorf("a fresh pod: %+v, %v", live, err)
	}
	// The view still holds it, and is young enough to be believed.
	if _, err := w.check(t.Context(), w.pod); err != nil {
		t.Error(err)
	}
	begin := time.Now()
	for range 50 {
		_, err = w.check(t.Context(), newPod("nowhere", "no-uid"))
		refused(t, "no such pod", err, attest.PodGone)
		_, err = w.check(t.Context(), newPod("other", "older-uid"))
		refused(t, "an older pod", err, attest.PodReplaced)
	}
	if took := time.Since(begin); took > 3*time.Second { // 100 waits would take 10 s
		t.Errorf("a loop took %s", took)
	}
	if n := w.count("get pods"); n != 3 {
		t.Errorf("%d GETs, want 3: a loop is cheap", n)
	}
	// A node or account that the view does not know yet is looked up, too.
	w.put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-2", UID: "node-2-uid"}})
	w.put(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "new", UID: "new-uid"}})
	pod := newPod("elsewhere", "elsewhere-uid")
	pod.Spec.NodeName, pod.Spec.ServiceAccountName = "node-2", "new"
	w.put(pod)
	b := w.bound(pod)
	b.NodeName, b.NodeUID, b.ServiceAccountUID = "node-2", "node-2-uid", "new-uid"
	live, err = w.cluster.Live(t.Context(), b)
	if err != nil || attest.CheckLive(b, live) != nil {
		t.Errorf("%+v, %v", live, err)
	}
	b.NodeUID = "older"
	live, err = w.cluster.Live(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, "an older node", attest.CheckLive(b, live), attest.NodeMismatch)
	b.NodeUID, b.ServiceAccountUID = "node-2-uid", "older"
	live, err = w.cluster.Live(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, "an older account", attest.CheckLive(b, live), attest.AccountReplaced)
}

// TestNotKnowingIsNoRefusal: only the API server's word says that a pod is gone.
func TestNotKnowingIsNoRefusal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *kube.Config) { c.Limits.Lookups, c.Limits.CallTime = 1, 2*time.Second }).run(t)
	for name, test := range map[string]struct {
		code   int
		reason metav1.StatusReason
		want   attest.Reason
	}{
		"500": {500, metav1.StatusReasonInternalError, attest.APIServerAway},
		"429": {429, metav1.StatusReasonTooManyRequests, attest.APIServerAway},
		"403": {403, metav1.StatusReasonForbidden, attest.InternalError},
	} {
		w.set(failWith("get", test.code, test.reason))
		_, err := w.check(t.Context(), newPod(name, name))
		refused(t, name, err, test.want)
	}
	w.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.Header.Get("X-What"), "get") {
			return false
		}
		write(rw, 200, w.node)
		return true
	})
	_, err := w.check(t.Context(), newPod("nowhere", "no-uid"))
	refused(t, "an answer of another object", err, attest.InternalError)

	w.set(hang("get"))
	before := w.count("get pods")
	done := make(chan error, 1)
	go func() { _, err := w.check(t.Context(), newPod("first", "first")); done <- err }()
	eventually(t, "the look-up is under way", func() bool { return w.count("get pods") == before+1 })
	_, err = w.check(t.Context(), newPod("second", "second"))
	refused(t, "too many look-ups", err, attest.PodLookupBusy)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = w.check(ctx, newPod("first", "first"))
	refused(t, "no time left", err, attest.APIServerAway)
	refused(t, "no answer", <-done, attest.APIServerAway)
}

// TestStaleView: a view that nothing has come for in 90 s is replaced by
// look-ups, and, where they are not answered, is told to be what it is.
func TestStaleView(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *kube.Config) { c.Limits.Silence = time.Second }).run(t)
	w.quiet(t)
	synced := w.now()
	w.pass(89 * time.Second)
	w.remove(w.pod, true)
	if live, err := w.check(t.Context(), w.pod); err != nil || !live.Current || w.count("get pods") != 0 {
		t.Errorf("a view of 89 s: %+v, %v", live, err)
	}
	w.pass(time.Minute)
	_, err := w.check(t.Context(), w.pod)
	refused(t, "deleted, which only a GET can tell", err, attest.PodGone)
	w.put(w.pod)
	w.pass(time.Minute)
	live, err := w.check(t.Context(), w.pod)
	if err != nil || !live.Current || w.now().Sub(live.AsOf) > 10*time.Second {
		t.Errorf("replaced by look-ups: %+v, %v", live, err)
	}
	if got := []int{w.count("get pods"), w.count("get nodes"), w.count("get serviceaccounts")}; !slices.Equal(got, []int{2, 1, 1}) {
		t.Errorf("%v GETs", got)
	}
	if age := w.metric(t, "hallmark_view_age_seconds", "pods"); age < 200 {
		t.Errorf("the metric says %v s", age)
	}

	w.set(failWith("", http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable))
	w.pass(time.Hour)
	for range 20 {
		live, err = w.check(t.Context(), w.pod)
		if err != nil || live.Current || live.AsOf.After(synced) || live.NodeUID != "node-uid" {
			t.Fatalf("while the API server is away: %+v, %v", live, err)
		}
	}
	if n := w.count("get pods"); n > 10 {
		t.Errorf("%d GETs of a server that does not answer", n)
	}
	_, err = w.check(t.Context(), newPod("nowhere", "no-uid"))
	refused(t, "unknown while away", err, attest.APIServerAway)
	if err := w.cluster.Ready(); err != nil {
		t.Errorf("a server that is away makes us unready: %v", err)
	}

	w.set(nil)
	w.locked(func() { w.bookmarks = 20 * time.Millisecond })
	eventually(t, "the view is young again", func() bool {
		live, err := w.check(t.Context(), w.pod)
		return err == nil && live.Current && w.now().Sub(live.AsOf) < time.Minute && w.metric(t, "hallmark_view_age_seconds") < 60
	})
}

// TestBusyWithStaleView: known pods are served from the view.
func TestBusyWithStaleView(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *kube.Config) { c.Limits.Lookups, c.Limits.CallTime = 1, 2*time.Second })
	second := newPod("cart-2", "two")
	w.put(second)
	w.run(t)
	w.quiet(t)
	w.set(hang(""))
	w.pass(2 * time.Minute)
	var wg sync.WaitGroup
	wg.Go(func() {
		if live, err := w.check(t.Context(), w.pod); err != nil || live.Current {
			t.Errorf("whose look-up hangs: %+v, %v", live, err)
		}
	})
	eventually(t, "the look-up is under way", func() bool { return w.count("get pods") == 1 })
	if live, err := w.check(t.Context(), second); err != nil || live.Current {
		t.Errorf("who finds no room: %+v, %v", live, err)
	}
	wg.Wait()
}

func TestFeedTellsOfChanges(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*corev1.Pod)
		told   bool
	}{
		"labels":           {func(p *corev1.Pod) { p.Labels = map[string]string{"app": "other"} }, true},
		"image":            {func(p *corev1.Pod) { p.Spec.Containers[0].Image = "other" }, true},
		"imageID":          {func(p *corev1.Pod) { p.Status.ContainerStatuses[0].ImageID = "other" }, true},
		"node":             {func(p *corev1.Pod) { p.Spec.NodeName = "node-2" }, true},
		"account":          {func(p *corev1.Pod) { p.Spec.ServiceAccountName = "other" }, true},
		"failed":           {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, true},
		"terminating":      {func(p *corev1.Pod) { p.DeletionTimestamp = ptr.To(metav1.Now()) }, true},
		"uid":              {func(p *corev1.Pod) { p.UID = "other" }, true},
		"ephemeral starts": {func(p *corev1.Pod) { p.Status.EphemeralContainerStatuses[0].State = corev1.ContainerState{} }, true},
		"ephemeral": {func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "more"}})
		}, true},
		"annotations": {func(p *corev1.Pod) { p.Annotations = map[string]string{"a": "b"} }, false},
		"restart":     {func(p *corev1.Pod) { p.Status.ContainerStatuses[0].State = corev1.ContainerState{} }, false},
		"pending":     {func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			w.pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
			w.pod.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{{Name: "debug", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
			w.put(w.pod)
			w.run(t)
			changed := w.changes()
			pod := w.pod.DeepCopy()
			test.change(pod)
			w.put(pod)
			w.put(newPod("mark", "mark")) // the watch is in order: what was to be told has been
			eventually(t, "the mark is live", func() bool { live, _ := w.check(t.Context(), newPod("mark", "mark")); return live.Pod != nil })
			got := 0
			for len(changed.uids) > 0 {
				if uid := <-changed.uids; uid == "pod-uid" {
					got++
				}
			}
			if got > 0 != test.told {
				t.Errorf("told %d times", got)
			}
		})
	}
}

// TestFeedTellsOfNodesAndAccounts: their pods are asked about again.
func TestFeedTellsOfNodesAndAccounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil).run(t)
	changed := w.changes()
	node := w.node.DeepCopy()
	node.UID = "node-uid-2"
	w.put(node)
	changed.wait(t, "pod-uid")
	_, err := w.check(t.Context(), w.pod)
	refused(t, "node made anew", err, attest.NodeMismatch)
	w.put(w.node)
	eventually(t, "the old node is back", func() bool { _, err := w.check(t.Context(), w.pod); return err == nil })
	changed.wait(t, "pod-uid")
	w.remove(w.account, false)
	changed.wait(t, "pod-uid")
	_, err = w.check(t.Context(), w.pod)
	refused(t, "account deleted", err, attest.AccountReplaced)
}
