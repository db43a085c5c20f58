// Package catest makes a whole authority in memory: a root, an issuing CA, a
// ledger that keeps what it is told, and with attest/attesttest the grants that
// alone make it sign. Front ends are tested against it rather than against a
// fake of their own, so that what they send out are real certificates.
//
// It is linked into tests alone. Everything in it is safe for concurrent use.
package catest

import (
	"crypto"
	"crypto/x509"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// Lifetimes of what [New] makes.
const (
	RootLifetime    = 5 * 365 * 24 * time.Hour
	IssuingLifetime = 72 * time.Hour
)

// LeafProfile returns the profile of the product's defaults: 6 h, at most 24 h,
// at least 10 min, back-dated 2 min.
func LeafProfile(tb testing.TB) *profile.Leaf {
	tb.Helper()
	leaf, err := profile.NewLeaf(profile.LeafConfig{Default: 6 * time.Hour, Max: 24 * time.Hour, Min: 10 * time.Minute, BackDate: 2 * time.Minute})
	if err != nil {
		tb.Fatal(err)
	}
	return leaf
}

// Authority is a [ca.Authority] with everything that stands behind it.
type Authority struct {
	*ca.Authority
	Ledger *Ledger

	td  attest.TrustDomain
	now func() time.Time

	mu       sync.Mutex // guards all below
	roots    []authority
	issuer   authority
	sequence uint64
}

// authority is a certificate and its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// New returns an authority that can issue: one root, one issuing CA, sequence 1.
// change may alter the configuration before it is used; nil alters nothing.
func New(tb testing.TB, td attest.TrustDomain, now func() time.Time, change func(*ca.Config)) *Authority {
	tb.Helper()
	a := &Authority{Ledger: &Ledger{}, td: td, now: now}
	cfg := ca.Config{
		Leaf: LeafProfile(tb), Ledger: a.Ledger, Registerer: prometheus.NewRegistry(),
		Log: slog.New(slog.DiscardHandler), Now: now,
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if a.Authority, err = ca.New(cfg); err != nil {
		tb.Fatal(err)
	}
	a.AddRoot(tb)
	a.Renew(tb)
	return a
}

// AddRoot makes a further root and puts it into the bundle; the issuing CA
// stays. It returns the root's certificate.
func (a *Authority) AddRoot(tb testing.TB) *x509.Certificate {
	tb.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	key := Key(tb)
	root := Certify(tb, ca.Root, a.td, key, ca.Parent{}, RootLifetime, a.now())
	a.roots = append(a.roots, authority{root, key})
	if a.issuer.cert != nil {
		a.install(tb)
	}
	return root
}

// Renew makes a new issuing CA under the newest root and issues from it.
func (a *Authority) Renew(tb testing.TB) {
	tb.Helper()
	a.RenewFor(tb, IssuingLifetime)
}

// RenewFor is [Authority.Renew] for an issuing CA of the given life.
func (a *Authority) RenewFor(tb testing.TB, life time.Duration) {
	tb.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	root := a.roots[len(a.roots)-1]
	key := Key(tb)
	a.issuer = authority{Certify(tb, ca.Issuing, a.td, key, ca.Parent{Certificate: root.cert, Signer: root.key}, life, a.now()), key}
	a.install(tb)
}

func (a *Authority) install(tb testing.TB) {
	tb.Helper()
	a.sequence++
	var roots []*x509.Certificate
	for _, r := range a.roots {
		roots = append(roots, r.cert)
	}
	snap, err := ca.NewSnapshot(ca.SnapshotConfig{
		TrustDomain: a.td, Sequence: a.sequence, Signer: a.issuer.key,
		Chain: []*x509.Certificate{a.issuer.cert}, Roots: roots,
	}, a.now())
	if err != nil {
		tb.Fatal(err)
	}
	if err := a.Install(snap); err != nil {
		tb.Fatal(err)
	}
}

// RenewUnder makes a further root and an issuing CA of the given keys, and
// issues from it.
func (a *Authority) RenewUnder(tb testing.TB, rootKey, issuingKey crypto.Signer) {
	tb.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	root := Certify(tb, ca.Root, a.td, rootKey, ca.Parent{}, RootLifetime, a.now())
	a.roots = append(a.roots, authority{root, rootKey})
	a.issuer = authority{Certify(tb, ca.Issuing, a.td, issuingKey, ca.Parent{Certificate: root, Signer: rootKey}, IssuingLifetime, a.now()), issuingKey}
	a.install(tb)
}

// Roots returns a pool of all trusted roots.
func (a *Authority) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, root := range a.Current().Roots() {
		pool.AddCert(root)
	}
	return pool
}

// Certify makes a CA for key; a zero parent makes a root.
func Certify(tb testing.TB, kind ca.AuthorityKind, td attest.TrustDomain, key crypto.Signer, parent ca.Parent, life time.Duration, now time.Time) *x509.Certificate {
	tb.Helper()
	if parent.Signer == nil {
		parent.Signer = key
	}
	cert, err := ca.Certify(kind, td, key.Public(), parent, life, now)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}
