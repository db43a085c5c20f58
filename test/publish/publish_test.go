package publish_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/hallmark-ca/hallmark/ca/publish/kube"
	"github.com/hallmark-ca/hallmark/test/bench/cluster"
)

func TestConverges(t *testing.T) {
	t.Parallel()
	const many = 200
	s := newScene(t, cluster.Shared(t), "converges")
	var names []string
	for i := range many {
		names = append(names, fmt.Sprintf("converges-%03d", i))
	}
	s.selected(names...)
	s.namespace("converges-unselected", nil)
	began := time.Now()
	r := s.start("a", nil)
	s.until("converging", func() string { return strings.Join(r.behind(), "\n") })
	t.Logf("%d namespaces after %v", many, time.Since(began).Round(time.Millisecond))
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("%d namespaces took %v", many, took)
	}
	s.current(r, names...)
	if s.configMap("converges-unselected") != nil {
		t.Error("a namespace that is not selected has the object")
	}
	if got := len(r.Report()); got != many+1 {
		t.Errorf("%d readers, want %d", got, many+1)
	}
	read, _ := r.reader(names[0])
	if now := time.Now(); read.Holds(read.Sequence, now) || read.At.Before(began.Add(time.Minute)) || read.At.After(now.Add(time.Minute)) {
		t.Errorf("began at %s, its readers count from %s", began, read.At)
	}

	// The next bundle, in the objects and in the ClusterTrustBundle.
	s.authority.AddRoot(t)
	began = time.Now()
	s.until("following", func() string {
		for _, read := range r.Report() {
			if read.Sequence != s.authority.Current().Sequence() {
				return fmt.Sprintf("%+v", read)
			}
		}
		return ""
	})
	t.Logf("a new bundle after %v", time.Since(began).Round(time.Millisecond))
	s.current(r, names...)
	bundle, err := s.client.CertificatesV1beta1().ClusterTrustBundles().Get(t.Context(), s.bundle(), metav1.GetOptions{})
	if err != nil || bundle.Spec.TrustBundle != string(s.authority.Current().BundlePEM()) || bundle.Spec.SignerName != signer {
		t.Errorf("ClusterTrustBundle %+v (%v)", bundle.Spec, err)
	}

	// In a namespace that was just made nobody can have read anything older.
	s.selected("converges-new")
	s.current(r, "converges-new")
	if read, _ := r.reader("converges-new"); read.At.After(time.Now()) {
		t.Errorf("the readers of a new namespace count from %s only", read.At)
	}
}

// edit changes an object as the named manager does.
func (s *scene) edit(manager, namespace string, change func(*corev1.ConfigMap)) {
	s.t.Helper()
	cm := s.configMap(namespace)
	if cm == nil {
		s.t.Fatalf("there is no object in %s", namespace)
	}
	change(cm)
	if _, err := s.client.CoreV1().ConfigMaps(namespace).Update(s.t.Context(), cm, metav1.UpdateOptions{FieldManager: manager}); err != nil {
		s.t.Fatal(err)
	}
}

func setContent(content string) func(*corev1.ConfigMap) {
	return func(cm *corev1.ConfigMap) { cm.Data = map[string]string{kube.IstioKey: content} }
}

