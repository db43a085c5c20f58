package deploy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	istio "istio.io/api/security/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/hallmark-ca/hallmark/test/bench/cluster"
	"github.com/hallmark-ca/hallmark/test/bench/envoy"
	"github.com/hallmark-ca/hallmark/test/bench/hallmark"
	"github.com/hallmark-ca/hallmark/test/bench/pods"
	"github.com/hallmark-ca/hallmark/test/bench/port"
	"github.com/hallmark-ca/hallmark/test/bench/proc"
)

// within is how long anything here may take.
const within = 90 * time.Second

// server is `hallmark serve`, run from the manifests.
type server struct {
	process *proc.Process
	mesh    string
	metrics string
	bundle  string
}

// shipped returns the configuration in the manifests.
func shipped(t *testing.T, objects []*unstructured.Unstructured) string {
	t.Helper()
	return find[corev1.ConfigMap](t, objects, "ConfigMap", "hallmark").Data["hallmark.yaml"]
}

// TestConfigurationIsValid has the product read the configuration as it is. The
// rest of what --check says is about this machine.
func TestConfigurationIsValid(t *testing.T) {
	binary := build(t)
	file := filepath.Join(t.TempDir(), "hallmark.yaml")
	if err := os.WriteFile(file, []byte(shipped(t, installed(t))), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "serve", "--check", "--config", file).CombinedOutput()
	if !strings.Contains(string(out), "configuration: valid") {
		t.Errorf("%v\n%s", err, out)
	}
}

