package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	authzv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/hallmark-ca/hallmark/attest"
)

// Access is one rule that is needed. Without a name it is for all objects,
// without a namespace for all namespaces.
type Access struct {
	Verb, Group, Resource, Name, Namespace string
}

// String names the rule as a person reads it.
func (a Access) String() string {
	out := a.Verb + " " + a.Resource
	if a.Group != "" {
		out += "." + a.Group
	}
	if a.Name != "" {
		out += " " + a.Name
	}
	if a.Namespace != "" {
		out += " in " + a.Namespace
	}
	return out
}

// Access returns all that a publisher of this configuration may ask of an API
// server: no more, and no less.
func (p *Publisher) Access() []Access {
	var all []Access
	add := func(a Access, verbs ...string) {
		for _, a.Verb = range verbs {
			all = append(all, a)
		}
	}
	if t := p.targets[configMaps]; t != nil {
		add(Access{Resource: namespaces.String()}, "list", "watch")
		// An apply of what is not there is a create, too, and one with a name.
		add(Access{Resource: configMaps.String(), Name: t.name}, "list", "watch", "create", "patch")
	}
	if t := p.targets[trustBundles]; t != nil {
		add(Access{Group: certificatesGroup, Resource: trustBundles.String(), Name: t.name}, "list", "watch", "create", "patch")
		if t.signer != "" {
			add(Access{Group: certificatesGroup, Resource: "signers", Name: t.signer}, "attest")
		}
	}
	lease := Access{Group: leasesAt.Group, Resource: leasesAt.Resource, Name: LeaseName, Namespace: p.cfg.Namespace}
	add(lease, "get", "update")
	lease.Name = "" // a name can be demanded of no create
	add(lease, "create")
	return all
}

// Finding is what [Publisher.Probe] found out about one thing.
type Finding struct {
	What string // what was looked at
	Note string // what is there, where nothing is wrong
	Err  error  // what is wrong
	Mend string // what can be done about it
}

// Probe looks at what publishing rests on: whether the API server answers, has
// what is configured, lets this account do what it has to, and whether other
// writers hold our objects. It changes nothing and needs no Run.
func (p *Publisher) Probe(ctx context.Context) []Finding {
	var found []Finding
	if p.targets[trustBundles] != nil {
		f := Finding{What: "ClusterTrustBundles"}
		at, err := p.api.at(ctx, trustBundles)
		if err != nil {
			f.Err, f.Mend = err, "turn them on in the API server, or off in the configuration"
			if away(err) {
				f.Mend = "bring the API server up, or correct its address"
				return []Finding{f}
			}
		} else {
			f.Note = "served as " + at.GroupVersion().String()
		}
		found = append(found, f)
	}
	access, reached := p.probeAccess(ctx)
	found = append(found, access...)
	if !reached || len(access) > 1 {
		return found // the list would say it once more
	}
	for k, t := range p.targets {
		if f, ok := p.probeWriters(ctx, k, t); ok {
			found = append(found, f)
		}
	}
	return found
}

// probeAccess asks the API server about each rule. One finding stands for all
// that are given, one for each that is not.
func (p *Publisher) probeAccess(ctx context.Context) (found []Finding, reached bool) {
	var given []string
	reached = true
	for _, a := range p.Access() {
		err := p.may(ctx, a)
		if err == nil {
			given = append(given, a.String())
			continue
		}
		found = append(found, Finding{What: "access: " + a.String(), Err: err, Mend: "give the account that hallmark runs as the rules of deploy/ for bundle objects"})
		if away(err) {
			reached = false
			break // the rest would wait for nothing
		}
	}
	if len(given) > 0 {
		found = append([]Finding{{What: "access for bundle objects", Note: strings.Join(given, ", ")}}, found...)
	}
	return found, reached
}

func (p *Publisher) may(ctx context.Context, a Access) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&authzv1.SelfSubjectAccessReview{
		TypeMeta: metav1.TypeMeta{APIVersion: authzv1.SchemeGroupVersion.String(), Kind: "SelfSubjectAccessReview"},
		Spec: authzv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authzv1.ResourceAttributes{
			Verb: a.Verb, Group: a.Group, Resource: a.Resource, Name: a.Name, Namespace: a.Namespace,
		}},
	})
	if err != nil {
		return fmt.Errorf("asking for our own access: %w", err)
	}
	answer, err := p.api.dynamic.Resource(reviewsAt).Create(ctx, &unstructured.Unstructured{Object: content}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("asking for our own access: %w", err)
	}
	var review authzv1.SelfSubjectAccessReview
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(answer.Object, &review); err != nil {
		return fmt.Errorf("asking for our own access: %w", err)
	}
	if !review.Status.Allowed {
		return errors.New("not allowed: " + attest.Escape(review.Status.Reason+review.Status.EvaluationError))
	}
	return nil
}

// probeWriters tells whose the objects of one kind are.
func (p *Publisher) probeWriters(ctx context.Context, k kind, t *target) (Finding, bool) {
	f := Finding{What: "writers of " + k.String() + " " + t.name, Mend: "switch the other writer off and name it in takeOver, or delete the objects; until then they hold up every rotation"}
	s := &source{api: p.api, kind: k, path: t.path, name: t.name, told: func(error) {}}
	held := map[string]int{}
	opts := metav1.ListOptions{Limit: pageSize}
	for {
		list, err := func() (*objects, error) {
			ctx, cancel := context.WithTimeout(ctx, callTime)
			defer cancel()
			return s.list(ctx, opts)
		}()
		if err != nil {
			if errors.Is(err, errNoTrustBundles) {
				return f, false // said already
			}
			f.Err = fmt.Errorf("listing them: %w", err)
			return f, true
		}
		for i := range list.Items {
			if o := &list.Items[i]; !o.ours {
				for _, w := range o.writers {
					held[w]++
				}
			}
		}
		if opts.Continue = list.Continue; opts.Continue == "" {
			break
		}
	}
	var foreign []string
	for _, w := range slices.Sorted(maps.Keys(held)) {
		if !slices.Contains(p.cfg.TakeOver, w) {
			foreign = append(foreign, fmt.Sprintf("%q holds %d", attest.Escape(w), held[w]))
		}
	}
	if len(foreign) > 0 {
		f.Err = errors.New(strings.Join(foreign, ", "))
		return f, true
	}
	f.Note = "none but us"
	return f, true
}
