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
	long := time.Now().Add(-time.Hour)
	if w.cluster.Gone(ref, long) || w.cluster.Gone(unknown, long) {
		t.Error("gone before there is a view")
	}
	w.run(t)
	changed := w.changes()
	for pod, want := range map[attest.PodRef]bool{
		ref:     false,
		unknown: true,
		{Namespace: "shop", Name: "cart-1", UID: "pod-uid-0"}: true, // its name has another
	} {
		if got := w.cluster.Gone(pod, long); got != want {
			t.Errorf("%v gone: %v, want %v", pod, got, want)
		}
	}
	if w.cluster.Gone(unknown, time.Now().Add(time.Hour)) {
		t.Error("gone by a view from before it was there")
	}
	w.remove(w.pod, false)
	changed.wait(t, "pod-uid")
	if !w.cluster.Gone(ref, time.Now().Add(time.Hour)) {
		t.Error("not gone after its deletion was seen")
	}
}
