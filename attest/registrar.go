package attest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Cluster answers for one Kubernetes cluster. Implemented by attest/kube, which
// is apart from this package so that the rules need no client-go.
//
// Review MUST run checks 1–4 of the token rules and refuse by [*DenyError]; the
// Bound that it returns MUST NOT depend on anything but the token and what the
// API server says of it. Live MUST return the pod that is live under the
// token's namespace and name, nil if there is none for certain, and a DenyError
// of kind Unavailable if it cannot know. Both MUST answer by ctx's deadline.
type Cluster interface {
	TrustDomain() TrustDomain
	Review(ctx context.Context, token string) (Bound, error)
	Live(ctx context.Context, b Bound) (Live, error)
}

// SourceAddressMode says what is done about a peer address that is not the
// pod's.
type SourceAddressMode uint8

// The modes.
const (
	SourceAddressDisabled SourceAddressMode = iota
	SourceAddressLog
	SourceAddressEnforce
)

// heldEntries bounds the memory of who was granted what: a mesh of 200,000
// proxies fits, at about 120 bytes each.
const heldEntries = 1 << 18

// RegistrarConfig is what [NewRegistrar] needs. All fields are required but
// SourceAddress.
type RegistrarConfig struct {
	Clusters      map[string]Cluster // by cluster id
	Local         string             // the id that an empty clusterid header means
	Gate          ImageGate
	MaxStaleness  time.Duration // how old a view may be for renewals while the API server is away
	SourceAddress SourceAddressMode
	Log           *slog.Logger
	Now           func() time.Time
}

// Registrar runs the first two steps before any issuance: attest, then images.
// It is safe for concurrent use.
type Registrar struct {
	cfg     RegistrarConfig
	held    *lru.Cache[heldKey, struct{}]
	foreign *lru.Cache[Instance, time.Time] // when a foreign address was logged last
}

// A pod whose address is not its own is logged once in foreignEvery: where
// addresses are translated that is every call of everybody.
const (
	foreignEvery   = time.Minute
	foreignEntries = 1 << 14
)

// heldKey is one identity that one pod was granted by this process. A replica
// that started while the API server was away has none, and grants nothing.
type heldKey struct {
	instance Instance
	identity Identity
}

// NewRegistrar checks cfg and returns a registrar.
func NewRegistrar(cfg RegistrarConfig) (*Registrar, error) {
	switch {
	case cfg.Clusters[cfg.Local] == nil:
		return nil, fmt.Errorf("making registrar: the local cluster %q is not among the clusters", cfg.Local)
	case cfg.Gate == nil:
		return nil, errors.New("making registrar: no image gate")
	case cfg.MaxStaleness <= 0:
		return nil, errors.New("making registrar: the longest staleness is not positive")
	case cfg.Log == nil || cfg.Now == nil:
		return nil, errors.New("making registrar: log and clock are required")
	}
	held, err := lru.New[heldKey, struct{}](heldEntries)
	if err != nil {
		return nil, fmt.Errorf("making registrar: %w", err)
	}
	foreign, err := lru.New[Instance, time.Time](foreignEntries)
	if err != nil {
		return nil, fmt.Errorf("making registrar: %w", err)
	}
	return &Registrar{cfg: cfg, held: held, foreign: foreign}, nil
}

