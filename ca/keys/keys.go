// Package keys opens the signers of authorities from KMS URIs, through
// go.step.sm/crypto, and seals keys that live in files.
//
// A kind of KMS is there when its package is linked in: a build that wants
// another one imports the library's package for it. Private keys never pass
// through this package's errors, and a sealed key's passphrase comes from a
// file that strangers cannot read, never from configuration or environment. Its
// group may read it: that is how a cluster mounts a secret for an account that
// is not root. The package keeps no state.
package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/softkms"
	"go.step.sm/crypto/kms/uri"
	"go.step.sm/crypto/pemutil"

	"github.com/hallmark-ca/hallmark/ca/profile"
)

// Config says where keys in files are.
type Config struct {
	Dir            string // relative paths of softkms: URIs lie below it
	PassphraseFile string
}

// Bounds of a passphrase and of a sealed key, in bytes.
const (
	minPassphrase = 16
	maxPassphrase = 4096
	maxSealed     = 64 << 10
)

// URI returns the URI of a sealed key file, relative to [Config.Dir].
func URI(file string) string { return softkms.Scheme + ":path=" + file }

// Open returns the signer that a KMS URI names, such as
// softkms:path=root.pem. An authority's key is ECDSA P-256 or P-384, or RSA of
// 3072 to 4096 bits; others are refused.
func Open(ctx context.Context, rawURI string, cfg Config) (crypto.Signer, error) {
	kind, err := apiv1.TypeOf(rawURI)
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w", rawURI, err)
	}
	newManager, ok := apiv1.LoadKeyManagerNewFunc(kind)
	if !ok {
		return nil, fmt.Errorf("opening key %s: this build has no key manager of kind %q; it has %q", rawURI, kind, softkms.Scheme)
	}
	manager, err := newManager(ctx, apiv1.Options{Type: kind, URI: rawURI})
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w", rawURI, err)
	}
	req := &apiv1.CreateSignerRequest{SigningKey: rawURI}
	if kind == apiv1.SoftKMS {
		if req, err = fileRequest(rawURI, cfg); err != nil {
			return nil, fmt.Errorf("opening key %s: %w", rawURI, err)
		}
	}
	signer, err := manager.CreateSigner(req)
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w", rawURI, err)
	}
	if _, err := profile.AlgorithmFor(signer.Public()); err != nil {
		return nil, fmt.Errorf("opening key %s: %w", rawURI, err)
	}
	return signer, nil
}

// OpenFor opens a key and checks that it is the one in cert.
func OpenFor(ctx context.Context, rawURI string, cert *x509.Certificate, cfg Config) (crypto.Signer, error) {
	signer, err := Open(ctx, rawURI, cfg)
	if err != nil {
		return nil, err
	}
	if key, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(signer.Public()) {
		return nil, fmt.Errorf("opening key %s: it is not the key of %q", rawURI, cert.Subject)
	}
	return signer, nil
}

func fileRequest(rawURI string, cfg Config) (*apiv1.CreateSignerRequest, error) {
	parsed, err := uri.ParseWithScheme(softkms.Scheme, rawURI)
	if err != nil {
		return nil, err
	}
	file := parsed.Get("path")
	if file == "" {
		return nil, errors.New("the URI names no file: want softkms:path=FILE")
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(cfg.Dir, file)
	}
	sealed, err := readPrivate(file, maxSealed)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(sealed)
	if block == nil || block.Type != "ENCRYPTED PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s is no sealed key (PEM block ENCRYPTED PRIVATE KEY): a key in the clear is not used", file)
	}
	passphrase, err := Passphrase(cfg.PassphraseFile)
	if err != nil {
		return nil, err
	}
	return &apiv1.CreateSignerRequest{SigningKeyPEM: sealed, Password: passphrase}, nil
}

// Generate makes a P-256 key.
func Generate() (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating key: %w", err)
	}
	return key, nil
}

// Seal returns key as PKCS #8 in PEM, encrypted under passphrase (PBES2).
func Seal(key crypto.Signer, passphrase []byte) ([]byte, error) {
	block, err := pemutil.Serialize(key, pemutil.WithPKCS8(true), pemutil.WithPassword(passphrase))
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}

// NewPassphrase returns 256 random bits as text, with a final newline.
func NewPassphrase() []byte {
	var b [32]byte
	rand.Read(b[:])
	return []byte(base64.RawURLEncoding.EncodeToString(b[:]) + "\n")
}

// Passphrase reads a passphrase of 16 to 4096 bytes from a file that strangers
// cannot read. One final newline does not count.
func Passphrase(file string) ([]byte, error) {
	if file == "" {
		return nil, errors.New("reading passphrase: no file is configured (authority.passphraseFile)")
	}
	text, err := readPrivate(file, maxPassphrase+1)
	if err != nil {
		return nil, fmt.Errorf("reading passphrase: %w", err)
	}
	text = bytes.TrimSuffix(text, []byte("\n"))
	if len(text) < minPassphrase || len(text) > maxPassphrase {
		return nil, fmt.Errorf("reading passphrase: %s holds %d bytes, want %d to %d", file, len(text), minPassphrase, maxPassphrase)
	}
	return text, nil
}

// readPrivate reads a file of at most limit bytes, and refuses one that
// everyone can read or change. A mounted secret is read through symbolic links.
func readPrivate(file string, limit int64) ([]byte, error) {
	// A pipe would be waited for.
	if info, err := os.Stat(file); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", file)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat() // of what is read, whatever the name is now
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return nil, fmt.Errorf("%s can be read by everyone (mode %#o): chmod 600 %s", file, mode, file)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", file, limit)
	}
	return data, nil
}
