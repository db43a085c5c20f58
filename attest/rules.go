package attest

import (
	"net/netip"
	"slices"
)

// CheckLive holds what a reviewed token says against what is live: checks 5
// (pod), 6 (node) and 7 (account) of the token rules. It is pure, and runs at
// every grant: TokenReview goes on vouching for the token of a terminating
// pod, and for seconds for that of a deleted one.
func CheckLive(b Bound, live Live) error {
	ref := b.Ref()
	pod := live.Pod
	switch {
	case pod == nil:
		return Deny(PodGone, ref.String(), "uid %s", b.PodUID)
	case pod.Ref.Namespace != b.Namespace || pod.Ref.Name != b.PodName || pod.Ref.UID != b.PodUID:
		return Deny(PodReplaced, ref.String(), "token names uid %s, live is %s", b.PodUID, pod.Ref.UID)
	case pod.ServiceAccount != b.ServiceAccount:
		return Deny(PodAccountMismatch, ref.String(), "token names account %q, the pod runs as %q", b.ServiceAccount, pod.ServiceAccount)
	case pod.Terminating:
		return Deny(PodTerminating, ref.String(), "uid %s", b.PodUID)
	case pod.Phase != "Pending" && pod.Phase != "Running":
		return Deny(PodFinished, ref.String(), "phase %s", pod.Phase)
	case b.NodeName != "" && b.NodeName != pod.Node:
		return Deny(NodeMismatch, ref.String(), "token names node %q, the pod runs on %q", b.NodeName, pod.Node)
	case b.NodeUID != "" && b.NodeUID != live.NodeUID:
		return Deny(NodeMismatch, ref.String(), "token names node uid %s, live is %q", b.NodeUID, live.NodeUID)
	case b.ServiceAccountUID != live.ServiceAccountUID:
		return Deny(AccountReplaced, ref.String(), "token names account uid %s, live is %q", b.ServiceAccountUID, live.ServiceAccountUID)
	}
	return nil
}

// fromPod tells whether peer is an address of the pod. A pod on the host's
// network has the node's addresses, which the status lists as well.
func fromPod(pod *Pod, peer netip.Addr) bool {
	return slices.Contains(pod.IPs, peer.Unmap())
}