func TestTakesBack(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "takesback")
	const ns = "takesback-1"
	s.selected(ns)
	r := s.start("a", nil)
	s.current(r, ns)
	client := s.client.CoreV1().ConfigMaps(ns)
	marks := s.configMap(ns).Annotations
	labels := s.configMap(ns).Labels
	whole := func(what string) {
		t.Helper()
		s.until(what, func() string {
			cm := s.configMap(ns)
			switch {
			case cm == nil || cm.Data[kube.IstioKey] != string(s.authority.Current().BundlePEM()):
				return "the content is another: " + r.problem(ns)
			case fmt.Sprint(cm.Annotations) != fmt.Sprint(marks) || fmt.Sprint(cm.Labels) != fmt.Sprint(labels):
				return fmt.Sprintf("the marks are %v %v: %s", cm.Annotations, cm.Labels, r.problem(ns))
			}
			return r.problem(ns)
		})
	}
	whole("at first")
	for what, change := range map[string]func(*corev1.ConfigMap){
		"content":         setContent("by hand"),
		"key removed":     func(cm *corev1.ConfigMap) { cm.Data = nil },
		"no mark":         func(cm *corev1.ConfigMap) { cm.Annotations = nil },
		"foreign mark":    func(cm *corev1.ConfigMap) { cm.Annotations["hallmark.dev/trust-domain"] = "elsewhere" },
		"higher sequence": func(cm *corev1.ConfigMap) { cm.Annotations["hallmark.dev/bundle-sequence"] = "99999" },
		"all": func(cm *corev1.ConfigMap) {
			cm.Annotations, cm.Data = nil, map[string]string{kube.IstioKey: "x"}
		},
	} {
		for range 4 { // a person may try as often as they like
			s.edit("kubectl-edit", ns, change)
			whole(what)
		}
	}
	read, _ := r.reader(ns)
	if left := time.Until(read.At); left < 30*time.Second {
		t.Errorf("%v after an edit its readers count: some may have read what was written by hand", time.Minute-left)
	}
	if err := client.Delete(t.Context(), kube.IstioConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	whole("deleted")

	bundles := s.client.CertificatesV1beta1().ClusterTrustBundles()
	root := string(s.authority.Current().BundlePEM())
	s.authority.AddRoot(t)
	marks["hallmark.dev/bundle-sequence"] = fmt.Sprint(s.authority.Current().Sequence())
	whole("a new bundle")
	s.until("the ClusterTrustBundle", func() string { return strings.Join(r.behind(), "\n") })
	b, err := bundles.Get(t.Context(), s.bundle(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.Spec.TrustBundle = root
	if _, err := bundles.Update(t.Context(), b, metav1.UpdateOptions{FieldManager: "kubectl-edit"}); err != nil {
		t.Fatal(err)
	}
	s.until("the ClusterTrustBundle taken back", func() string {
		if b, err := bundles.Get(t.Context(), s.bundle(), metav1.GetOptions{}); err != nil || b.Spec.TrustBundle != string(s.authority.Current().BundlePEM()) {
			return fmt.Sprintf("another content (%v)", err)
		}
		return ""
	})

	// A writer that comes back is no hand, and is not fought.
	const writer = "other-controller"
	for range 3 {
		s.edit(writer, ns, setContent("again"))
		whole("overruled")
	}
	s.edit(writer, ns, setContent("again"))
	s.until("yielding", func() string {
		if p := r.problem(ns); !strings.Contains(p, "another writer holds it") || !strings.Contains(p, writer) {
			return "problem: " + p
		}
		return ""
	})
	if got := s.content(ns); got != "again" {
		t.Errorf("the object holds %q: it was fought over", got)
	}
	if read, _ := r.reader(ns); read.Sequence != 0 || !read.At.IsZero() {
		t.Errorf("report while another holds it: %+v", read)
	}
}

// TestRespectsIstiod writes as istiod does: with an Update, under its user agent.
func TestRespectsIstiod(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "istiod")
	agent := s.cluster.REST()
	agent.UserAgent = "pilot-discovery/1.30.0 (linux/amd64) istio"
	s.selected("istiod-1", "istiod-2", "istiod-3", "istiod-same")
	istiod := s.clientOf(agent)
	make := func(ns, content string) {
		t.Helper()
		_, err := istiod.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: kube.IstioConfigMap, Labels: map[string]string{"istio.io/config": "true"}},
			Data:       map[string]string{kube.IstioKey: content},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	make("istiod-1", "istiod's")
	make("istiod-2", "istiod's")
	make("istiod-same", string(s.authority.Current().BundlePEM()))
	r := s.start("a", nil)
	s.current(r, "istiod-3", "istiod-same")
	waits := func(ns string) {
		t.Helper()
		s.until("waiting", func() string {
			if p := r.problem(ns); !strings.Contains(p, `"pilot-discovery"`) {
				return "problem: " + p
			}
			return ""
		})
		if got := s.content(ns); got != "istiod's" {
			t.Errorf("%s holds %q", ns, got)
		}
	}
	waits("istiod-1")
	waits("istiod-2")
	// What is ours is istiod's once it writes there, and is not fought over.
	cm := s.configMap("istiod-3")
	cm.Data[kube.IstioKey] = "istiod's"
	if _, err := istiod.CoreV1().ConfigMaps("istiod-3").Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	waits("istiod-3")
	// The probe names it.
	var said string
	for _, f := range r.Probe(t.Context()) {
		if f.Err != nil {
			said += f.What + ": " + f.Err.Error() + "\n"
		}
	}
	if !strings.Contains(said, `"pilot-discovery" holds`) {
		t.Errorf("probe: %s", said)
	}
	// Deleting hands over; so does naming it.
	if err := istiod.CoreV1().ConfigMaps("istiod-1").Delete(t.Context(), kube.IstioConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.current(r, "istiod-1")
	r.stop()
	r = s.start("b", func(cfg *kube.Config) { cfg.TakeOver = []string{"pilot-discovery"} })
	s.current(r, "istiod-1", "istiod-2", "istiod-3", "istiod-same")
	s.authority.AddRoot(t)
	s.current(r, "istiod-1", "istiod-2", "istiod-3", "istiod-same")
}

// TestTwoTrustDomains has two installations that were given one name.
func TestTwoTrustDomains(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "two")
	s.selected("two-1")
	first := s.start("a", nil)
	s.current(first, "two-1")
	other := newSceneOf(t, s, "elsewhere.example")
	second := other.start("b", func(cfg *kube.Config) { cfg.Namespace = other.home() })
	s.until("waiting", func() string {
		if p := second.problem("two-1"); !strings.Contains(p, "trust domain cluster.local") {
			return "problem: " + p
		}
		return ""
	})
	s.current(first, "two-1")
}

func TestNamespaceThatEnds(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "ends")
	s.selected("ends-1", "ends-2", "ends-3")
	namespaces := s.client.CoreV1().Namespaces()
	// Nothing here empties a namespace, so that it terminates for ever.
	if err := namespaces.Delete(t.Context(), "ends-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r := s.start("a", nil)
	s.current(r, "ends-2", "ends-3")
	if err := namespaces.Delete(t.Context(), "ends-2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.authority.AddRoot(t)
	s.current(r, "ends-3")
	s.until("counting them as done", func() string { return strings.Join(r.behind(), "\n") })
	for _, ns := range []string{"ends-1", "ends-2"} {
		if read, ok := r.reader(ns); ok {
			t.Errorf("%s holds up the gates: %+v", ns, read)
		}
	}
	// One that is gone altogether leaves nothing.
	if _, err := namespaces.Finalize(t.Context(), finalized(s, "ends-2"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.current(r, "ends-3")
}

func finalized(s *scene, name string) *corev1.Namespace {
	s.t.Helper()
	ns, err := s.client.CoreV1().Namespaces().Get(s.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	ns.Spec.Finalizers = nil
	return ns
}

// TestNamespaceThatRefuses has an admission policy in the way, in one namespace.
func TestNamespaceThatRefuses(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "refuses")
	s.selected("refuses-1", "refuses-2")
	deny := admissionv1.Deny
	fail := admissionv1.Fail
	policies := s.client.AdmissionregistrationV1()
	_, err := policies.ValidatingAdmissionPolicies().Create(t.Context(), &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "refuses"},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: &fail,
			MatchConstraints: &admissionv1.MatchResources{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "refuses-1"}},
				ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
					Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
				}}},
			},
			Validations: []admissionv1.Validation{{Expression: "false", Message: "nothing is written here"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := policies.ValidatingAdmissionPolicyBindings().Create(t.Context(), &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "refuses"},
		Spec:       admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: "refuses", ValidationActions: []admissionv1.ValidationAction{deny}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.until("the policy in force", func() string {
		if _, err := s.client.CoreV1().ConfigMaps("refuses-1").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "try-"}}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
			return ""
		}
		return "it is not yet"
	})
	r := s.start("a", nil)
	s.current(r, "refuses-2")
	s.until("naming who refuses", func() string {
		if p := r.problem("refuses-1"); !strings.Contains(p, "nothing is written here") {
			return "problem: " + p
		}
		return ""
	})
	if err := policies.ValidatingAdmissionPolicyBindings().Delete(t.Context(), "refuses", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.current(r, "refuses-1", "refuses-2")
}

// TestImmutable has an object that nobody can change.
func TestImmutable(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.Shared(t), "immutable")
	s.selected("immutable-1")
	r := s.start("a", nil)
	s.current(r, "immutable-1")
	if _, err := s.client.CoreV1().ConfigMaps("immutable-1").Patch(t.Context(), kube.IstioConfigMap, types.MergePatchType, []byte(`{"immutable":true}`), metav1.PatchOptions{FieldManager: "kubectl-patch"}); err != nil {
		t.Fatal(err)
	}
	s.authority.AddRoot(t)
	s.until("saying so", func() string {
		if p := r.problem("immutable-1"); !strings.Contains(p, "immutable") {
			return "problem: " + p
		}
		return ""
	})
	if err := s.client.CoreV1().ConfigMaps("immutable-1").Delete(t.Context(), kube.IstioConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.current(r, "immutable-1")
}
