package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authzv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hallmark-ca/hallmark/attest"
)

const accessPath = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

// Finding is what [Cluster.Probe] found out about one thing.
type Finding struct {
	What string // what was looked at
	Note string // what is there, where nothing is wrong
	Err  error  // what is wrong
	Mend string // what can be done about it
}

// access is one rule that is needed, and what for.
type access struct {
	verb, group, resource, path string
}

func (a access) String() string {
	if a.path != "" {
		return a.verb + " " + a.path
	}
	if a.group != "" {
		return a.verb + " " + a.resource + "." + a.group
	}
	return a.verb + " " + a.resource
}

// needed is all that this package may ask of an API server.
func needed() []access {
	all := []access{{verb: "create", group: "authentication.k8s.io", resource: "tokenreviews"}, {verb: "get", path: keysPath}}
	for k := range kinds {
		for _, verb := range []string{"get", "list", "watch"} {
			all = append(all, access{verb: verb, resource: k.String()})
		}
	}
	return all
}

const badCredentials = "renew the token or certificate in attest.kubeconfig; in a pod, see that its service account exists and its token is mounted"

// Probe looks at what the cluster rests on: whether the API server answers,
// publishes keys, and lets this account do what it has to. It changes nothing
// and needs no Run.
func (c *Cluster) Probe(ctx context.Context) []Finding {
	reach := Finding{What: fmt.Sprintf("cluster %q", c.cfg.ID)}
	keys, err := c.probeKeys(ctx)
	if err != nil && away(err) {
		reach.Err, reach.Mend = err, "bring the API server up, or correct attest.kubeconfig: its address, its CA, its proxy"
		return []Finding{reach}
	}
	if apierrors.IsUnauthorized(err) { // nor would any other question be answered
		reach.Err, reach.Mend = fmt.Errorf("the API server does not know our credentials: %w", err), badCredentials
		return []Finding{reach}
	}
	reach.Note = "the API server at " + c.api.base.Host + " answers"
	return append([]Finding{reach, keys, c.probeAudiences(ctx)}, c.probeAccess(ctx)...)
}

func (c *Cluster) probeKeys(ctx context.Context) (Finding, error) {
	f := Finding{What: "keys of tokens"}
	ctx, cancel := context.WithTimeout(ctx, c.limits.CallTime)
	defer cancel()
	byID, err := fetchKeys(ctx, c.api)
	if err != nil {
		f.Err, f.Mend = err, "let the account get "+keysPath+"; the API server needs --service-account-issuer and publishes its keys there"
		return f, err
	}
	f.Note = fmt.Sprintf("%d published", len(byID))
	return f, nil
}

// probeAccess asks the API server about each rule. One finding stands for all
// that are given, one for each that is not.
func (c *Cluster) probeAccess(ctx context.Context) []Finding {
	var given []string
	var found []Finding
	for _, a := range needed() {
		err := c.may(ctx, a)
		if err == nil {
			given = append(given, a.String())
			continue
		}
		if apierrors.IsUnauthorized(err) {
			return append(found, Finding{What: "access", Err: fmt.Errorf("the API server does not know our credentials: %w", err), Mend: badCredentials})
		}
		found = append(found, Finding{What: "access: " + a.String(), Err: err, Mend: "give the account that hallmark runs as the ClusterRole of deploy/manifests/access.yaml"})
		if away(err) {
			break // the rest would wait for nothing
		}
	}
	if len(given) > 0 {
		found = append([]Finding{{What: "access", Note: strings.Join(given, ", ")}}, found...)
	}
	return found
}

// notAllowed is the API server's refusal, with its reasons where it gives any.
func notAllowed(reasons ...string) error {
	reasons = slices.DeleteFunc(reasons, func(r string) bool { return strings.TrimSpace(r) == "" })
	if len(reasons) == 0 {
		return errors.New("not allowed")
	}
	return errors.New("not allowed: " + attest.Escape(strings.Join(reasons, "; ")))
}

func (c *Cluster) may(ctx context.Context, a access) error {
	ctx, cancel := context.WithTimeout(ctx, c.limits.CallTime)
	defer cancel()
	review := authzv1.SelfSubjectAccessReview{
		TypeMeta: metav1.TypeMeta{APIVersion: authzv1.SchemeGroupVersion.String(), Kind: "SelfSubjectAccessReview"},
	}
	if a.path != "" {
		review.Spec.NonResourceAttributes = &authzv1.NonResourceAttributes{Verb: a.verb, Path: a.path}
	} else {
		review.Spec.ResourceAttributes = &authzv1.ResourceAttributes{Verb: a.verb, Group: a.group, Resource: a.resource}
	}
	var answer authzv1.SelfSubjectAccessReview
	if err := c.api.call(ctx, http.MethodPost, accessPath, &review, &answer); err != nil {
		return fmt.Errorf("asking for our own access: %w", err)
	}
	if !answer.Status.Allowed {
		return notAllowed(answer.Status.Reason, answer.Status.EvaluationError)
	}
	return nil
}
