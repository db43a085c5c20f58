// Package keys makes, opens and destroys the keys of authorities. A KMS URI
// names each: softkms:path=FILE a key that lies sealed in a file, pkcs11:… one
// that lives in a token, and whatever kind else a build links in a package of
// go.step.sm/crypto for. PKCS #11 needs cgo; a build without it says so.
//
// Invariants: a private key never passes through this package's errors, and one
// in a token never leaves it; a key is only handed out for the certificate that
// it belongs to, and each signature of a device is verified under that
// certificate's key before it is used. Passphrases and PINs come from files that
// strangers cannot read, never from configuration, environment or a URI. Their
// group may read them: that is how a cluster mounts a secret for an account that
// is not root.
//
// A device is given up rather than waited for: each call has a deadline, and
// only a few may hang at once. What fails on a session that was opened before is
// tried once more on a new one. A [Store] is safe for concurrent use; each
// PKCS #11 module is used by one call at a time, and belongs to one Store of the
// process.
package keys

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.step.sm/crypto/kms/apiv1"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// Config says where keys are, and how new ones are made.
type Config struct {
	Dir            string // relative paths of softkms: URIs lie below it
	PassphraseFile string // seals the keys in files
	// URI names where new keys are made: a token (pkcs11:…), or "" for files in
	// Dir. For keys of that same token, its module and PIN file are used rather
	// than those that were right when the key was made.
	URI       string
	Algorithm Algorithm     // of new keys; "" is [P256]
	Timeout   time.Duration // of a call to a device; 0 is 15 s. Making a key may take 8 times as long.
	FS        durable.FS    // writes and removes files in Dir; nil: the system's own

	Registerer prometheus.Registerer // nil: no metrics
	Log        *slog.Logger          // nil: none
}

const (
	defaultTimeout = 15 * time.Second
	// slowMake is how much longer making a key may take than using one: an RSA
	// key of 4096 bits takes a small token a minute.
	slowMake = 8
)

// Store makes, opens and destroys keys.
type Store struct {
	cfg     Config
	home    address // of new keys; its kind is softkms for files
	metrics *metrics

	mu      sync.Mutex // guards devices
	devices map[string]*device
}

// New checks cfg and returns a store. Nothing is opened yet.
func New(cfg Config) (*Store, error) {
	s := &Store{cfg: cfg, devices: map[string]*device{}}
	var err error
	if s.home, err = parseHome(cfg.URI); err != nil {
		return nil, fmt.Errorf("checking where keys are made: %w", err)
	}
	if s.cfg.Algorithm == "" {
		s.cfg.Algorithm = P256
	}
	if _, err := ParseAlgorithm(string(s.cfg.Algorithm)); err != nil {
		return nil, err
	}
	if s.cfg.Timeout <= 0 {
		s.cfg.Timeout = defaultTimeout
	}
	if s.cfg.FS == nil {
		s.cfg.FS = durable.OS(cfg.Dir)
	}
	if s.cfg.Log == nil {
		s.cfg.Log = slog.New(slog.DiscardHandler)
	}
	if s.metrics, err = newMetrics(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("making key store: %w", err)
	}
	return s, nil
}

// CheckURI tells whether new keys could be made where uri says, as far as that
// can be told without opening it. "" means sealed files.
func CheckURI(uri string) error {
	_, err := parseHome(uri)
	return err
}

// Check opens the token in which new keys are made, and logs in to it. Of
// sealed files there is nothing to open.
func (s *Store) Check(ctx context.Context) error {
	if s.home.kind == apiv1.SoftKMS {
		return nil
	}
	if err := s.device(s.home).call(ctx, s.cfg.Timeout, s.home, job{f: func(context.Context, *session) error { return nil }}); err != nil {
		return fmt.Errorf("opening %s: %w", s.home, err)
	}
	return nil
}

// Open returns the signer of the key that uri names, which must be the key of
// cert: ECDSA P-256 or P-384, or RSA of 3072 to 4096 bits. The signer is good
// for as long as ctx lives.
func (s *Store) Open(ctx context.Context, uri string, cert *x509.Certificate) (crypto.Signer, error) {
	at, err := parseKey(uri)
	if err != nil {
		return nil, fmt.Errorf("opening key: %w", err)
	}
	fail := func(err error) (crypto.Signer, error) { return nil, fmt.Errorf("opening key %s: %w", at, err) }
	// Before anything is opened: what may not sign is not touched.
	if _, err := profile.AlgorithmFor(cert.PublicKey); err != nil {
		return fail(err)
	}
	if at.kind != apiv1.SoftKMS {
		at = s.home.moved(at)
		signer := &signer{ctx: ctx, store: s, at: at, public: cert.PublicKey}
		// Also where it was opened before: who opens a key wants to know that it
		// signs now.
		if err := signer.do(prove); err != nil {
			return fail(err)
		}
		return signer, nil
	}
	signer, err := s.openFile(ctx, at)
	if err != nil {
		return fail(err)
	}
	if !same(cert.PublicKey, signer.Public()) {
		return fail(notTheKey(cert))
	}
	return signer, nil
}

// Made is a key that [Store.Make] made.
type Made struct {
	URI    string // under which it can be opened again
	Cert   *x509.Certificate
	Signer crypto.Signer // good for as long as the context of Make lives
}

// Make makes a key of the configured kind where the configuration says, and has
// certify make its certificate. Key and name are new, and durable on return. A
// cut within it, or a failure, may leave a key that nobody names.
func (s *Store) Make(ctx context.Context, certify func(crypto.Signer) (*x509.Certificate, error)) (Made, error) {
	made, err := s.makeIn(ctx, certify)
	if err != nil {
		return Made{}, fmt.Errorf("making key: %w", err)
	}
	return made, nil
}

func (s *Store) makeIn(ctx context.Context, certify func(crypto.Signer) (*x509.Certificate, error)) (Made, error) {
	if s.home.kind == apiv1.SoftKMS {
		return s.makeFile(ctx, certify)
	}
	at, signer, err := s.makeInToken(ctx)
	if err != nil {
		return Made{}, err
	}
	cert, err := certify(signer)
	if err == nil && !same(cert.PublicKey, signer.Public()) {
		err = notTheKey(cert)
	}
	if err != nil {
		return Made{}, errors.Join(err, s.destroyInToken(ctx, at, signer.Public()))
	}
	return Made{at.String(), cert, signer}, nil
}

// Destroy destroys the key of cert that uri names, durable on return. A key that
// is gone already is no error; one that is another's is not touched.
func (s *Store) Destroy(ctx context.Context, uri string, cert *x509.Certificate) error {
	at, err := parseKey(uri)
	if err != nil {
		return fmt.Errorf("destroying key: %w", err)
	}
	if at.kind == apiv1.SoftKMS {
		err = s.destroyFile(ctx, at, cert)
	} else {
		err = s.destroyInToken(ctx, s.home.moved(at), cert.PublicKey)
	}
	if err != nil {
		return fmt.Errorf("destroying key %s: %w", at, err)
	}
	return nil
}

// Close lets go of every device. One that hangs is left behind. What is used
// afterwards is opened anew.
func (s *Store) Close() error {
	s.mu.Lock()
	devices := maps.Clone(s.devices)
	s.mu.Unlock()
	var err error
	for _, d := range devices {
		err = errors.Join(err, d.close(s.cfg.Timeout))
	}
	return err
}

func notTheKey(cert *x509.Certificate) error {
	return fmt.Errorf("it is not the key of %q (key id %s)", cert.Subject, hex.EncodeToString(cert.SubjectKeyId))
}

// same tells whether two public keys are one.
func same(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}
