// Package publish_test holds ca/publish/kube against a real API server.
package publish_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/publish"
	"github.com/hallmark-ca/hallmark/ca/publish/kube"
	"github.com/hallmark-ca/hallmark/test/bench/cluster"
)

func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }

const (
	patience = 30 * time.Second
	account  = "publisher"
	signer   = "hallmark.dev/publish-test"
)

// scene is one publisher's world in the shared cluster: namespaces of a label of
// its own, an account with exactly what [kube.Publisher.Access] says.
type scene struct {
	t         *testing.T
	cluster   *cluster.Cluster
	client    kubernetes.Interface // the administrator's
	name      string               // of the label, the home namespace, the ClusterTrustBundle
	authority *catest.Authority
}

func newScene(t *testing.T, c *cluster.Cluster, name string) *scene {
	t.Helper()
	td, err := attest.ParseTrustDomain("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, cluster: c, client: c.Client(), name: name, authority: catest.New(t, td, time.Now, nil)}
	s.namespace(name+"-home", nil)
	return s
}

func (s *scene) home() string   { return s.name + "-home" }
func (s *scene) bundle() string { return strings.ReplaceAll(signer, "/", ":") + ":" + s.name }

// namespace makes one; labels nil: one that is not selected.
func (s *scene) namespace(name string, labels map[string]string) {
	s.t.Helper()
	_, err := s.client.CoreV1().Namespaces().Create(s.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) selected(names ...string) {
	s.t.Helper()
	for _, name := range names {
		s.namespace(name, map[string]string{"scene": s.name})
	}
}

// runner is a publisher that runs.
type runner struct {
	*kube.Publisher
	log       *record
	forbidden *forbidden
	stop      func()
}

// config is what all publishers of the scene share.
func (s *scene) config(replica string) kube.Config {
	return kube.Config{
		Authority: s.authority.Authority, Namespace: s.home(), ReplicaID: replica,
		ConfigMap:    &kube.ConfigMap{Name: kube.IstioConfigMap, Key: kube.IstioKey, Namespaces: "scene=" + s.name},
		TrustBundle:  &kube.TrustBundle{Name: s.bundle(), Signer: signer},
		KubeletDelay: time.Minute, Limits: kube.Limits{Lease: 6 * time.Second},
		Now: time.Now,
	}
}

// build makes a publisher that acts as an account with exactly what it says that
// it needs.
func (s *scene) build(replica string, change func(*kube.Config), through *faults) *runner {
	s.t.Helper()
	r := &runner{log: &record{}, forbidden: &forbidden{}}
	cfg := s.config(replica)
	if change != nil {
		change(&cfg)
	}
	cfg.REST = s.cluster.REST() // to be asked what it needs
	cfg.Log, cfg.Registerer = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	asked, err := kube.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.REST = s.permit(asked.Access())
	cfg.REST.Wrap(func(next http.RoundTripper) http.RoundTripper {
		r.forbidden.next = next
		if through == nil {
			return r.forbidden
		}
		through.next = r.forbidden
		return through
	})
	cfg.Log, cfg.Registerer = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})), prometheus.NewRegistry()
	if r.Publisher, err = kube.New(cfg); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// start runs a publisher until the test or stop ends it.
func (s *scene) start(replica string, change func(*kube.Config)) *runner {
	s.t.Helper()
	return s.run(replica, s.build(replica, change, nil))
}

// startThrough is start with faults in the way.
func (s *scene) startThrough(replica string, through *faults) *runner {
	s.t.Helper()
	return s.run(replica, s.build(replica, nil, through))
}

func (s *scene) run(replica string, r *runner) *runner {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("%s ended with %v", replica, err)
		}
		for _, request := range r.forbidden.all() {
			s.t.Errorf("%s asked for what Access does not name: %s", replica, request)
		}
		if s.t.Failed() {
			s.t.Logf("log of %s:\n%s", replica, r.log)
		}
	})
	s.t.Cleanup(r.stop)
	return r
}

