package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/softkms"
	"go.step.sm/crypto/pemutil"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// Bounds of a passphrase and of a sealed key, in bytes.
const (
	minPassphrase = 16
	maxPassphrase = 4096
	maxSealed     = 64 << 10
)

// file returns where the key of a softkms: URI lies.
func (s *Store) file(at address) string {
	if file := at.words["path"]; filepath.IsAbs(file) {
		return filepath.Clean(file)
	}
	return filepath.Join(s.cfg.Dir, at.words["path"])
}

func (s *Store) openFile(ctx context.Context, at address) (crypto.Signer, error) {
	file := s.file(at)
	sealed, err := readPrivate(file, maxSealed)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(sealed)
	if block == nil || block.Type != "ENCRYPTED PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s is no sealed key (PEM block ENCRYPTED PRIVATE KEY): a key in the clear is not used", file)
	}
	passphrase, err := Passphrase(s.cfg.PassphraseFile)
	if err != nil {
		return nil, err
	}
	manager, err := softkms.New(ctx, apiv1.Options{Type: apiv1.SoftKMS})
	if err != nil {
		return nil, err
	}
	signer, err := manager.CreateSigner(&apiv1.CreateSignerRequest{SigningKeyPEM: sealed, Password: passphrase})
	if err != nil {
		return nil, err
	}
	_, err = profile.AlgorithmFor(signer.Public())
	return signer, err
}

// makeFile makes a key, and names its file after the certificate.
func (s *Store) makeFile(ctx context.Context, certify func(crypto.Signer) (*x509.Certificate, error)) (Made, error) {
	passphrase, err := Passphrase(s.cfg.PassphraseFile)
	if err != nil {
		return Made{}, err
	}
	key, err := s.cfg.Algorithm.Generate()
	if err != nil {
		return Made{}, err
	}
	cert, err := certify(key)
	if err == nil && !same(cert.PublicKey, key.Public()) {
		err = notTheKey(cert)
	}
	if err != nil {
		return Made{}, err
	}
	sealed, err := Seal(key, passphrase)
	if err != nil {
		return Made{}, err
	}
	if err := ctx.Err(); err != nil {
		return Made{}, err
	}
	if err := s.cfg.FS.MkdirAll("."); err != nil {
		return Made{}, err
	}
	name := "root-" + hex.EncodeToString(cert.SubjectKeyId[:min(4, len(cert.SubjectKeyId))]) + ".pem"
	if err := durable.WriteNew(s.cfg.FS, name, sealed); err != nil {
		return Made{}, err
	}
	return Made{URI(name), cert, key}, nil
}

// destroyFile removes a sealed key. Its bytes may stay on the disk for a time,
// sealed as they are. Whose it is shows only where it can be opened.
func (s *Store) destroyFile(ctx context.Context, at address, cert *x509.Certificate) error {
	if key, err := s.openFile(ctx, at); err == nil && !same(cert.PublicKey, key.Public()) {
		return notTheKey(cert)
	}
	fsys, name := s.cfg.FS, at.words["path"]
	if filepath.IsAbs(name) {
		fsys, name = durable.OS(filepath.Dir(name)), filepath.Base(name)
	} else if !filepath.IsLocal(name) {
		return errors.New("it lies outside of the folder of keys")
	}
	err := fsys.Remove(filepath.ToSlash(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Also where it was gone: whoever removed it may have died before this.
	return fsys.SyncDir(filepath.ToSlash(filepath.Dir(name)))
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
