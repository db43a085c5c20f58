package kube_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/hallmark-ca/hallmark/attest/kube"
)

// meshPod is a pod as a mesh has it: an app, a sidecar, an init container, a
// dozen variables, probes, volumes, and what fields their managers own. It is
// one of 50 replicas.
func meshPod(i int) *corev1.Pod {
	app := fmt.Sprint("app-", i/50)
	name := fmt.Sprintf("%s-6f7c9d8b5d-%05d", app, i)
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}, PeriodSeconds: 10}
	container := func(n string) corev1.Container {
		c := corev1.Container{
			Name: n, Image: "registry.example/" + app + "/" + n + ":v1.2.3", LivenessProbe: probe, ReadinessProbe: probe,
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}},
		}
		for v := range 12 {
			c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprint("SOME_VARIABLE_", v), Value: "some value of it"})
		}
		for v := range 4 {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: fmt.Sprint("volume-", v), MountPath: fmt.Sprint("/var/run/volume/", v)})
		}
		return c
	}
	state := func(n string) corev1.ContainerStatus {
		return corev1.ContainerStatus{
			Name: n, Image: "registry.example/" + app + "/" + n + ":v1.2.3", Ready: true,
			ImageID:     "registry.example/" + app + "/" + n + "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			ContainerID: fmt.Sprintf("containerd://%064x", i), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		}
	}
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprint("team-", i%40), Name: name, UID: types.UID(fmt.Sprintf("%08x-0000-4000-8000-%012x", i, i)), ResourceVersion: fmt.Sprint(1000 + i),
			Labels: map[string]string{
				"app": app, "version": "v1", "pod-template-hash": "6f7c9d8b5d", "security.istio.io/tlsMode": "istio",
				"service.istio.io/canonical-name": app, "service.istio.io/canonical-revision": "v1", "app.kubernetes.io/part-of": "shop",
			},
			Annotations:   map[string]string{"sidecar.istio.io/status": strings.Repeat("x", 600), "prometheus.io/scrape": "true"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet", Operation: "Update", FieldsV1: metav1.NewFieldsV1(`{"f:x":"` + strings.Repeat("y", 2500) + `"}`)}},
		},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprint("node-", i%200), ServiceAccountName: app,
			InitContainers: []corev1.Container{container("init")}, Containers: []corev1.Container{container("app"), container("istio-proxy")},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255),
			InitContainerStatuses: []corev1.ContainerStatus{state("init")}, ContainerStatuses: []corev1.ContainerStatus{state("app"), state("istio-proxy")},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.PodInitialized, Status: corev1.ConditionTrue}},
		},
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	return p
}

// watchOf returns a watch that adds n pods.
func watchOf(tb testing.TB, n int) []byte {
	tb.Helper()
	var b bytes.Buffer
	for i := range n {
		if err := json.NewEncoder(&b).Encode(map[string]any{"type": "ADDED", "object": meshPod(i)}); err != nil {
			tb.Fatal(err)
		}
	}
	// The API server writes the type first.
	return bytes.ReplaceAll(b.Bytes(), []byte(`{"object":`), []byte(`{"type":"ADDED","object":`))
}

// BenchmarkView takes pods in from a watch: time, garbage and what is kept of
// each. Beside it the same pods decoded whole.
func BenchmarkView(b *testing.B) {
	const n = 10_000
	watch := watchOf(b, n)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	run := func(b *testing.B, take func() any) {
		var kept uint64
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			before := heap()
			b.StartTimer()
			v := take()
			b.StopTimer()
			kept = heap() - before
			runtime.KeepAlive(v)
			b.StartTimer()
		}
		b.ReportMetric(float64(kept)/n, "kept-B/pod")
		b.ReportMetric(float64(len(watch))/n, "wire-B/pod")
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/pod")
	}
	b.Run("stripped", func(b *testing.B) {
		run(b, func() any { return kube.TakeIn(b, bytes.NewReader(watch)) })
	})
	b.Run("whole", func(b *testing.B) {
		run(b, func() any {
			var all []*corev1.Pod
			dec := json.NewDecoder(bytes.NewReader(watch))
			for {
				var e struct{ Object *corev1.Pod }
				if err := dec.Decode(&e); err == io.EOF {
					return all
				} else if err != nil {
					b.Fatal(err)
				}
				all = append(all, e.Object)
			}
		})
	})
}

// BenchmarkReview is what a token costs: one whose review is kept, garbage, one
// of an unknown key, one with a forged signature.
func BenchmarkReview(b *testing.B) {
	w := newWorld(b, nil)
	good := w.token(b, w.pod)
	if _, err := w.cluster.Review(b.Context(), good); err != nil {
		b.Fatal(err)
	}
	claims := w.claims(w.pod)
	claims.Expiry = time.Now().Add(time.Minute).Unix()
	for name, token := range map[string]string{
		"kept": good, "garbage": good[:len(good)-1] + "!", "unknown-key": newKey(b, "other").sign(b, claims), "forged": newKey(b, "key-1").sign(b, claims),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.cluster.Review(b.Context(), token); (err == nil) != (name == "kept") {
					b.Fatal(err)
				}
			}
		})
	}
}