// permit makes an account with exactly those rules, and returns how it reaches
// the API server.
func (s *scene) permit(rules []kube.Access) *rest.Config {
	s.t.Helper()
	ctx := s.t.Context()
	name := metav1.ObjectMeta{Name: s.name}
	var everywhere, home []rbacv1.PolicyRule
	for _, a := range rules {
		rule := rbacv1.PolicyRule{Verbs: []string{a.Verb}, APIGroups: []string{a.Group}, Resources: []string{a.Resource}}
		if a.Name != "" {
			rule.ResourceNames = []string{a.Name}
		}
		if a.Namespace == "" {
			everywhere = append(everywhere, rule)
		} else {
			home = append(home, rule)
		}
	}
	rbac, core := s.client.RbacV1(), s.client.CoreV1()
	subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: s.home(), Name: account}}
	must := func(err error) {
		s.t.Helper()
		if err != nil && !apierrors.IsAlreadyExists(err) {
			s.t.Fatal(err)
		}
	}
	_, err := core.ServiceAccounts(s.home()).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
	must(err)
	_, err = rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: name, Rules: everywhere}, metav1.CreateOptions{})
	must(err)
	_, err = rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: name, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: s.name}}, metav1.CreateOptions{})
	must(err)
	_, err = rbac.Roles(s.home()).Create(ctx, &rbacv1.Role{ObjectMeta: name, Rules: home}, metav1.CreateOptions{})
	must(err)
	_, err = rbac.RoleBindings(s.home()).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: name, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: s.name}}, metav1.CreateOptions{})
	must(err)
	file, err := s.cluster.AccountKubeconfig(ctx, s.home(), account)
	must(err)
	cfg, err := clientcmd.BuildConfigFromFlags("", file)
	must(err)
	return cfg
}

// until waits for a condition, which says what is missing.
func (s *scene) until(what string, missing func() string) {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	last := missing()
	for last != "" {
		select {
		case <-deadline:
			s.t.Fatalf("%s: %s", what, last)
		case <-tick.C:
			last = missing()
		}
	}
}

// configMap returns the object in a namespace, nil where there is none.
func (s *scene) configMap(namespace string) *corev1.ConfigMap {
	s.t.Helper()
	cm, err := s.client.CoreV1().ConfigMaps(namespace).Get(s.t.Context(), kube.IstioConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return cm
}

// content returns the bundle in a namespace.
func (s *scene) content(namespace string) string {
	s.t.Helper()
	if cm := s.configMap(namespace); cm != nil {
		return cm.Data[kube.IstioKey]
	}
	return ""
}

// current waits until the namespaces hold the bundle in force and the publisher
// says so.
func (s *scene) current(r *runner, namespaces ...string) {
	s.t.Helper()
	want := string(s.authority.Current().BundlePEM())
	s.until("converging", func() string {
		for _, n := range namespaces {
			if got := s.content(n); got != want {
				return fmt.Sprintf("%s holds %.40q; report %v", n, got, r.problem(n))
			}
			if read, ok := r.reader(n); !ok || read.Sequence != s.authority.Current().Sequence() || read.Problem != "" {
				return fmt.Sprintf("report of %s: %+v", n, read)
			}
		}
		return ""
	})
}

// reader returns what is reported of a namespace.
func (r *runner) reader(namespace string) (publish.Reader, bool) {
	all := r.Report()
	if i := slices.IndexFunc(all, func(read publish.Reader) bool { return strings.Contains(read.Name, " "+namespace+"/") }); i >= 0 {
		return all[i], true
	}
	return publish.Reader{}, false
}

func (r *runner) problem(namespace string) string {
	read, _ := r.reader(namespace)
	return read.Problem
}

// behind returns all problems.
func (r *runner) behind() []string {
	var out []string
	for _, read := range r.Report() {
		if read.Problem != "" {
			out = append(out, read.Name+": "+read.Problem)
		}
	}
	return out
}

// forbidden notes the requests that were answered with 403, but for those of
// namespaces that terminate.
type forbidden struct {
	next http.RoundTripper

	mu       sync.Mutex // guards all below
	requests []string
}

// RoundTrip implements http.RoundTripper.
func (f *forbidden) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := f.next.RoundTrip(req)
	if err != nil || res.StatusCode != http.StatusForbidden {
		return res, err
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(body))
	if !bytes.Contains(body, []byte("because it is being terminated")) && !bytes.Contains(body, []byte("ValidatingAdmissionPolicy")) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.requests = append(f.requests, req.Method+" "+req.URL.String()+": "+string(body))
	}
	return res, nil
}

func (f *forbidden) all() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.requests)
}

// forget clears the list.
func (f *forbidden) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = nil
}

// record is a log that a test may read.
type record struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(b)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}
