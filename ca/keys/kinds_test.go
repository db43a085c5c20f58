package keys_test

import (
	"context"
	"crypto"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"go.step.sm/crypto/kms/apiv1"

	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/keys"
)

// kms is a kind of key manager that a build adds: what its package would
// register.
type kms struct {
	apiv1.KeyManager
	keys   map[string]crypto.Signer
	opened atomic.Int32
	away   atomic.Bool
}

func (k *kms) CreateSigner(req *apiv1.CreateSignerRequest) (crypto.Signer, error) {
	if key := k.keys[req.SigningKey]; key != nil && !k.away.Load() {
		return key, nil
	}
	return nil, apiv1.NotFoundError{}
}

func (k *kms) GetPublicKey(req *apiv1.GetPublicKeyRequest) (crypto.PublicKey, error) {
	key, err := k.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: req.Name})
	if err != nil {
		return nil, err
	}
	return key.Public(), nil
}

func (k *kms) DeleteKey(req *apiv1.DeleteKeyRequest) error {
	delete(k.keys, req.Name)
	return nil
}

func (k *kms) Close() error { panic("it has lost count") }

// A build that adds a package has its kind of KMS, with the same rules: the key
// of the certificate, signatures that verify, a failure that is met by opening
// anew, a library whose panic ends nothing.
func TestOtherKinds(t *testing.T) {
	t.Parallel()
	key, other := catest.Key(t), catest.Key(t)
	service := &kms{keys: map[string]crypto.Signer{"vault:key=a": key, "vault:key=b": other}}
	apiv1.Register("vault", func(context.Context, apiv1.Options) (apiv1.KeyManager, error) {
		service.opened.Add(1)
		return service, nil
	})
	s := open(t, keys.Config{Dir: t.TempDir()})
	if err := keys.CheckURI("vault:key=a"); err == nil || !strings.Contains(err.Error(), "not in vault") {
		t.Errorf("keys are made there: %v", err)
	}
	cert := certificate(t, key)
	signer, err := s.Open(t.Context(), "vault:key=a", cert)
	if err != nil {
		t.Fatal(err)
	}
	sum := make([]byte, 32)
	for range 2 {
		if _, err := signer.Sign(nil, sum, crypto.SHA256); err != nil {
			t.Fatal(err)
		}
	}
	if n := service.opened.Load(); n != 1 {
		t.Errorf("it was opened %d times", n)
	}
	if _, err := s.Open(t.Context(), "vault:key=b", cert); err == nil || !strings.Contains(err.Error(), "not the key of") {
		t.Errorf("another's key was opened: %v", err)
	}
	service.keys["vault:key=a"] = other // swapped under its name: no signature of it gets out
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "lost count") {
		t.Errorf("closed: %v", err)
	}
	if _, err := signer.Sign(nil, sum, crypto.SHA256); err == nil {
		t.Error("it signs with another key")
	}
	if err := s.Destroy(t.Context(), "vault:key=a", cert); err == nil {
		t.Error("another's key was destroyed")
	}
	service.keys["vault:key=a"] = key
	if err := s.Destroy(t.Context(), "vault:key=a", cert); err != nil || len(service.keys) != 1 {
		t.Errorf("destroyed: %v", err)
	}
	if _, err := signer.Sign(nil, sum, crypto.SHA256); !errors.Is(err, apiv1.NotFoundError{}) {
		t.Errorf("a destroyed key: %v", err)
	}
}
