package attest

import (
	"net/netip"
	"time"
)

// Pod is what is known of one live pod. It is immutable.
type Pod struct {
	Cluster        string
	Ref            PodRef
	ServiceAccount string
	Node           string // spec.nodeName; "" while unscheduled
	Phase          string // Pending, Running, Succeeded, Failed, Unknown
	Terminating    bool   // deletionTimestamp is set
	HostNetwork    bool
	IPs            []netip.Addr
	Labels         map[string]string
	Containers     []Container
}

// ContainerKind says where in a pod a container stands.
type ContainerKind uint8

// The kinds. A sidecar is an init container that restarts always. A volume is
// an image volume.
const (
	ContainerApp ContainerKind = iota
	ContainerInit
	ContainerSidecar
	ContainerEphemeral
	ContainerVolume
)

// String returns the name used in records.
func (k ContainerKind) String() string {
	return [...]string{"app", "init", "sidecar", "ephemeral", "volume"}[k]
}

// Container is one container, or image volume, of a pod.
type Container struct {
	Name    string
	Kind    ContainerKind
	Image   string // as the spec names it
	ImageID string // as the status names what runs; "" until it is known
	Running bool   // the status says that it runs now
}

// Live is what a cluster knows of a caller's pod and what stands behind it.
type Live struct {
	Pod               *Pod
	NodeUID           string // UID of Pod.Node; "" where the node is not known
	ServiceAccountUID string // UID of the pod's account; "" where there is none
	AsOf              time.Time
	// Current is false where the API server did not answer and this is the
	// last view, as old as AsOf says.
	Current bool
}