func build(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	binary, err := hallmark.Binary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// commands are the arguments of the pod's containers.
type commands struct{ init, serve []string }

func args(t *testing.T, objects []*unstructured.Unstructured) commands {
	t.Helper()
	spec := find[appsv1.StatefulSet](t, objects, "StatefulSet", "hallmark").Spec.Template.Spec
	if len(spec.InitContainers) != 1 || len(spec.Containers) != 1 {
		t.Fatalf("%d init containers, %d containers", len(spec.InitContainers), len(spec.Containers))
	}
	return commands{init: spec.InitContainers[0].Args, serve: spec.Containers[0].Args}
}

// mountLikeKubelet writes files as kubelet projects them: each a link into a
// folder that is itself behind a link, to be swapped as a whole.
func mountLikeKubelet(t *testing.T, dir string, files map[string]string, mode os.FileMode) {
	t.Helper()
	data := filepath.Join(dir, "..2026_01_01_00_00_00.1")
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Base(data), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(data, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// startServer does what the StatefulSet's pod does: init, then serve, as the
// account of the manifests, with their configuration and policies. Only places
// and addresses are this machine's.
func startServer(ctx context.Context, t *testing.T, c *cluster.Cluster, objects []*unstructured.Unstructured, env ...string) *server {
	t.Helper()
	binary, dir := build(t), t.TempDir()
	kubeconfig, err := c.AccountKubeconfig(ctx, cluster.HallmarkNamespace, cluster.HallmarkAccount)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{bundle: filepath.Join(dir, "lib", "hallmark", "bundle.pem")}
	for _, address := range []*string{&s.mesh, &s.metrics} {
		p, err := port.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		*address = p.Addr()
	}
	mountLikeKubelet(t, filepath.Join(dir, "passphrase"), map[string]string{"passphrase": rand.Text()}, 0o440)
	mountLikeKubelet(t, filepath.Join(dir, "policies"), find[corev1.ConfigMap](t, objects, "ConfigMap", "hallmark-policies").Data, 0o644)
	// The volume is mounted above the state directory and belongs to a group.
	if err := os.MkdirAll(filepath.Join(dir, "lib"), 0o775); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "hallmark.yaml")
	here(t, config, shipped(t, objects), map[string]any{
		"state":                    filepath.Join(dir, "lib", "hallmark"),
		"attest.kubeconfig":        kubeconfig,
		"authority.passphraseFile": filepath.Join(dir, "passphrase", "passphrase"),
		"images.policies":          filepath.Join(dir, "policies"),
		"mesh.listen":              s.mesh,
		"mesh.ips":                 []string{"127.0.0.1"},
		"metrics.listen":           s.metrics,
	})
	set := args(t, objects)
	env = append(env, "TMPDIR=/nonexistent") // the root file system is read-only
	local := func(args []string) []string {
		out := slices.Clone(args)
		for i, a := range out {
			out[i] = strings.Replace(a, "/etc/hallmark/hallmark.yaml", config, 1)
		}
		return out
	}
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, binary, args...)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("hallmark %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run(local(set.init)...)
	run(local(set.init)...) // the pod restarts
	run(append(local(set.serve), "--check")...)

	log := filepath.Join(dir, "hallmark.log")
	s.process, err = proc.Start(context.WithoutCancel(ctx), proc.Config{Path: binary, Args: local(set.serve), Env: env, Log: log, Grace: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.process.Kill)
	ready, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := s.process.Await(ready, func(ctx context.Context) error { _, err := s.get(ctx, "/readyz"); return err }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.get(ctx, "/healthz"); err != nil {
		t.Error(err)
	}
	return s
}

// here changes settings of a configuration that name this machine's places.
func here(t *testing.T, file, text string, settings map[string]any) {
	t.Helper()
	all := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(text), &all); err != nil {
		t.Fatal(err)
	}
	for path, value := range settings {
		room := all
		words := strings.Split(path, ".")
		for _, w := range words[:len(words)-1] {
			next, ok := room[w].(map[string]any)
			if !ok {
				next = map[string]any{}
				room[w] = next
			}
			room = next
		}
		room[words[len(words)-1]] = value
	}
	out, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *server) get(ctx context.Context, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.metrics+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d: %s", path, resp.StatusCode, body)
	}
	return string(body), err
}

// stop ends it as kubelet does; it ends by itself, and well.
func (s *server) stop(t *testing.T) {
	t.Helper()
	s.process.Stop()
	if err := s.process.Err(); err != nil {
		t.Errorf("serve ended with %v\n%s", err, s.process.Tail())
	}
}

// ask sends CreateCertificate with a fresh key and returns the chain.
func (s *server) ask(ctx context.Context, t *testing.T, token string) ([]string, error) {
	t.Helper()
	creds, err := credentials.NewClientTLSFromFile(s.bundle, hallmark.ServerName)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+s.mesh, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), 20*time.Second)
	defer cancel()
	resp, err := istio.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &istio.IstioCertificateRequest{Csr: csr(t), ValidityDuration: 3600})
	return resp.GetCertChain(), err
}

