package pods

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Delete begins a graceful deletion: the pod is Terminating from now on.
func Delete(ctx context.Context, c kubernetes.Interface, pod *corev1.Pod) error {
	return remove(ctx, c, pod, metav1.DeleteOptions{})
}

// ForceDelete removes the pod at once, as `kubectl delete --force` does.
func ForceDelete(ctx context.Context, c kubernetes.Interface, pod *corev1.Pod) error {
	now := int64(0)
	return remove(ctx, c, pod, metav1.DeleteOptions{GracePeriodSeconds: &now})
}

func remove(ctx context.Context, c kubernetes.Interface, pod *corev1.Pod, o metav1.DeleteOptions) error {
	o.Preconditions = &metav1.Preconditions{UID: &pod.UID}
	if err := c.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, o); err != nil {
		return fmt.Errorf("deleting pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// SetImage swaps the image of the named container of a live pod and reports
// that the new one runs: both the spec and the status change, in that order.
// It works for App, Init and Sidecar containers; an empty imageID is taken from
// the image's digest.
func SetImage(ctx context.Context, c kubernetes.Interface, pod *corev1.Pod, container, image, imageID string) (*corev1.Pod, error) {
	list, statuses := "containers", "containerStatuses"
	kind, ok := kindOf(pod, container)
	if !ok {
		return nil, fmt.Errorf("swapping an image: pod %s/%s has no container %q", pod.Namespace, pod.Name, container)
	}
	if kind != App {
		list, statuses = "initContainers", "initContainerStatuses"
	}
	if _, err := patch(ctx, c, pod, map[string]any{"spec": map[string]any{
		list: []map[string]any{{"name": container, "image": image}},
	}}); err != nil {
		return nil, fmt.Errorf("swapping an image: %w", err)
	}
	st, err := Container{Name: container, Kind: kind, Image: image, ImageID: imageID}.status(corev1.PodRunning)
	if err != nil {
		return nil, fmt.Errorf("swapping an image: %w", err)
	}
	p, err := reportOne(ctx, c, pod, statuses, st)
	if err != nil {
		return nil, fmt.Errorf("swapping an image: %w", err)
	}
	return p, nil
}

// AddEphemeral adds an ephemeral container by its subresource, as
// `kubectl debug` does, and reports that it runs.
func AddEphemeral(ctx context.Context, c kubernetes.Interface, pod *corev1.Pod, k Container) (*corev1.Pod, error) {
	k.Kind = Ephemeral
	if _, err := patch(ctx, c, pod, map[string]any{"spec": map[string]any{
		"ephemeralContainers": []corev1.EphemeralContainer{{
			EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: k.name(), Image: k.Image},
		}},
	}}, "ephemeralcontainers"); err != nil {
		return nil, fmt.Errorf("adding an ephemeral container: %w", err)
	}
	st, err := k.status(corev1.PodRunning)
	if err != nil {
		return nil, fmt.Errorf("adding an ephemeral container: %w", err)
	}
	p, err := reportOne(ctx, c, pod, "ephemeralContainerStatuses", st)
	if err != nil {
		return nil, fmt.Errorf("adding an ephemeral container: %w", err)
	}
	return p, nil
}

// reportOne puts one container's status into the named list, in place of its
// last one. A patch replaces such a list as a whole: the neighbours are kept.
func reportOne(ctx context.Context, c kubernetes.Interface, pod *corev1.Pod, list string, st corev1.ContainerStatus) (*corev1.Pod, error) {
	live, err := c.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	all := map[string][]corev1.ContainerStatus{
		"containerStatuses":          live.Status.ContainerStatuses,
		"initContainerStatuses":      live.Status.InitContainerStatuses,
		"ephemeralContainerStatuses": live.Status.EphemeralContainerStatuses,
	}[list]
	all = slices.DeleteFunc(all, func(other corev1.ContainerStatus) bool { return other.Name == st.Name })
	return patch(ctx, c, pod, map[string]any{"status": map[string]any{list: append(all, st)}}, "status")
}

func kindOf(pod *corev1.Pod, container string) (Kind, bool) {
	for _, k := range pod.Spec.Containers {
		if k.Name == container {
			return App, true
		}
	}
	for _, k := range pod.Spec.InitContainers {
		if k.Name == container && k.RestartPolicy != nil {
			return Sidecar, true
		}
		if k.Name == container {
			return Init, true
		}
	}
	return 0, false
}

// patch is strategic: lists of containers and statuses merge by name.
func patch(ctx context.Context, c kubernetes.Interface, pod *corev1.Pod, change any, subresource ...string) (*corev1.Pod, error) {
	b, err := json.Marshal(change)
	if err != nil {
		return nil, err
	}
	return c.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, b, metav1.PatchOptions{}, subresource...)
}
