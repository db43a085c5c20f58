package attest

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// maxTrustDomain and maxIdentity are the limits of SPIFFE-ID section 2.3,
	// in bytes. go-spiffe enforces neither.
	maxTrustDomain = 255
	maxIdentity    = 2048
)

// TrustDomain is a checked SPIFFE trust domain name, such as cluster.local.
type TrustDomain struct{ td spiffeid.TrustDomain }

// ParseTrustDomain checks a bare trust domain name (SPIFFE-ID section 2.1):
// lower case letters, digits, dot, dash and underscore, at most 255 bytes.
func ParseTrustDomain(name string) (TrustDomain, error) {
	if len(name) > maxTrustDomain {
		return TrustDomain{}, fmt.Errorf("parsing trust domain: %d bytes, at most %d are allowed", len(name), maxTrustDomain)
	}
	if strings.Contains(name, "/") {
		return TrustDomain{}, fmt.Errorf("parsing trust domain %q: want the bare name, without spiffe:// and path", name)
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return TrustDomain{}, fmt.Errorf("parsing trust domain %q: %w", name, err)
	}
	return TrustDomain{td}, nil
}

// String returns the bare name.
func (t TrustDomain) String() string { return t.td.Name() }

// IsZero tells whether t was never set.
func (t TrustDomain) IsZero() bool { return t.td.IsZero() }

// Identity is the SPIFFE ID of a Kubernetes service account:
// spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT. It is comparable.
type Identity struct{ id spiffeid.ID }

// NewIdentity builds an identity from its parts, each checked.
func NewIdentity(td TrustDomain, namespace, serviceAccount string) (Identity, error) {
	id, err := spiffeid.FromSegments(td.td, "ns", namespace, "sa", serviceAccount)
	if err != nil {
		return Identity{}, fmt.Errorf("building identity of %q/%q: %w", namespace, serviceAccount, err)
	}
	if len(id.String()) > maxIdentity {
		return Identity{}, fmt.Errorf("building identity: %d bytes, at most %d are allowed", len(id.String()), maxIdentity)
	}
	return Identity{id}, nil
}

// ParseIdentity reads spiffe://TD/ns/NS/sa/SA, to compare with one that was
// built; what it returns is rebuilt from the parts.
func ParseIdentity(s string) (Identity, error) {
	if len(s) > maxIdentity {
		return Identity{}, fmt.Errorf("parsing identity: %d bytes, at most %d are allowed", len(s), maxIdentity)
	}
	id, err := spiffeid.FromString(s)
	if err != nil {
		return Identity{}, fmt.Errorf("parsing identity %q: %w", Escape(s), err)
	}
	parts := strings.Split(id.Path(), "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return Identity{}, fmt.Errorf("parsing identity %q: path is not /ns/NAMESPACE/sa/SERVICE-ACCOUNT", Escape(s))
	}
	td, err := ParseTrustDomain(id.TrustDomain().Name())
	if err != nil {
		return Identity{}, err
	}
	return NewIdentity(td, parts[2], parts[4])
}

// String returns the whole URI, or "" for the zero identity.
func (i Identity) String() string { return i.id.String() }

// ID returns the identity as go-spiffe's type.
func (i Identity) ID() spiffeid.ID { return i.id }

// TrustDomain returns the identity's trust domain.
func (i Identity) TrustDomain() TrustDomain { return TrustDomain{i.id.TrustDomain()} }

// IsZero tells whether i was never set.
func (i Identity) IsZero() bool { return i.id.IsZero() }
