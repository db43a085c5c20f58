package kube_test

import (
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/kube"
)

// TestGone: a pod is gone only where that is certain.
func TestGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *kube.Config) { c.Limits.Silence = time.Second })
	ref := attest.PodRef{Namespace: "shop", Name: "cart-1", UID: "pod-uid"}
	unknown := attest.PodRef{Namespace: "shop", Name: "never", UID: "no-uid"}
	if w.cluster.Gone(ref) || w.cluster.Gone(unknown) {
		t.Error("gone before there is a view")
	}
	w.run(t)
	changed := w.changes()
	for pod, want := range map[attest.PodRef]bool{
		ref:     false,
		unknown: true,
		{Namespace: "shop", Name: "cart-1", UID: "pod-uid-0"}: true, // its name has another
	} {
		if got := w.cluster.Gone(pod); got != want {
			t.Errorf("%v gone: %v, want %v", pod, got, want)
		}
	}
	w.remove(w.pod, false)
	changed.wait(t, "pod-uid")
	if !w.cluster.Gone(ref) {
		t.Error("not gone after its deletion was seen")
	}
	w.quiet(t)
	w.pass(2 * time.Minute)
	if w.cluster.Gone(unknown) {
		t.Error("gone by an old view")
	}
	if !w.cluster.Gone(ref) {
		t.Error("its deletion was forgotten with the view's age")
	}
}
