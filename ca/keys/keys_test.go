package keys_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/keys"
)

const passphrase = "correct horse battery staple"

// sealed is one key and its sealed form, which takes a while to make.
var sealed = sync.OnceValues(func() (*ecdsa.PrivateKey, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	text, err := keys.Seal(key, []byte(passphrase))
	if err != nil {
		panic(err)
	}
	return key, text
})

// folder is a folder with root.pem and a passphrase.
func folder(t testing.TB) keys.Config {
	t.Helper()
	dir := t.TempDir()
	_, text := sealed()
	write(t, filepath.Join(dir, "root.pem"), text, 0o600)
	write(t, filepath.Join(dir, "passphrase"), []byte(passphrase+"\n"), 0o600)
	return keys.Config{Dir: dir, PassphraseFile: filepath.Join(dir, "passphrase")}
}

// open returns the store of a configuration.
func open(tb testing.TB, cfg keys.Config) *keys.Store {
	tb.Helper()
	s, err := keys.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// certificate is one of the key.
func certificate(tb testing.TB, key crypto.Signer) *x509.Certificate {
	tb.Helper()
	return catest.Certify(tb, ca.Root, attesttest.Domain(tb, "cluster.local"), key, ca.Parent{}, time.Hour, time.Now())
}

func write(t testing.TB, file string, content []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}

func TestOpenSealedKey(t *testing.T) {
	t.Parallel()
	key, text := sealed()
	cfg := folder(t)
	signer, err := open(t, cfg).Open(t.Context(), keys.URI("root.pem"), certificate(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if !key.PublicKey.Equal(signer.Public()) {
		t.Error("another key was opened")
	}
	sum := sha256.Sum256([]byte("text"))
	signature, err := signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil || !ecdsa.VerifyASN1(&key.PublicKey, sum[:], signature) {
		t.Errorf("its signature does not verify: %v", err)
	}
	der, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if bytes.Contains(block.Bytes, der) || block.Type != "ENCRYPTED PRIVATE KEY" {
		t.Error("the sealed form shows the key")
	}
	// For a group, as a mounted secret is.
	if err := os.Chmod(filepath.Join(cfg.Dir, "root.pem"), 0o440); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, cfg).Open(t.Context(), "softkms:path="+filepath.Join(cfg.Dir, "root.pem"), certificate(t, key)); err != nil {
		t.Errorf("by its whole path: %v", err)
	}
}

// Each way in which a key must not be opened, with words that help, and without
// the secrets in them.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	key, text := sealed()
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	clear := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	for name, tt := range map[string]struct {
		change func(t *testing.T, cfg *keys.Config) (uri string)
		want   string
	}{
		"in the clear": {func(t *testing.T, cfg *keys.Config) string {
			write(t, filepath.Join(cfg.Dir, "root.pem"), clear, 0o600)
			return keys.URI("root.pem")
		}, "in the clear is not used"},
		"in the clear, SEC 1": {func(t *testing.T, cfg *keys.Config) string {
			write(t, filepath.Join(cfg.Dir, "root.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), 0o600)
			return keys.URI("root.pem")
		}, "in the clear is not used"},
		"in the clear behind a sealed one": {func(t *testing.T, cfg *keys.Config) string {
			write(t, filepath.Join(cfg.Dir, "root.pem"), append(bytes.Clone(text), clear...), 0o600)
			return keys.URI("root.pem")
		}, "no sealed key"},
		"wrong passphrase": {func(t *testing.T, cfg *keys.Config) string {
			write(t, cfg.PassphraseFile, []byte("incorrect donkey battery staple"), 0o600)
			return keys.URI("root.pem")
		}, "opening key softkms:path=root.pem"},
		"short passphrase": {func(t *testing.T, cfg *keys.Config) string {
			write(t, cfg.PassphraseFile, []byte("correct\n"), 0o600)
			return keys.URI("root.pem")
		}, "7 bytes, want 16"},
		"endless passphrase": {func(t *testing.T, cfg *keys.Config) string {
			write(t, cfg.PassphraseFile, bytes.Repeat([]byte("x"), 5000), 0o600)
			return keys.URI("root.pem")
		}, "more than 4097 bytes"},
		"no passphrase": {func(_ *testing.T, cfg *keys.Config) string {
			cfg.PassphraseFile = ""
			return keys.URI("root.pem")
		}, "authority.passphraseFile"},
		"passphrase for everyone": {func(t *testing.T, cfg *keys.Config) string {
			write(t, cfg.PassphraseFile, []byte(passphrase), 0o644)
			return keys.URI("root.pem")
		}, "can be read by everyone"},
		"key for everyone": {func(t *testing.T, cfg *keys.Config) string {
			write(t, filepath.Join(cfg.Dir, "root.pem"), text, 0o604)
			return keys.URI("root.pem")
		}, "chmod 600"},
		"key that everyone can change": {func(t *testing.T, cfg *keys.Config) string {
			write(t, filepath.Join(cfg.Dir, "root.pem"), text, 0o602)
			return keys.URI("root.pem")
		}, "chmod 600"},
		"a huge file": {func(t *testing.T, cfg *keys.Config) string {
			write(t, filepath.Join(cfg.Dir, "root.pem"), make([]byte, 1<<20), 0o600)
			return keys.URI("root.pem")
		}, "more than 65536 bytes"},
		"a folder": {func(_ *testing.T, cfg *keys.Config) string { return "softkms:path=" + cfg.Dir }, "no regular file"},
		"a pipe": {func(t *testing.T, cfg *keys.Config) string {
			if err := syscall.Mkfifo(filepath.Join(cfg.Dir, "pipe"), 0o600); err != nil {
				t.Fatal(err)
			}
			return keys.URI("pipe")
		}, "no regular file"},
		"no file":          {func(*testing.T, *keys.Config) string { return keys.URI("none.pem") }, "no such file"},
		"no path":          {func(*testing.T, *keys.Config) string { return "softkms:" }, "names no file"},
		"unknown manager":  {func(*testing.T, *keys.Config) string { return "papyrus:path=root.pem" }, "papyrus"},
		"no URI":           {func(*testing.T, *keys.Config) string { return "" }, "no URI of the form"},
		"manager not here": {func(*testing.T, *keys.Config) string { return "awskms:key-id=1" }, "no key manager"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := folder(t)
			uri := tt.change(t, &cfg)
			_, err := open(t, cfg).Open(t.Context(), uri, certificate(t, key))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v, want %q", err, tt.want)
			}
			for _, secret := range []string{passphrase, hex.EncodeToString(pkcs8), "donkey", string(clear)} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error gives a secret away: %v", err)
				}
			}
		})
	}
}

