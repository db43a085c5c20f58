package kube_test

import (
	"crypto/rand"
	"crypto/rsa"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/kube"
)

func rsaKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// FuzzToken: no text makes the reader of tokens fail otherwise than by a reason,
// or pass for a token that the key did not sign; no claims, signed, give a Bound
// that lacks a part.
func FuzzToken(f *testing.F) {
	key := newKey(f, "key-1")
	f.Add("eyJhbGciOiJFUzI1NiIsImtpZCI6ImtleS0xIn0.e30.AAAA", `{}`)
	f.Fuzz(func(t *testing.T, token, claims string) {
		now := time.Unix(1_700_000_000, 0)
		if b, err := kube.CheckToken(token, key.public(), now, []string{"istio-ca"}); err == nil {
			t.Fatalf("taken: %+v", b)
		} else if attest.DenialOf(err).Reason.Kind() != attest.KindUnauthenticated {
			t.Fatalf("refused by %v", err)
		}
		signed, ok := key.signBytes([]byte(claims))
		if !ok {
			return
		}
		b, err := kube.CheckToken(signed, key.public(), now, []string{"istio-ca"})
		if err != nil {
			if attest.DenialOf(err).Reason.Kind() != attest.KindUnauthenticated {
				t.Fatalf("refused by %v", err)
			}
			return
		}
		if b.Namespace == "" || b.ServiceAccount == "" || b.ServiceAccountUID == "" || b.PodName == "" || b.PodUID == "" || !b.Expires.After(now) || b.Reviewed {
			t.Fatalf("claims %q gave %+v", claims, b)
		}
	})
}
