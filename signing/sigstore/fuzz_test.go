package sigstore_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"testing"

	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/sigstore"
)

// Only what cosign signed may pass under its key: whatever is done to the
// bundle around it, the payload is that one, to the byte.
func FuzzBundle(f *testing.F) {
	key, bundle, _, digest, _ := cosigned(f)
	signed := payloadOf(f, bundle.Bundle)
	f.Add(bundle.Bundle)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if sigstore.Verify(evidence.Signature{Format: evidence.FormatBundle, Bundle: raw}, digest, key) != nil {
			return
		}
		if got := payloadOf(t, raw); !bytes.Equal(got, signed) {
			t.Errorf("passed with the payload %q", got)
		}
	})
}

func payloadOf(t testing.TB, raw []byte) []byte {
	t.Helper()
	// Either spelling is that of protobuf's JSON.
	var b struct {
		Camel struct{ Payload string } `json:"dsseEnvelope"`
		Snake struct{ Payload string } `json:"dsse_envelope"`
	}
	must(t, json.Unmarshal(raw, &b))
	payload := b.Camel.Payload + b.Snake.Payload
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
		if p, err := enc.DecodeString(payload); err == nil {
			return p
		}
	}
	t.Fatalf("%q is no base64", payload)
	return nil
}

// Only the document that cosign signed may pass under its key.
func FuzzLegacy(f *testing.F) {
	key, _, legacy, _, digest := cosigned(f)
	f.Add(legacy.Payload, legacy.Annotations[sigNote], "")
	f.Add(legacy.Payload, legacy.Annotations[sigNote], "-----BEGIN CERTIFICATE-----")
	f.Fuzz(func(t *testing.T, payload []byte, sig, cert string) {
		s := evidence.Signature{Format: evidence.FormatLegacy, Payload: payload, Annotations: map[string]string{
			sigNote: sig, "dev.sigstore.cosign/certificate": cert,
		}}
		if sigstore.Verify(s, digest, key) != nil {
			return
		}
		if !bytes.Equal(payload, legacy.Payload) || cert != "" {
			t.Errorf("passed with the document %q and the certificate %q", payload, cert)
		}
	})
}

// The bar: at most 0.9 ms of CPU for a signature by key.
func BenchmarkVerify(b *testing.B) {
	key, bundle, legacy, bundleOf, legacyOf := cosigned(b)
	b.Run("bundle", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(b, sigstore.Verify(bundle, bundleOf, key))
		}
	})
	b.Run("legacy", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(b, sigstore.Verify(legacy, legacyOf, key))
		}
	})
}
