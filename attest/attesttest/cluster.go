// Package attesttest makes the registrar's two neighbours in memory: a
// [Cluster] of pods whose tokens it made up itself, and a [Gate] that says what
// it was told to. With them a test gets a real [attest.Registrar], and from it
// real callers and grants, which nothing else can make.
//
// It is linked into tests alone. Everything in it is safe for concurrent use.
package attesttest

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
)

// ClusterID is the id under which [NewRegistrar] knows its one cluster.
const ClusterID = "Kubernetes"

// tokenLife is how long a token of [Cluster.Add] lasts.
const tokenLife = time.Hour

// Cluster is an [attest.Cluster] in memory.
type Cluster struct {
	td  attest.TrustDomain
	now func() time.Time

	mu     sync.Mutex // guards all below
	bounds map[string]attest.Bound
	pods   map[string]*attest.Pod // by namespace/name
	away   time.Time              // since when the API server does not answer; zero: it does
}

// NewCluster returns an empty cluster.
func NewCluster(td attest.TrustDomain, now func() time.Time) *Cluster {
	return &Cluster{td: td, now: now, bounds: map[string]attest.Bound{}, pods: map[string]*attest.Pod{}}
}

// Pod returns a running pod of one container, for [Cluster.Add]. Its UID is made
// of namespace and name.
func Pod(namespace, name, serviceAccount, image string) *attest.Pod {
	return &attest.Pod{
		Cluster:        ClusterID,
		Ref:            attest.PodRef{Namespace: namespace, Name: name, UID: "uid-" + namespace + "-" + name},
		ServiceAccount: serviceAccount,
		Node:           "node-1",
		Phase:          "Running",
		IPs:            []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Containers:     []attest.Container{{Name: "app", Image: image, ImageID: image, Running: true}},
	}
}

// Add makes pod live, in the place of one of the same name, and returns a token
// that is bound to it for an hour.
func (c *Cluster) Add(pod *attest.Pod) (token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods[pod.Ref.String()] = pod
	token = "token-of-" + pod.Ref.UID
	c.bounds[token] = attest.Bound{
		Namespace: pod.Ref.Namespace, ServiceAccount: pod.ServiceAccount, ServiceAccountUID: accountUID(pod),
		PodName: pod.Ref.Name, PodUID: pod.Ref.UID, NodeName: pod.Node, NodeUID: nodeUID(pod),
		CredentialID: "JTI=" + pod.Ref.UID, Expires: c.now().Add(tokenLife), Reviewed: true,
	}
	return token
}

// Change replaces the live pod ref by what change makes of a copy of it.
func (c *Cluster) Change(ref attest.PodRef, change func(*attest.Pod)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pod := *c.pods[ref.String()]
	change(&pod)
	c.pods[ref.String()] = &pod
}

// Remove deletes the live pod; its token goes on being vouched for, as a real
// API server does for some seconds.
func (c *Cluster) Remove(ref attest.PodRef) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pods, ref.String())
}

// SetAway makes the API server stop answering, or answer again.
func (c *Cluster) SetAway(away bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = time.Time{}
	if away {
		c.away = c.now()
	}
}

// TrustDomain implements [attest.Cluster].
func (c *Cluster) TrustDomain() attest.TrustDomain { return c.td }

// Review implements [attest.Cluster].
func (c *Cluster) Review(ctx context.Context, token string) (attest.Bound, error) {
	if err := ctx.Err(); err != nil {
		return attest.Bound{}, attest.Deny(attest.APIServerAway, "", "%v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	bound, ok := c.bounds[token]
	switch {
	case !ok:
		return attest.Bound{}, attest.Deny(attest.TokenRejected, "", "no such token")
	case !c.now().Before(bound.Expires):
		return attest.Bound{}, attest.Deny(attest.TokenExpired, "", "ended at %s", bound.Expires)
	}
	bound.Reviewed = c.away.IsZero()
	return bound, nil
}

// Live implements [attest.Cluster].
func (c *Cluster) Live(ctx context.Context, b attest.Bound) (attest.Live, error) {
	if err := ctx.Err(); err != nil {
		return attest.Live{}, attest.Deny(attest.ViewNotSynced, "", "%v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	live := attest.Live{AsOf: c.now(), Current: true}
	if !c.away.IsZero() {
		live.AsOf, live.Current = c.away, false
	}
	if pod := c.pods[b.Ref().String()]; pod != nil {
		live.Pod, live.NodeUID, live.ServiceAccountUID = pod, nodeUID(pod), accountUID(pod)
	}
	return live, nil
}

func nodeUID(pod *attest.Pod) string { return "uid-" + pod.Node }

func accountUID(pod *attest.Pod) string {
	return "uid-" + pod.Ref.Namespace + "-" + pod.ServiceAccount
}
