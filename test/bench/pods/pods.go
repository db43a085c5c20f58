// Package pods does to an API server what users, controllers and kubelets do:
// it makes namespaces, accounts, nodes and pods, reports what runs in them,
// swaps images, adds ephemeral containers, and deletes.
//
// No kubelet is there: a pod's status is what [Report] last said, and a
// graceful [Delete] leaves it Terminating for as long as its grace period and
// beyond, since nobody confirms its end.
package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Audience is that of the tokens which mesh proxies present.
const Audience = "istio-ca"

// Kind says which list of a pod a container stands in.
type Kind int

const (
	App Kind = iota
	Init
	Sidecar // an init container with restartPolicy Always
	Ephemeral
)

// Container is one container, both as its author wrote it and as it runs.
type Container struct {
	Name  string // "": "app"
	Kind  Kind
	Image string // as in the spec
	// ImageID is what the kubelet reports. "": the repository and digest of
	// Image, which must then have one.
	ImageID string
}

// Spec describes a pod.
type Spec struct {
	Namespace, Name string
	Account         string // service account; must exist
	Node            string // must exist
	Labels          map[string]string
	Annotations     map[string]string
	HostNetwork     bool
	Containers      []Container // at least one App; no Ephemeral
	ImageVolumes    []string    // image references, mounted nowhere
}

// Namespace makes one with a name of its own that begins with prefix.
func Namespace(ctx context.Context, c kubernetes.Interface, prefix string) (string, error) {
	ns, err := c.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: prefix + "-"}}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("making a namespace: %w", err)
	}
	return ns.Name, nil
}

// Account makes a service account, in a namespace that is made if need be.
func Account(ctx context.Context, c kubernetes.Interface, namespace, name string) (*corev1.ServiceAccount, error) {
	_, err := c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("making namespace %s: %w", namespace, err)
	}
	sa, err := c.CoreV1().ServiceAccounts(namespace).Create(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("making service account %s/%s: %w", namespace, name, err)
	}
	return sa, nil
}

// Node makes a node that is Ready.
func Node(ctx context.Context, c kubernetes.Interface, name string) (*corev1.Node, error) {
	n, err := c.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("making node %s: %w", name, err)
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}}
	if n, err = c.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("making node %s ready: %w", name, err)
	}
	return n, nil
}

// Create makes the pod as its author and the scheduler would: Pending on its
// node, nothing reported yet.
func Create(ctx context.Context, c kubernetes.Interface, s Spec) (*corev1.Pod, error) {
	no, zero := false, int64(30)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, Labels: s.Labels, Annotations: s.Annotations},
		Spec: corev1.PodSpec{
			ServiceAccountName: s.Account, NodeName: s.Node, HostNetwork: s.HostNetwork,
			AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &zero,
		},
	}
	always := corev1.ContainerRestartPolicyAlways
	for _, k := range s.Containers {
		container := corev1.Container{Name: k.name(), Image: k.Image}
		switch k.Kind {
		case App:
			pod.Spec.Containers = append(pod.Spec.Containers, container)
		case Sidecar:
			container.RestartPolicy = &always
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, container)
		case Init:
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, container)
		default:
			return nil, errors.New("making a pod: ephemeral containers come later, with AddEphemeral")
		}
	}
	for i, image := range s.ImageVolumes {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name:         fmt.Sprintf("image-%d", i),
			VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: image}},
		})
	}
	made, err := c.CoreV1().Pods(s.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("making pod %s/%s: %w", s.Namespace, s.Name, err)
	}
	return made, nil
}

// Run is Create and then a [Report] that everything runs.
func Run(ctx context.Context, c kubernetes.Interface, s Spec) (*corev1.Pod, error) {
	pod, err := Create(ctx, c, s)
	if err != nil {
		return nil, err
	}
	return Report(ctx, c, pod, corev1.PodRunning, s.Containers...)
}

// Report patches the pod's status as a kubelet does. The statuses of the three
// kinds of containers are replaced by those given; init containers have ended,
// all others run, unless the phase is Pending: then they wait, but for the
// sidecars and the init containers.
func Report(ctx context.Context, c kubernetes.Interface, pod *corev1.Pod, phase corev1.PodPhase, containers ...Container) (*corev1.Pod, error) {
	status := map[string]any{
		"phase": phase, "podIP": "127.0.0.1", "podIPs": []corev1.PodIP{{IP: "127.0.0.1"}}, "hostIP": "127.0.0.1",
		"hostIPs": []corev1.HostIP{{IP: "127.0.0.1"}}, "startTime": metav1.Now(),
	}
	lists := map[string][]corev1.ContainerStatus{"containerStatuses": {}, "initContainerStatuses": {}, "ephemeralContainerStatuses": {}}
	for _, k := range containers {
		st, err := k.status(phase)
		if err != nil {
			return nil, fmt.Errorf("reporting on pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		list := [...]string{App: "containerStatuses", Init: "initContainerStatuses", Sidecar: "initContainerStatuses", Ephemeral: "ephemeralContainerStatuses"}[k.Kind]
		lists[list] = append(lists[list], st)
	}
	for name, l := range lists {
		status[name] = l
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return nil, err
	}
	p, err := c.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return nil, fmt.Errorf("reporting on pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return p, nil
}

func (k Container) name() string {
	if k.Name == "" {
		return "app"
	}
	return k.Name
}

func (k Container) status(phase corev1.PodPhase) (corev1.ContainerStatus, error) {
	st := corev1.ContainerStatus{Name: k.name(), Image: k.Image, ImageID: k.ImageID}
	if phase == corev1.PodPending && (k.Kind == App || k.Kind == Ephemeral) {
		st.State.Waiting = &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
		return st, nil
	}
	if st.ImageID == "" {
		id, err := imageID(k.Image)
		if err != nil {
			return st, err
		}
		st.ImageID = id
	}
	st.ContainerID = "containerd://" + k.name()
	now := metav1.Now()
	if k.Kind == Init {
		st.State.Terminated = &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: now, FinishedAt: now, ContainerID: st.ContainerID}
		st.Ready = true
		return st, nil
	}
	yes := true
	st.State.Running = &corev1.ContainerStateRunning{StartedAt: now}
	st.Ready, st.Started = true, &yes
	return st, nil
}

// imageID is what containerd reports of an image pulled by digest.
func imageID(image string) (string, error) {
	name, digest, ok := strings.Cut(image, "@")
	if !ok {
		return "", fmt.Errorf("container image %q has no digest: say its ImageID", image)
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name + "@" + digest, nil
}

// Token asks the API server for a token bound to the pod, as kubelet does for a
// projected volume. It gives none of less than ten minutes.
func Token(ctx context.Context, c kubernetes.Interface, pod *corev1.Pod, audience string, life time.Duration) (string, error) {
	seconds := int64(life / time.Second)
	t, err := c.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, &authv1.TokenRequest{
		Spec: authv1.TokenRequestSpec{
			Audiences: []string{audience}, ExpirationSeconds: &seconds,
			BoundObjectRef: &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("asking for a token of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return t.Status.Token, nil
}
