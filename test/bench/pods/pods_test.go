package pods_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/hallmark-ca/hallmark/test/bench/cluster"
	"github.com/hallmark-ca/hallmark/test/bench/pods"
)

func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

type scene struct {
	kube    kubernetes.Interface
	cluster *cluster.Cluster
	account *corev1.ServiceAccount
	node    *corev1.Node
	ns      string
}

func newScene(t *testing.T) (context.Context, *scene) {
	c := cluster.Shared(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	ns, err := pods.Namespace(ctx, c.Client(), strings.ToLower(t.Name()))
	must(t, err)
	account, err := pods.Account(ctx, c.Client(), ns, "client")
	must(t, err)
	node, err := pods.Node(ctx, c.Client(), "node-"+ns)
	must(t, err)
	return ctx, &scene{kube: c.Client(), cluster: c, account: account, node: node, ns: ns}
}

func (s *scene) run(t *testing.T, ctx context.Context, name string, containers ...pods.Container) *corev1.Pod {
	t.Helper()
	if len(containers) == 0 {
		containers = []pods.Container{{Image: "127.0.0.1:5000/app@" + digestA}}
	}
	p, err := pods.Run(ctx, s.kube, pods.Spec{Namespace: s.ns, Name: name, Account: "client", Node: s.node.Name, Containers: containers})
	must(t, err)
	return p
}

func (s *scene) review(t *testing.T, ctx context.Context, token string) authv1.TokenReviewStatus {
	t.Helper()
	r, err := s.kube.AuthenticationV1().TokenReviews().Create(ctx,
		&authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{pods.Audience}}}, metav1.CreateOptions{})
	must(t, err)
	return r.Status
}

// The bench's own tokens are reviewed as TokenRequest's are, to the same
// user: else tests of expiry would test something that does not happen.
func TestSignedTokenIsReviewedAsRequested(t *testing.T) {
	ctx, s := newScene(t)
	pod := s.run(t, ctx, "one")

	requested, err := pods.Token(ctx, s.kube, pod, pods.Audience, 10*time.Minute)
	must(t, err)
	signed, err := s.cluster.Tokens.Sign(cluster.ClaimsOf(pod, s.account, s.node, pods.Audience, time.Now(), 20*time.Second))
	must(t, err)
	want, got := s.review(t, ctx, requested), s.review(t, ctx, signed)
	for _, st := range []authv1.TokenReviewStatus{want, got} {
		if !st.Authenticated || st.Error != "" {
			t.Fatalf("not authenticated: %+v", st)
		}
		delete(st.User.Extra, "authentication.kubernetes.io/credential-id")
	}
	if want.User.String() != got.User.String() {
		t.Errorf("reviewed as\n%s\nwant\n%s", got.User.String(), want.User.String())
	}
	if v := got.User.Extra["authentication.kubernetes.io/node-uid"]; len(v) != 1 || v[0] != string(s.node.UID) {
		t.Errorf("node UID %v, want %s", v, s.node.UID)
	}
}

func TestTokensThatAreRefused(t *testing.T) {
	ctx, s := newScene(t)
	pod := s.run(t, ctx, "one")
	claims := func(change func(*cluster.Claims)) cluster.Claims {
		c := cluster.ClaimsOf(pod, s.account, s.node, pods.Audience, time.Now(), time.Minute)
		change(&c)
		return c
	}
	stranger, err := cluster.NewSigner(cluster.Issuer)
	must(t, err)
	for name, tt := range map[string]struct {
		signer *cluster.Signer
		claims cluster.Claims
	}{
		"expired":         {s.cluster.Tokens, claims(func(c *cluster.Claims) { c.Expires = time.Now().Add(-time.Minute) })},
		"other audience":  {s.cluster.Tokens, claims(func(c *cluster.Claims) { c.Audiences = []string{"vault"} })},
		"other pod":       {s.cluster.Tokens, claims(func(c *cluster.Claims) { c.Pod.UID = "no-such-uid" })},
		"other cluster's": {stranger, claims(func(*cluster.Claims) {})},
	} {
		token, err := tt.signer.Sign(tt.claims)
		must(t, err)
		if st := s.review(t, ctx, token); st.Authenticated {
			t.Errorf("%s: authenticated as %s", name, st.User.Username)
		}
	}
}