// Keys that no authority may have are refused when they are opened.
func TestOpenRefusesWeakKeys(t *testing.T) {
	t.Parallel()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{
		"P-521": catest.Curve(t, elliptic.P521()), "RSA-2048": catest.RSA(t, 2048), "Ed25519": ed,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := folder(t)
			text, err := keys.Seal(key, []byte(passphrase))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(cfg.Dir, "root.pem"), text, 0o600)
			if _, err := open(t, cfg).Open(t.Context(), keys.URI("root.pem"), &x509.Certificate{PublicKey: key.Public()}); err == nil || !strings.Contains(err.Error(), "not supported") {
				t.Errorf("opened: %v", err)
			}
		})
	}
}

func TestOpenWantsTheKeyOfTheCertificate(t *testing.T) {
	t.Parallel()
	key, _ := sealed()
	cfg, td := folder(t), attesttest.Domain(t, "cluster.local")
	own := catest.Certify(t, ca.Root, td, key, ca.Parent{}, time.Hour, time.Now())
	other := catest.Certify(t, ca.Root, td, catest.Key(t), ca.Parent{}, time.Hour, time.Now())
	if _, err := open(t, cfg).Open(t.Context(), keys.URI("root.pem"), own); err != nil {
		t.Error(err)
	}
	if _, err := open(t, cfg).Open(t.Context(), keys.URI("root.pem"), other); err == nil || !strings.Contains(err.Error(), "not the key of") {
		t.Errorf("a key was opened for another's certificate: %v", err)
	}
}

func TestNewPassphrase(t *testing.T) {
	t.Parallel()
	a, b := keys.NewPassphrase(), keys.NewPassphrase()
	if bytes.Equal(a, b) || len(a) != 44 || a[43] != '\n' {
		t.Errorf("passphrases of %d bytes", len(a))
	}
	file := filepath.Join(t.TempDir(), "passphrase")
	write(t, file, a, 0o600)
	if got, err := keys.Passphrase(file); err != nil || !bytes.Equal(got, a[:43]) {
		t.Errorf("read back: %v", err)
	}
}
