// Package deploy_test holds what deploy/ says against the real things: the
// manifests against an API server, the access that they grant against what
// `hallmark serve` uses, the Envoy samples against Envoy.
package deploy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"

	"github.com/hallmark-ca/hallmark/test/bench/cluster"
	"github.com/hallmark-ca/hallmark/test/tools"
)

const (
	deployDir = "../../deploy"
	manifests = deployDir + "/manifests"
)

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// documents parses the YAML documents of a file, each strictly: a doubled key is
// an error.
func documents(t *testing.T, path string) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for _, doc := range bytes.Split(read(t, path), []byte("\n---\n")) {
		var content map[string]any
		if err := yaml.UnmarshalStrict(doc, &content); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if content["kind"] == nil {
			t.Fatalf("%s: a document without a kind", path)
		}
		out = append(out, &unstructured.Unstructured{Object: content})
	}
	return out
}

// kustomization is what of kustomization.yaml counts here.
type kustomization struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Resources  []string `json:"resources"`
	Images     []struct {
		Name    string `json:"name"`
		NewName string `json:"newName"`
		NewTag  string `json:"newTag"`
	} `json:"images"`
}

func readKustomization(t *testing.T) kustomization {
	t.Helper()
	var k kustomization
	if err := yaml.UnmarshalStrict(read(t, manifests+"/kustomization.yaml"), &k); err != nil {
		t.Fatal(err)
	}
	return k
}

// installed returns every object that kubectl apply -k makes, in its order.
func installed(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for _, name := range readKustomization(t).Resources {
		out = append(out, documents(t, manifests+"/"+name)...)
	}
	return out
}

// find returns the one object of that kind and name, as T.
func find[T any](t *testing.T, objects []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() != kind || o.GetName() != name {
			continue
		}
		out := new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, out, true); err != nil {
			t.Fatalf("%s %s: %v", kind, name, err)
		}
		return out
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}

// create makes the objects, in order, and has the API server refuse every field
// that it does not know and every warning that it would give.
func create(ctx context.Context, c *cluster.Cluster, objects []*unstructured.Unstructured) error {
	config := c.REST()
	warnings := &warnings{}
	config.WarningHandlerWithContext = warnings
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	groups, err := restmapper.GetAPIGroupResources(c.Client().Discovery())
	if err != nil {
		return fmt.Errorf("asking for the kinds that there are: %w", err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	for _, o := range objects {
		kind := o.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			return err
		}
		resource := client.Resource(mapping.Resource)
		options := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
		if ns := o.GetNamespace(); ns != "" {
			_, err = resource.Namespace(ns).Create(ctx, o, options)
		} else {
			_, err = resource.Create(ctx, o, options)
		}
		if err != nil {
			return fmt.Errorf("making %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	if len(warnings.texts) > 0 {
		return errors.New("the API server warns: " + strings.Join(warnings.texts, "; "))
	}
	return nil
}

// warnings keeps what the API server warns of.
type warnings struct{ texts []string }

func (w *warnings) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) {
	w.texts = append(w.texts, text)
}

// TestInstallation installs Hallmark as docs/install.md does, on an API server
// that keeps a record of who did what.
func TestInstallation(t *testing.T) {
	tools.Need(t, "envoy", "pilot-agent") // callers of its server
	audit := newAudit(t)
	c := cluster.ForTest(t, audit.args...)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	objects := installed(t)
	if err := create(ctx, c, objects); err != nil {
		t.Fatal(err)
	}
	t.Run("PodIsAdmitted", func(t *testing.T) { podIsAdmitted(ctx, t, c, objects) })
	t.Run("SamplePodIsAdmitted", func(t *testing.T) { samplePodIsAdmitted(ctx, t, c) })
	t.Run("AccessGrantedIsAccessUsed", func(t *testing.T) { accessIsUsed(ctx, t, c, objects, audit) })
}

// podIsAdmitted makes the pod that the StatefulSet's controller would make: the
// namespace's own pod security (restricted) admits it.
func podIsAdmitted(ctx context.Context, t *testing.T, c *cluster.Cluster, objects []*unstructured.Unstructured) {
	set := find[appsv1.StatefulSet](t, objects, "StatefulSet", "hallmark")
	template := set.Spec.Template
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Namespace, pod.Name = set.Namespace, set.Name+"-0"
	for _, claim := range set.Spec.VolumeClaimTemplates {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name + "-" + pod.Name},
		}})
	}
	if _, err := c.Client().CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatalf("the pod of the StatefulSet is not admitted: %v", err)
	}
	service := find[corev1.Service](t, objects, "Service", "hallmark")
	if !labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(template.Labels)) {
		t.Error("the Service does not select the pod")
	}
}

