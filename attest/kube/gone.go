package kube

import "github.com/hallmark-ca/hallmark/attest"

// Gone tells whether the pod is gone for certain: the watch has seen its
// deletion, or a view that is current does not hold it. A pod that was only just
// made may be ahead of the view: who asks has known it for longer than
// Limits.Stale. It asks nobody.
func (c *Cluster) Gone(pod attest.PodRef) bool {
	v := c.view
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.deleted.Contains(pod.UID) {
		return true
	}
	fresh := v.fresh[pods]
	if fresh.IsZero() || c.now().Sub(fresh) > c.limits.Stale || v.behind[pods] {
		return false
	}
	live := v.pods[name{pod.Namespace, pod.Name}]
	return live == nil || live.Ref.UID != pod.UID
}
