package kube

import (
	"time"

	"github.com/hallmark-ca/hallmark/attest"
)

// Gone tells whether the pod, which existed at known, is gone for certain: the
// watch has seen its deletion, or the view as it was later does not hold it. It
// asks nobody.
func (c *Cluster) Gone(pod attest.PodRef, known time.Time) bool {
	v := c.view
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.deleted.Contains(pod.UID) {
		return true
	}
	if fresh := v.fresh[pods]; fresh.IsZero() || !fresh.After(known) || v.behind[pods] {
		return false
	}
	live := v.pods[name{pod.Namespace, pod.Name}]
	return live == nil || live.Ref.UID != pod.UID
}
