package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// SnapshotConfig is what a snapshot is made of. Chain is the issuing CA first,
// then every CA below the root, which is not part of it. Roots are all that are
// trusted, in any order.
type SnapshotConfig struct {
	TrustDomain attest.TrustDomain
	Sequence    uint64
	Signer      crypto.Signer
	Chain       []*x509.Certificate
	Roots       []*x509.Certificate
}

// Snapshot is the authority at one moment: who signs, the chain to show, the
// bundle to trust and its sequence. It is immutable, and what a request uses of
// it all comes from the same one.
type Snapshot struct {
	trustDomain attest.TrustDomain
	sequence    uint64
	signer      crypto.Signer
	algorithm   profile.Algorithm
	issuer      *x509.Certificate
	root        *x509.Certificate // that the issuer chains to
	chainPEM    [][]byte
	tailPEM     []byte // chainPEM in one piece, what follows each leaf
	roots       []*x509.Certificate
	bundlePEM   []byte
	issuerID    string // subject key identifiers, hex
	rootID      string
	shapes      sync.Map  // shape → struct{}: what the slow lints have passed under this issuer
	clipped     sync.Once // the log was told that leaves end with the issuer
}

// NewSnapshot verifies cfg as a whole, because a mesh notices nothing until
// each of its handshakes fails: the signer's key is the issuer's, the chain
// leads in its order to a root of the bundle at now, and no two authorities
// share a Subject (Go and rustls give up after 100 signature checks among
// issuers of one name).
func NewSnapshot(cfg SnapshotConfig, now time.Time) (*Snapshot, error) {
	if len(cfg.Chain) == 0 || len(cfg.Roots) == 0 || cfg.Signer == nil || cfg.TrustDomain.IsZero() {
		return nil, errors.New("making snapshot: trust domain, signer, chain and roots are all required")
	}
	s := &Snapshot{trustDomain: cfg.TrustDomain, sequence: cfg.Sequence, signer: cfg.Signer, issuer: cfg.Chain[0], roots: slices.Clone(cfg.Roots)}
	var err error
	if s.algorithm, err = profile.AlgorithmFor(cfg.Signer.Public()); err != nil {
		return nil, fmt.Errorf("making snapshot: %w", err)
	}
	if key, ok := s.issuer.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(cfg.Signer.Public()) {
		return nil, errors.New("making snapshot: the signer's key is not the issuing CA's")
	}
	// By their bytes, so that the bundle is the same everywhere.
	slices.SortFunc(s.roots, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	if err := s.verify(cfg.Chain, now); err != nil {
		return nil, fmt.Errorf("making snapshot: %w", err)
	}
	s.issuerID, s.rootID = hex.EncodeToString(s.issuer.SubjectKeyId), hex.EncodeToString(s.root.SubjectKeyId)
	for _, cert := range cfg.Chain {
		block := encodeCertificate(cert.Raw)
		s.chainPEM = append(s.chainPEM, block)
		s.tailPEM = append(s.tailPEM, block...)
	}
	for _, root := range s.roots {
		s.bundlePEM = append(s.bundlePEM, encodeCertificate(root.Raw)...)
	}
	return s, nil
}

func (s *Snapshot) verify(chain []*x509.Certificate, now time.Time) error {
	pool, intermediates := x509.NewCertPool(), x509.NewCertPool()
	names := map[string]bool{}
	for _, cert := range slices.Concat(s.roots, chain) {
		if names[string(cert.RawSubject)] {
			return fmt.Errorf("two authorities are named %q", cert.Subject)
		}
		names[string(cert.RawSubject)] = true
		if !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 || len(cert.SubjectKeyId) == 0 {
			return fmt.Errorf("%q is no CA that may sign", cert.Subject)
		}
	}
	for _, root := range s.roots {
		pool.AddCert(root)
	}
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
	}
	chains, err := s.issuer.Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("chain does not lead to the bundle: %w", err)
	}
	for _, found := range chains {
		below, root := found[:len(found)-1], found[len(found)-1]
		if slices.EqualFunc(below, chain, (*x509.Certificate).Equal) {
			s.root = root
			return nil
		}
	}
	return errors.New("chain holds a certificate that does not lead to the root, or lacks order")
}

// TrustDomain returns whose bundle this is.
func (s *Snapshot) TrustDomain() attest.TrustDomain { return s.trustDomain }

// Sequence is the bundle's, which only rises (SPIFFE Trust Domain and Bundle
// section 4.1.1).
func (s *Snapshot) Sequence() uint64 { return s.sequence }

// Issuer returns the issuing CA's certificate. It must not be changed.
func (s *Snapshot) Issuer() *x509.Certificate { return s.issuer }

// Roots returns the trusted roots, sorted by their bytes. They must not be
// changed.
func (s *Snapshot) Roots() []*x509.Certificate { return slices.Clone(s.roots) }

// ChainPEM returns what follows a leaf, one certificate an element, issuing CA
// first. It must not be changed.
func (s *Snapshot) ChainPEM() [][]byte { return s.chainPEM }

// BundlePEM returns all roots, the same bytes on every replica. It must not be
// changed.
func (s *Snapshot) BundlePEM() []byte { return s.bundlePEM }

// AuthorityID names the issuing CA: its subject key identifier in hex.
func (s *Snapshot) AuthorityID() string { return s.issuerID }

// Root returns the root that the issuing CA chains to. It must not be changed.
func (s *Snapshot) Root() *x509.Certificate { return s.root }

// RootID names the root that the issuing CA chains to, likewise.
func (s *Snapshot) RootID() string { return s.rootID }

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
