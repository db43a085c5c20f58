package publish_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/bundle"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/publish/kube"
	"github.com/hallmark-ca/hallmark/test/bench/cluster"
	"github.com/hallmark-ca/hallmark/test/bench/hallmark"
	"github.com/hallmark-ca/hallmark/test/bench/port"
)

const deployDir = "../../deploy"

// documents returns the YAML documents of a file, by kind and name.
func documents(t *testing.T, file string) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(deployDir, file))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var head struct {
			Kind     string
			Metadata struct{ Name string }
		}
		if err := yaml.Unmarshal(doc, &head); err != nil || head.Kind == "" {
			t.Fatalf("%s: %v\n%s", file, err, doc)
		}
		all[head.Kind+" "+head.Metadata.Name] = doc
	}
	return all
}

func decoded[T any](t *testing.T, doc []byte) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict(doc, out); err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	return out
}

// install makes what a file of deploy/ says of accounts and their access.
func install(t *testing.T, client kubernetes.Interface, file string) {
	t.Helper()
	ctx, core, rbac := t.Context(), client.CoreV1(), client.RbacV1()
	for name, doc := range documents(t, file) {
		var err error
		switch kind, _, _ := strings.Cut(name, " "); kind {
		case "Namespace":
			_, err = core.Namespaces().Create(ctx, decoded[corev1.Namespace](t, doc), metav1.CreateOptions{})
		case "ServiceAccount":
			o := decoded[corev1.ServiceAccount](t, doc)
			_, err = core.ServiceAccounts(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		case "ClusterRole":
			_, err = rbac.ClusterRoles().Create(ctx, decoded[rbacv1.ClusterRole](t, doc), metav1.CreateOptions{})
		case "ClusterRoleBinding":
			_, err = rbac.ClusterRoleBindings().Create(ctx, decoded[rbacv1.ClusterRoleBinding](t, doc), metav1.CreateOptions{})
		case "Role":
			o := decoded[rbacv1.Role](t, doc)
			_, err = rbac.Roles(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		case "RoleBinding":
			o := decoded[rbacv1.RoleBinding](t, doc)
			_, err = rbac.RoleBindings(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		default:
			err = errors.New("this test does not know the kind")
		}
		if err != nil {
			t.Fatalf("%s: %s: %v", file, name, err)
		}
	}
}

// TestAccessFile holds the file against what a publisher says that it needs
// under the names that Istio knows: no rule less, and none more.
func TestAccessFile(t *testing.T) {
	t.Parallel()
	td, err := attest.ParseTrustDomain("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	p, err := kube.New(kube.Config{
		REST: cluster.Shared(t).REST(), Authority: catest.New(t, td, time.Now, nil).Authority,
		Namespace: cluster.HallmarkNamespace, ReplicaID: "a", KubeletDelay: time.Minute,
		ConfigMap:   &kube.ConfigMap{Name: kube.IstioConfigMap, Key: kube.IstioKey},
		TrustBundle: &kube.TrustBundle{Name: kube.IstioTrustBundle, Signer: kube.IstioSigner},
		Log:         slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, a := range p.Access() {
		want = append(want, a.String())
	}
	var got []string
	bound := map[string]bool{}
	spell := func(namespace string, rules []rbacv1.PolicyRule) {
		for _, r := range rules {
			if len(r.NonResourceURLs) > 0 || len(r.APIGroups) != 1 || len(r.Resources) != 1 || len(r.ResourceNames) > 1 {
				t.Errorf("a rule that is not of one resource: %v", r)
				continue
			}
			for _, verb := range r.Verbs {
				got = append(got, kube.Access{Verb: verb, Group: r.APIGroups[0], Resource: r.Resources[0], Name: strings.Join(r.ResourceNames, ""), Namespace: namespace}.String())
			}
		}
	}
	bind := func(ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
		bound[ref.Kind+" "+ref.Name] = true
		if diff := cmp.Diff([]rbacv1.Subject{{Kind: "ServiceAccount", Namespace: cluster.HallmarkNamespace, Name: cluster.HallmarkAccount}}, subjects); diff != "" {
			t.Errorf("%s is bound to others (-want +got):\n%s", ref.Name, diff)
		}
	}
	roles := 0
	for name, doc := range documents(t, "publish/access.yaml") {
		switch kind, _, _ := strings.Cut(name, " "); kind {
		case "ClusterRole":
			roles++
			spell("", decoded[rbacv1.ClusterRole](t, doc).Rules)
		case "Role":
			roles++
			o := decoded[rbacv1.Role](t, doc)
			spell(o.Namespace, o.Rules)
		case "ClusterRoleBinding":
			o := decoded[rbacv1.ClusterRoleBinding](t, doc)
			bind(o.RoleRef, o.Subjects)
		case "RoleBinding":
			o := decoded[rbacv1.RoleBinding](t, doc)
			bind(o.RoleRef, o.Subjects)
		default:
			t.Errorf("%s has no place in this file", name)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("deploy/publish/access.yaml is not what is needed (-needed +given):\n%s", diff)
	}
	if len(bound) != roles {
		t.Errorf("%d roles, bound are %v", roles, bound)
	}
}

// site is `hallmark serve` that publishes into a cluster of its own, as the
// account of the manifests.
type site struct {
	*hallmark.Server
	t        *testing.T
	ctx      context.Context
	client   kubernetes.Interface
	endpoint string
	web      *x509.CertPool
}

// kubeletDelay is what object readers take here.
const kubeletDelay = 12 * time.Second

func newSite(t *testing.T, within time.Duration) *site {
	t.Helper()
	c := cluster.ForTest(t)
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	s := &site{t: t, ctx: ctx, client: c.Client()}
	for _, file := range []string{"manifests/namespace.yaml", "manifests/access.yaml", "publish/access.yaml"} {
		install(t, s.client, file)
	}
	kubeconfig, err := c.AccountKubeconfig(ctx, cluster.HallmarkNamespace, cluster.HallmarkAccount)
	if err != nil {
		t.Fatal(err)
	}
	address, err := port.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(address.Close)
	dir := t.TempDir()
	s.endpoint, s.web = address.Addr(), webCertificate(t, dir)
	s.Server, err = hallmark.New(ctx, hallmark.Config{
		Dir: dir, Kubeconfig: kubeconfig, Images: "disabled",
		Settings: map[string]any{
			"authority.unsafeShortLifetimes": true, "rotation.rehearsalWindow": "5s", "bundle.readWithin": "1s",
			"bundle.endpoint.listen": s.endpoint, "bundle.endpoint.refreshHint": "1s",
			"bundle.endpoint.certificateFile": filepath.Join(dir, "web.crt"), "bundle.endpoint.keyFile": filepath.Join(dir, "web.key"),
			"bundle.objects.configMap": kube.IstioConfigMap, "bundle.objects.trustBundle": kube.IstioTrustBundle,
			"bundle.objects.signer": kube.IstioSigner, "bundle.objects.kubeletDelay": kubeletDelay.String(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	t.Cleanup(func() {
		if log, err := os.ReadFile(s.LogFile()); t.Failed() && err == nil {
			t.Logf("end of hallmark's log:\n%s", log[max(0, len(log)-12<<10):])
		}
	})
	return s
}

func webCertificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, content := range map[string][]byte{"web.crt": text, "web.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool
}

func (s *site) eventually(within time.Duration, missing func() error) {
	s.t.Helper()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(within)
	for {
		err := missing()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("not within %s: %v", within, err)
		}
	}
}

// published is nil once every namespace but those named, the ClusterTrustBundle
// and the endpoint hold what the file holds, of so many roots.
func (s *site) published(roots int, but ...string) error {
	text, err := os.ReadFile(s.Bundle())
	if err != nil {
		return err
	}
	if n := bytes.Count(text, []byte("BEGIN CERTIFICATE")); n != roots {
		return fmt.Errorf("the file holds %d roots, want %d", n, roots)
	}
	all, err := s.client.CoreV1().Namespaces().List(s.ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, ns := range all.Items {
		cm, err := s.client.CoreV1().ConfigMaps(ns.Name).Get(s.ctx, kube.IstioConfigMap, metav1.GetOptions{})
		if slices.Contains(but, ns.Name) {
			continue
		}
		if err != nil {
			return err
		}
		if got := cm.Data[kube.IstioKey]; got != string(text) {
			return fmt.Errorf("namespace %s holds %.40q", ns.Name, got)
		}
	}
	ctb, err := s.client.CertificatesV1beta1().ClusterTrustBundles().Get(s.ctx, kube.IstioTrustBundle, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if ctb.Spec.TrustBundle != string(text) {
		return fmt.Errorf("the ClusterTrustBundle holds %.40q", ctb.Spec.TrustBundle)
	}
	return s.endpointHolds(roots)
}

func (s *site) endpointHolds(roots int) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.web, MinVersion: tls.VersionTLS12}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "https://"+s.endpoint+"/", nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	td, err := attest.ParseTrustDomain(hallmark.TrustDomain)
	if err != nil {
		return err
	}
	b, err := bundle.Parse(td, body)
	if err != nil {
		return err
	}
	if len(b.Roots) != roots {
		return fmt.Errorf("the endpoint holds %d roots, want %d", len(b.Roots), roots)
	}
	return nil
}

// behind returns who keeps gate A shut, by name.
func (s *site) behind() (map[string]string, error) {
	out, err := s.Run(s.ctx, "rotate", "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	var status struct {
		Gates []struct {
			Name   string
			Behind []struct{ Door, Why string }
		}
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, g := range status.Gates {
		for _, c := range g.Behind {
			all[c.Door] = c.Why
		}
	}
	return all, nil
}

// check returns what `hallmark serve --check` finds wrong.
func (s *site) check() map[string]string {
	s.t.Helper()
	cmd := []string{"serve", "--check", "-o", "json"}
	out, err := s.Run(s.ctx, cmd...)
	if len(out) == 0 {
		s.t.Fatalf("serve --check says nothing: %v", err)
	}
	var found []struct{ What, State, Text string }
	if err := json.Unmarshal(out, &found); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	wrong := map[string]string{}
	for _, f := range found {
		if f.State == "wrong" {
			wrong[f.What] = f.Text
		}
	}
	return wrong
}

// TestServePublishes runs the product with everything that publishes, as the
// account of the manifests. One namespace has an object of istiod's: it is left
// alone, `serve --check` names it, and a rotation waits for it and for the
// readers of all the others.
func TestServePublishes(t *testing.T) {
	t.Parallel()
	const held = "of-istiod"
	s := newSite(t, 4*time.Minute)
	for _, name := range []string{"shop", held} {
		if _, err := s.client.CoreV1().Namespaces().Create(s.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if wrong := s.check(); len(wrong) > 0 {
		t.Errorf("before it starts, the check finds %v", wrong)
	}
	theirs := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: kube.IstioConfigMap}, Data: map[string]string{kube.IstioKey: "istiod's"}}
	if _, err := s.client.CoreV1().ConfigMaps(held).Create(s.ctx, theirs, metav1.CreateOptions{FieldManager: "pilot-discovery"}); err != nil {
		t.Fatal(err)
	}
	writers := "writers of configmaps " + kube.IstioConfigMap
	if wrong := s.check(); len(wrong) != 1 || !strings.Contains(wrong[writers], "pilot-discovery") {
		t.Errorf("with an object of istiod's, the check finds %v", wrong)
	}
	if err := s.Start(s.ctx); err != nil {
		t.Fatal(err) // also: it is ready, whatever holds up the objects
	}
	s.eventually(patience, func() error { return s.published(1, held) })
	if _, err := s.client.CoreV1().Namespaces().Create(s.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "made-later"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.eventually(patience, func() error { return s.published(1, held) })
	s.metricsAreThere()
	if out, err := s.Run(s.ctx, "status"); err != nil || !strings.Contains(string(out), "configmap "+held+"/") {
		t.Errorf("the status does not name the object of istiod's: %v\n%s", err, out)
	}

	if _, err := s.Run(s.ctx, "rotate", "start"); err != nil {
		t.Fatal(err)
	}
	s.eventually(patience, func() error { return s.published(2, held) })
	written := time.Now()
	if out, err := s.Run(s.ctx, "rotate", "activate"); err == nil {
		t.Fatalf("activated before the readers of the objects can hold the new root:\n%s", out)
	}
	behind, err := s.behind()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"configmap shop/" + kube.IstioConfigMap, "configmap made-later/" + kube.IstioConfigMap, "clustertrustbundle " + kube.IstioTrustBundle} {
		if _, ok := behind[name]; !ok {
			t.Errorf("gate A does not wait for %s: %v", name, behind)
		}
	}
	name := "configmap " + held + "/" + kube.IstioConfigMap
	s.eventually(time.Minute, func() error {
		behind, err := s.behind()
		if err == nil && (len(behind) != 1 || !strings.Contains(behind[name], "pilot-discovery")) {
			err = fmt.Errorf("gate A waits for %v, want istiod's alone", behind)
		}
		return err
	})
	if passed := time.Since(written); passed < kubeletDelay-5*time.Second {
		t.Errorf("the readers of the objects were believed after %s, want %s", passed, kubeletDelay)
	}
	if err := s.Ready(s.ctx); err != nil {
		t.Errorf("an object that another holds: %v", err)
	}
	if err := s.client.CoreV1().ConfigMaps(held).Delete(s.ctx, kube.IstioConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.eventually(time.Minute, func() error {
		_, err := s.Run(s.ctx, "rotate", "activate")
		return err
	})
	s.eventually(patience, func() error { return s.published(2) })
	if err := s.Stop(); err != nil {
		t.Errorf("it stopped with %v", err)
	}
}

// metricsAreThere looks for the metrics that docs/operations.md names for what
// publishes.
func (s *site) metricsAreThere() {
	s.t.Helper()
	m, err := s.Metrics(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, name := range []string{
		"hallmark_bundle_file_failing", "hallmark_bundle_file_taken_back_total", "hallmark_bundle_endpoint_open", "hallmark_bundle_endpoint_answers_total",
		"hallmark_bundle_object_writes_total", "hallmark_bundle_objects", "hallmark_bundle_objects_taken_back_total", "hallmark_bundle_objects_writer",
	} {
		if m[name] == nil {
			s.t.Errorf("there is no metric %s", name)
		}
		if !bytes.Contains(page, []byte("`"+name)) {
			s.t.Errorf("docs/operations.md does not name %s", name)
		}
	}
	if writer, open := m.Sum("hallmark_bundle_objects_writer"), m.Sum("hallmark_bundle_endpoint_open"); writer != 1 || open != 1 {
		s.t.Errorf("writer %v, endpoint open %v", writer, open)
	}
	if behind := m.Sum("hallmark_bundle_objects", "state", "behind"); behind != 1 {
		s.t.Errorf("%v objects are behind, want the one of istiod's", behind)
	}
}