// Attest finds out who is calling: the cluster vouches for the token, and the
// live pod stands behind it. It runs once for a credential (a stream, a unary
// call).
//
// A refusal is a [*DenyError]. Where the caller was authenticated (checks 1–4)
// before it was refused, the returned Caller names it, for the record; it can
// be granted nothing.
func (r *Registrar) Attest(ctx context.Context, cred Credential) (Caller, error) {
	if cred.Token == "" {
		return Caller{}, Deny(TokenMissing, "", "")
	}
	id := cred.Cluster
	if id == "" {
		id = r.cfg.Local
	}
	cluster := r.cfg.Clusters[id]
	if cluster == nil {
		return Caller{}, Deny(ClusterUnknown, "", "clusterid %q", Escape(cred.Cluster))
	}
	bound, err := cluster.Review(ctx, cred.Token)
	if err != nil {
		return Caller{}, err
	}
	identity, err := NewIdentity(cluster.TrustDomain(), bound.Namespace, bound.ServiceAccount)
	if err != nil {
		return Caller{}, Deny(TokenNotServiceAccount, "", "%v", err)
	}
	caller := Caller{
		Cluster: id, Identity: identity, Method: MethodServiceAccountToken,
		Pod: bound.Ref(), Node: bound.NodeName, Expires: bound.Expires,
	}
	live, err := r.live(ctx, cluster, caller, bound)
	if err != nil {
		return caller, err
	}
	if err := r.checkSource(caller, live.Pod, cred); err != nil {
		return caller, err
	}
	caller.Node = live.Pod.Node
	caller.bound = bound
	proof := caller
	caller.proof = &proof
	return caller, nil
}

// Grant runs the live checks and the image gate for a caller that was attested,
// and returns the leave to issue identity. It runs at every issuance, the
// first as every renewal. A refusal is a [*DenyError].
func (r *Registrar) Grant(ctx context.Context, caller Caller, identity Identity) (*Grant, error) {
	cluster := r.cfg.Clusters[caller.Cluster]
	if cluster == nil || !caller.genuine() {
		return nil, Deny(InternalError, "", "caller was not made by Attest, or changed since")
	}
	if identity != caller.Identity {
		return nil, Deny(IdentityNotOwn, identity.String(), "caller is %s", caller.Identity)
	}
	live, err := r.live(ctx, cluster, caller, caller.bound)
	if err != nil {
		return nil, err
	}
	pods := []*Pod{live.Pod}
	images, err := r.cfg.Gate.Check(ctx, pods)
	if err != nil {
		return nil, err
	}
	g := &Grant{
		facts: Facts{Identity: identity, Caller: caller, Pods: pods, Images: images},
		made:  r.cfg.Now(),
	}
	for _, e := range images {
		g.facts.Provisional = g.facts.Provisional || e.Provisional
	}
	if live.Current {
		r.held.Add(heldKey{caller.Instance(), identity}, struct{}{})
	}
	return g, nil
}

// live fetches the facts and holds them against the token. While the API server
// is away, the last view is enough to renew what the pod held, and for nothing
// else.
func (r *Registrar) live(ctx context.Context, cluster Cluster, caller Caller, bound Bound) (Live, error) {
	live, err := cluster.Live(ctx, bound)
	if err != nil {
		return Live{}, err
	}
	if err := CheckLive(bound, live); err != nil {
		return Live{}, err
	}
	if live.Current && bound.Reviewed {
		return live, nil
	}
	if age := r.cfg.Now().Sub(live.AsOf); age > r.cfg.MaxStaleness {
		return Live{}, Deny(APIServerAway, caller.Pod.String(), "the last view is %s old, at most %s are allowed", age.Round(time.Second), r.cfg.MaxStaleness)
	}
	if !r.held.Contains(heldKey{caller.Instance(), caller.Identity}) {
		return Live{}, Deny(APIServerAway, caller.Pod.String(), "the pod has not held %s before", caller.Identity)
	}
	return live, nil
}

func (r *Registrar) checkSource(caller Caller, pod *Pod, cred Credential) error {
	if r.cfg.SourceAddress == SourceAddressDisabled || !cred.Peer.IsValid() || fromPod(pod, cred.Peer) {
		return nil
	}
	if r.cfg.SourceAddress == SourceAddressEnforce {
		return Deny(SourceAddressForeign, caller.Pod.String(), "peer %s, pod has %v", cred.Peer, pod.IPs)
	}
	now := r.cfg.Now()
	if last, ok := r.foreign.Get(caller.Instance()); ok && now.Sub(last) < foreignEvery {
		return nil
	}
	r.foreign.Add(caller.Instance(), now)
	r.cfg.Log.Warn("peer address is not the pod's", "pod", caller.Pod.String(), "podUID", caller.Pod.UID, "peer", cred.Peer.String(), "podIPs", pod.IPs)
	return nil
}
