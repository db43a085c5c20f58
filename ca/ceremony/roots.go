package ceremony

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/keys"
)

// Roots makes roots, and opens and destroys their keys, all in one store.
type Roots struct{ Keys *keys.Store }

// Make makes a key and its root certificate. Both are new, and so is the
// Subject, which has the key's identifier in it. The key is durable on return,
// and the root prepared: nobody knows it before a journal does. The signer is
// good for as long as ctx lives.
func (r Roots) Make(ctx context.Context, td attest.TrustDomain, lifetime time.Duration, now time.Time) (journal.Root, crypto.Signer, error) {
	made, err := r.Keys.Make(ctx, func(key crypto.Signer) (*x509.Certificate, error) {
		return ca.Certify(ca.Root, td, key.Public(), ca.Parent{Signer: key}, lifetime, now)
	})
	if err != nil {
		return journal.Root{}, nil, fmt.Errorf("making root: %w", err)
	}
	return journal.Root{
		ID: hex.EncodeToString(made.Cert.SubjectKeyId), Certificate: made.Cert.Raw, KeyURI: made.URI,
		Phase: journal.Prepared, Since: now.UTC(),
	}, made.Signer, nil
}

// Open opens a root's key, and checks that it is that. The signer is good for as
// long as ctx lives.
func (r Roots) Open(ctx context.Context, root journal.Root) (crypto.Signer, error) {
	cert, err := own(root)
	if err != nil {
		return nil, fmt.Errorf("opening key of root %s: %w", root.ID, err)
	}
	signer, err := r.Keys.Open(ctx, root.KeyURI, cert)
	if err != nil {
		return nil, fmt.Errorf("opening key of root %s: %w", root.ID, err)
	}
	return signer, nil
}

// Destroy destroys a root's key, durable on return. One that is gone already is
// no error.
func (r Roots) Destroy(ctx context.Context, root journal.Root) error {
	cert, err := own(root)
	if err == nil {
		err = r.Keys.Destroy(ctx, root.KeyURI, cert)
	}
	if err != nil {
		return fmt.Errorf("destroying key of root %s: %w", root.ID, err)
	}
	return nil
}

// own returns the certificate of a root that has a key of ours.
func own(root journal.Root) (*x509.Certificate, error) {
	if root.KeyURI == "" {
		return nil, errors.New("it is only trusted, and has no key here")
	}
	return x509.ParseCertificate(root.Certificate)
}