// samplePodIsAdmitted holds the sample of a workload to the same standard.
func samplePodIsAdmitted(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	const ns = "sample"
	restricted := map[string]string{"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
	if _, err := c.Client().CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: restricted}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	sample := documents(t, deployDir+"/envoy/pod.yaml")
	for _, o := range sample {
		o.SetNamespace(ns)
	}
	if err := create(ctx, c, sample); err != nil {
		t.Error(err)
	}
}

// TestKustomization holds the list against the folder, and the image's name
// against the one that it replaces.
func TestKustomization(t *testing.T) {
	k := readKustomization(t)
	var want []string
	entries, err := os.ReadDir(manifests)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "kustomization.yaml" {
			want = append(want, e.Name())
		}
	}
	listed := slices.Sorted(slices.Values(k.Resources))
	if diff := cmp.Diff(want, listed); diff != "" {
		t.Errorf("kustomization.yaml does not list what is there (-there +listed):\n%s", diff)
	}
	if len(k.Images) != 1 {
		t.Fatalf("%d images", len(k.Images))
	}
	spec := find[appsv1.StatefulSet](t, installed(t), "StatefulSet", "hallmark").Spec.Template.Spec
	for _, container := range slices.Concat(spec.InitContainers, spec.Containers) {
		if container.Image != k.Images[0].Name {
			t.Errorf("container %s has image %q, kustomization.yaml replaces %q", container.Name, container.Image, k.Images[0].Name)
		}
	}
}

// TestPolicySamples holds the policies' ConfigMap against the folder that its
// head says it is made of.
func TestPolicySamples(t *testing.T) {
	inMap := find[corev1.ConfigMap](t, installed(t), "ConfigMap", "hallmark-policies").Data
	inFolder := map[string]string{}
	entries, err := os.ReadDir(deployDir + "/policies")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		inFolder[e.Name()] = string(read(t, filepath.Join(deployDir, "policies", e.Name())))
	}
	if diff := cmp.Diff(inFolder, inMap); diff != "" {
		t.Errorf("policies.yaml differs from deploy/policies (-folder +map):\n%s", diff)
	}
}

// TestEveryFileIsTested names each file of deploy/ with the test that uses it: a
// new one belongs into a test.
func TestEveryFileIsTested(t *testing.T) {
	tested := map[string]string{
		"envoy/README.md":               "prose",
		"envoy/pod.yaml":                "TestInstallation",
		"envoy/token.yaml":              "TestEnvoySamples",
		"envoy/trust.yaml":              "TestEnvoySamples",
		"envoy/sidecar-envoy-grpc.yaml": "TestEnvoySamples", "envoy/sidecar-google-grpc.yaml": "TestEnvoySamples",
		"manifests/kustomization.yaml": "TestKustomization",
		"publish/access.yaml":          "TestAccessFile and TestServePublishes of test/publish",
	}
	for _, name := range readKustomization(t).Resources {
		tested["manifests/"+name] = "TestInstallation"
	}
	entries, err := os.ReadDir(deployDir + "/policies")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		tested["policies/"+e.Name()] = "TestPolicySamples"
	}
	err = fs.WalkDir(os.DirFS(deployDir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && tested[path] == "" {
			t.Errorf("no test uses deploy/%s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