func csr(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// scene is a namespace with an account, on a node.
type scene struct {
	c            *cluster.Cluster
	ns, sa, node string
	image        string
	made         int // pods so far
}

func newScene(ctx context.Context, t *testing.T, c *cluster.Cluster) *scene {
	t.Helper()
	ns, err := pods.Namespace(ctx, c.Client(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Account(ctx, c.Client(), ns, "client"); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Node(ctx, c.Client(), "node-1"); err != nil {
		t.Fatal(err)
	}
	return &scene{c: c, ns: ns, sa: "client", node: "node-1", image: "registry.example.net/client@sha256:" + strings.Repeat("a", 64)}
}

func (sc *scene) pod(ctx context.Context, t *testing.T) (*corev1.Pod, string) {
	t.Helper()
	sc.made++
	pod, err := pods.Run(ctx, sc.c.Client(), pods.Spec{
		Namespace: sc.ns, Name: fmt.Sprintf("client-%d", sc.made), Account: sc.sa, Node: sc.node,
		Containers: []pods.Container{{Image: sc.image}},
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := pods.Token(ctx, sc.c.Client(), pod, pods.Audience, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return pod, token
}

// issue gets a certificate for a new pod.
func (sc *scene) issue(ctx context.Context, t *testing.T, s *server) {
	t.Helper()
	_, token := sc.pod(ctx, t)
	chain, err := s.ask(ctx, t, token)
	if err != nil || len(chain) < 2 {
		t.Fatalf("%d certificates: %v\n%s", len(chain), err, s.process.Tail())
	}
	block, _ := pem.Decode([]byte(chain[0]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if want := "spiffe://cluster.local/ns/" + sc.ns + "/sa/" + sc.sa; len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
		t.Errorf("the certificate is for %v, want %s", leaf.URIs, want)
	}
}

// disagree presents tokens that name a node, and an account, of the same name as
// one that is there, and made before it. The watch says no, and that is checked
// by asking: only the API server's own word ends it.
func (sc *scene) disagree(ctx context.Context, t *testing.T, s *server) {
	t.Helper()
	core := sc.c.Client().CoreV1()

	_, token := sc.pod(ctx, t)
	if err := core.Nodes().Delete(ctx, sc.node, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Node(ctx, sc.c.Client(), sc.node); err != nil {
		t.Fatal(err)
	}
	sc.refused(ctx, t, s, token, "NodeMismatch")

	// The API server remembers for some seconds that a token was good.
	_, token = sc.pod(ctx, t)
	review := &authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{pods.Audience}}}
	if r, err := sc.c.Client().AuthenticationV1().TokenReviews().Create(ctx, review, metav1.CreateOptions{}); err != nil || !r.Status.Authenticated {
		t.Fatalf("the API server does not know the token: %v %v", r, err)
	}
	if err := core.ServiceAccounts(sc.ns).Delete(ctx, sc.sa, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Account(ctx, sc.c.Client(), sc.ns, sc.sa); err != nil {
		t.Fatal(err)
	}
	sc.refused(ctx, t, s, token, "AccountReplaced")
}

// refused asks, and is refused for that reason.
func (sc *scene) refused(ctx context.Context, t *testing.T, s *server, token, reason string) {
	t.Helper()
	if _, err := s.ask(ctx, t, token); status.Code(err) != codes.Unauthenticated {
		t.Errorf("want %s, got %v", reason, err)
	}
	text, err := s.get(ctx, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`hallmark_refusals_total\{[^}]*reason="` + reason + `"[^}]*\} [1-9]`).MatchString(text) {
		t.Errorf("no refusal for %s: %q\n%s", reason, regexp.MustCompile(`(?m)^hallmark_refusals_total.*$`).FindAllString(text, -1), s.process.Tail())
	}
}

// envoys starts a sidecar from each sample, which gets its identity.
func (sc *scene) envoys(ctx context.Context, t *testing.T, s *server) {
	t.Helper()
	want := "spiffe://cluster.local/ns/" + sc.ns + "/sa/" + sc.sa
	for _, sample := range []string{envoy.EnvoyGRPC, envoy.GoogleGRPC} {
		_, token := sc.pod(ctx, t)
		e, err := envoy.Start(ctx, envoy.Config{Dir: t.TempDir(), Sample: sample, Hallmark: s.mesh, Bundle: s.bundle, Token: token, Caller: want, Server: want})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Close)
		limit, cancel := context.WithTimeout(ctx, within)
		id, err := e.AwaitIdentity(limit)
		cancel()
		if err != nil || id.ID != want {
			t.Errorf("%s: %q, want %s: %v", sample, id.ID, want, err)
		}
		e.Close()
	}
}

// metricsAreThere looks for every metric that a document names.
func (s *server) metricsAreThere(ctx context.Context, t *testing.T) {
	t.Helper()
	text, err := s.get(ctx, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for name, page := range metricsNamed(t) {
		if !strings.Contains(text, "# TYPE "+name+" ") {
			t.Errorf("%s: there is no metric %s", page, name)
		}
	}
}
