package deploy_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/hallmark-ca/hallmark/test/bench/cluster"
)

const account = "system:serviceaccount:" + cluster.HallmarkNamespace + ":" + cluster.HallmarkAccount

// audit is the API server's record of what Hallmark's account did.
type audit struct {
	log  string
	args []string // of kube-apiserver
}

func newAudit(t *testing.T) *audit {
	t.Helper()
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte(`apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["`+account+`"]
- level: None
`), 0o600); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "audit.log")
	return &audit{log: log, args: []string{"--audit-policy-file=" + policy, "--audit-log-path=" + log, "--audit-log-mode=blocking"}}
}

// event is what of an audit event counts here.
type event struct {
	Verb      string `json:"verb"`
	URI       string `json:"requestURI"`
	ObjectRef *struct {
		Group       string `json:"apiGroup"`
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
	} `json:"objectRef"`
	Response *struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	Annotations map[string]string `json:"annotations"`
}

// right names what the event needed the right to, as [rights] does.
func (e event) right() string {
	if e.ObjectRef == nil {
		path, _, _ := strings.Cut(e.URI, "?")
		return e.Verb + " " + path
	}
	resource := e.ObjectRef.Resource
	if e.ObjectRef.Subresource != "" {
		resource += "/" + e.ObjectRef.Subresource
	}
	return e.Verb + " " + strings.TrimPrefix(e.ObjectRef.Group+"/"+resource, "/")
}

// common are rights that Kubernetes itself gives to every account: using them
// takes no rule of ours.
var common = []string{
	`ClusterRoleBinding "system:basic-user"`,
	`ClusterRoleBinding "system:discovery"`,
	`ClusterRoleBinding "system:public-info-viewer"`,
}

// used returns the rights that the account used, each with an example, and the
// requests that it was forbidden.
func (a *audit) used(t *testing.T) (used map[string]string, forbidden []string) {
	t.Helper()
	used = map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(read(t, a.log)))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue // the line that is being written
		}
		why := e.Annotations["authorization.k8s.io/reason"]
		switch {
		case e.Annotations["authorization.k8s.io/decision"] == "forbid" || e.Response != nil && e.Response.Code == 403:
			forbidden = append(forbidden, e.Verb+" "+e.URI)
		case slices.ContainsFunc(common, func(binding string) bool { return strings.Contains(why, binding) }):
		default:
			used[e.right()] = e.URI + " (" + why + ")"
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return used, forbidden
}

// rights spells out every right that rules give.
func rights(t *testing.T, rules []rbacv1.PolicyRule) []string {
	t.Helper()
	all := map[string]bool{}
	for _, r := range rules {
		if len(r.ResourceNames) > 0 {
			t.Fatalf("a rule for single objects: this test does not know those yet: %v", r)
		}
		for _, verb := range r.Verbs {
			for _, url := range r.NonResourceURLs {
				all[verb+" "+url] = true
			}
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					all[verb+" "+strings.TrimPrefix(group+"/"+resource, "/")] = true
				}
			}
		}
	}
	for right := range all {
		if strings.Contains(right, "*") {
			t.Errorf("the account has %q: write out what it needs", right)
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// grants returns the rules of every role that is bound to the account.
func grants(t *testing.T, objects []*unstructured.Unstructured) []rbacv1.PolicyRule {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() == "Role" || o.GetKind() == "RoleBinding" {
			t.Fatalf("%s %s: this test does not look at rules within a namespace yet", o.GetKind(), o.GetName())
		}
	}
	binding := find[rbacv1.ClusterRoleBinding](t, objects, "ClusterRoleBinding", "hallmark")
	want := []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: cluster.HallmarkNamespace, Name: cluster.HallmarkAccount}}
	if diff := cmp.Diff(want, binding.Subjects); diff != "" {
		t.Fatalf("the binding is for others (-want +got):\n%s", diff)
	}
	return find[rbacv1.ClusterRole](t, objects, "ClusterRole", binding.RoleRef.Name).Rules
}

// accessIsUsed runs `hallmark serve` as the account that the manifests make, has
// it go every way that needs the API server, and then compares what it was
// allowed with what it did.
//
// It runs twice: client-go watches with the initial list in the stream where the
// API server can do that, and lists first where it cannot.
func accessIsUsed(ctx context.Context, t *testing.T, c *cluster.Cluster, objects []*unstructured.Unstructured, a *audit) {
	granted := rights(t, grants(t, objects))
	scene := newScene(ctx, t, c)
	for _, streaming := range []string{"true", "false"} {
		server := startServer(ctx, t, c, objects, "KUBE_FEATURE_WatchListClient="+streaming)
		scene.issue(ctx, t, server)
		scene.envoys(ctx, t, server)
		scene.pilotAgent(ctx, t, server)
		scene.disagree(ctx, t, server)
		server.metricsAreThere(ctx, t)
		server.stop(t)
	}
	used, forbidden := a.used(t)
	for _, f := range forbidden {
		t.Errorf("the account was forbidden: %s", f)
	}
	for _, right := range slices.Sorted(maps.Keys(used)) {
		if !slices.Contains(granted, right) {
			t.Errorf("used, and granted by nobody that we know of: %s: %s", right, used[right])
		}
	}
	for _, right := range granted {
		if used[right] == "" {
			t.Errorf("granted and never used: %s: take it out of deploy/manifests/access.yaml", right)
		}
	}
	t.Logf("%d rights granted, %d used", len(granted), len(used))
}
