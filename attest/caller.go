package attest

import (
	"log/slog"
	"net/netip"
	"time"
)

// Credential is what a caller presented, unchecked.
type Credential struct {
	Token   string     // bearer token, without the scheme; "" if there was none
	Cluster string     // clusterid header; "" means the local cluster
	Peer    netip.Addr // network address of the peer; zero where there is none
}

// LogValue keeps the token out of every log.
func (c Credential) LogValue() slog.Value {
	return slog.GroupValue(slog.String("cluster", Escape(c.Cluster)), slog.String("peer", c.Peer.String()))
}

// String keeps the token out of every formatted text.
func (c Credential) String() string { return "credential from " + c.Peer.String() }

// GoString keeps the token out of %#v.
func (c Credential) GoString() string { return c.String() }

// Method is how a caller proved who it is.
type Method uint8

// MethodServiceAccountToken is a bound service account token, vouched for by
// TokenReview.
const MethodServiceAccountToken Method = 1

// String returns the name used in records.
func (m Method) String() string {
	if m == MethodServiceAccountToken {
		return "service-account-token"
	}
	return "unknown"
}

// PodRef names one pod, for ever: a UID is never used again.
type PodRef struct{ Namespace, Name, UID string }

// String returns namespace/name.
func (p PodRef) String() string { return p.Namespace + "/" + p.Name }

// Bound is what a reviewed token says of its bearer (checks 1–4).
type Bound struct {
	Namespace, ServiceAccount string
	ServiceAccountUID         string
	PodName, PodUID           string
	NodeName, NodeUID         string // "" where the token carries none
	CredentialID              string // "JTI=…": names the token in records
	Expires                   time.Time
	// Reviewed is false where the API server could not be asked and only the
	// signature, expiry and audience of the token have been checked: such a
	// caller renews what its pod held, and gets nothing new.
	Reviewed bool
}

// Ref names the pod that the token is bound to.
func (b Bound) Ref() PodRef { return PodRef{b.Namespace, b.PodName, b.PodUID} }

// Caller is one authenticated caller, for as long as its credential lasts.
// Only [Registrar.Attest] makes one.
type Caller struct {
	Cluster  string
	Identity Identity
	Method   Method
	Pod      PodRef
	Node     string
	Expires  time.Time // when the credential ends
	bound    Bound
	proof    *Caller // as Attest made it, itself without proof
}

// genuine tells whether c is what Attest made: the fields can be read by every
// front end, and set by none.
func (c Caller) genuine() bool {
	if c.proof == nil {
		return false
	}
	proof := c.proof
	c.proof = nil
	return c == *proof
}

// Instance names the proxy instance that a caller is: its cluster and pod,
// and nothing that the caller itself could choose.
type Instance struct{ Cluster, PodUID string }

// Instance returns the proxy instance of c.
func (c Caller) Instance() Instance { return Instance{c.Cluster, c.Pod.UID} }