func TestForceDelete(t *testing.T) {
	ctx, s := newScene(t)
	pod := s.run(t, ctx, "one")
	token, err := pods.Token(ctx, s.kube, pod, pods.Audience, 10*time.Minute)
	must(t, err)
	must(t, pods.ForceDelete(ctx, s.kube, pod))
	if _, err := s.kube.CoreV1().Pods(s.ns).Get(ctx, "one", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("after ForceDelete: %v, want not found", err)
	}
	// A first review of it now: no cache vouches for it, the pod is gone.
	if st := s.review(t, ctx, token); st.Authenticated {
		t.Error("a token of a deleted pod, never reviewed before, is authenticated")
	}
	again := s.run(t, ctx, "one")
	if again.UID == pod.UID {
		t.Error("the re-created pod has the old UID")
	}
}

func TestDeleteLeavesPodTerminating(t *testing.T) {
	ctx, s := newScene(t)
	pod := s.run(t, ctx, "one")
	must(t, pods.Delete(ctx, s.kube, pod))
	got, err := s.kube.CoreV1().Pods(s.ns).Get(ctx, "one", metav1.GetOptions{})
	must(t, err)
	if got.DeletionTimestamp == nil || got.Status.Phase != corev1.PodRunning {
		t.Errorf("deletionTimestamp %v, phase %s; want a Running pod that is Terminating", got.DeletionTimestamp, got.Status.Phase)
	}
}

func TestWhatRunsIsReported(t *testing.T) {
	ctx, s := newScene(t)
	repo := "127.0.0.1:5000/app"
	pod := s.run(t, ctx, "one",
		pods.Container{Name: "setup", Kind: pods.Init, Image: repo + "@" + digestA},
		pods.Container{Name: "proxy", Kind: pods.Sidecar, Image: repo + "@" + digestA},
		pods.Container{Name: "app", Image: repo + ":v1", ImageID: repo + "@" + digestA},
	)
	_, err := pods.AddEphemeral(ctx, s.kube, pod, pods.Container{Name: "debug", Image: repo + "@" + digestB})
	must(t, err)
	_, err = pods.SetImage(ctx, s.kube, pod, "app", repo+"@"+digestB, "")
	must(t, err)
	got, err := pods.SetImage(ctx, s.kube, pod, "proxy", repo+":v2@"+digestB, "")
	must(t, err)

	want := map[string]string{"setup": digestA, "proxy": digestB, "app": digestB, "debug": digestB}
	all := append(append(got.Status.InitContainerStatuses, got.Status.ContainerStatuses...), got.Status.EphemeralContainerStatuses...)
	for _, st := range all {
		if st.ImageID != repo+"@"+want[st.Name] {
			t.Errorf("%s: imageID %s, want digest %s", st.Name, st.ImageID, want[st.Name])
		}
		delete(want, st.Name)
	}
	if len(want) > 0 {
		t.Errorf("no status of %v", want)
	}
	if got.Spec.Containers[0].Image != repo+"@"+digestB || len(got.Spec.EphemeralContainers) != 1 {
		t.Errorf("spec: %s, %d ephemeral containers", got.Spec.Containers[0].Image, len(got.Spec.EphemeralContainers))
	}
}

// The account that Hallmark runs as can do its work and no more.
func TestHallmarkAccess(t *testing.T) {
	ctx, s := newScene(t)
	path, err := s.cluster.InstallHallmark(ctx)
	must(t, err)
	kube := clientOf(t, path)
	_, err = kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	must(t, err)
	_, err = kube.CoreV1().RESTClient().Get().AbsPath("/openid/v1/jwks").DoRaw(ctx)
	must(t, err)
	if _, err := kube.CoreV1().Secrets(s.ns).List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("reading other namespaces' secrets: %v, want forbidden", err)
	}
	if _, err := s.cluster.InstallHallmark(ctx); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
