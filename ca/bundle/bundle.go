package bundle

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
)

// Bounds of a bundle, ours and others'.
const (
	MaxBytes = 1 << 20
	MaxKeys  = 64
	// MaxHint is the longest refresh hint.
	MaxHint = 366 * 24 * time.Hour
)

// ContentType is the media type of the document (SPIFFE Federation section
// 5.1.3).
const ContentType = "application/json"

// Bundle is what one trust domain trusts.
type Bundle struct {
	TrustDomain attest.TrustDomain
	Sequence    uint64        // 0: the document names none
	RefreshHint time.Duration // whole seconds; 0: the document names none
	Roots       []*x509.Certificate
}

// Of returns the bundle of s, to be asked for again after hint.
func Of(s *ca.Snapshot, hint time.Duration) Bundle {
	return Bundle{TrustDomain: s.TrustDomain(), Sequence: s.Sequence(), RefreshHint: hint, Roots: s.Roots()}
}

// Marshal writes the document. The sequence counts the changes of the roots: a
// refresh hint that was configured anew changes the bytes alone.
func (b Bundle) Marshal() ([]byte, error) {
	switch {
	case b.TrustDomain.IsZero() || b.Sequence == 0:
		return nil, errors.New("writing bundle: a trust domain and a sequence are required")
	case len(b.Roots) == 0 || len(b.Roots) > MaxKeys:
		return nil, fmt.Errorf("writing bundle: %d roots, want 1 to %d", len(b.Roots), MaxKeys)
	case b.RefreshHint < time.Second || b.RefreshHint > MaxHint:
		return nil, fmt.Errorf("writing bundle: a refresh hint of %s, want 1s to %s", b.RefreshHint, MaxHint)
	}
	td, err := spiffeid.TrustDomainFromString(b.TrustDomain.String())
	if err != nil {
		return nil, fmt.Errorf("writing bundle: %w", err)
	}
	for _, root := range b.Roots {
		if err := checkRoot(root); err != nil {
			return nil, fmt.Errorf("writing bundle: %w", err)
		}
	}
	// Certificates alone: authorities of JWTs would come in the order of a map.
	doc := spiffebundle.FromX509Authorities(td, b.Roots)
	doc.SetSequenceNumber(b.Sequence)
	doc.SetRefreshHint(b.RefreshHint)
	out, err := doc.Marshal()
	if err != nil {
		return nil, fmt.Errorf("writing bundle: %w", err)
	}
	if len(out) > MaxBytes {
		return nil, fmt.Errorf("writing bundle: %d bytes, at most %d are allowed", len(out), MaxBytes)
	}
	return out, nil
}

// checkRoot wants a CA that may sign (X.509-SVID section 4.1 and 4.3). Its dates
// are the verifier's business.
func checkRoot(cert *x509.Certificate) error {
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("%q is no CA that may sign", attest.Escape(cert.Subject.String()))
	}
	return nil
}
