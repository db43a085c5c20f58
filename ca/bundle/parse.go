package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/go-jose/go-jose/v4"
	kjson "sigs.k8s.io/json"

	"github.com/hallmark-ca/hallmark/attest"
)

// useX509 marks an element that holds a root of X.509-SVIDs.
const useX509 = "x509-svid"

// document is the JWK Set with SPIFFE's two members. Elements stay unread until
// they have been counted.
type document struct {
	Keys        []json.RawMessage `json:"keys"`
	Sequence    *uint64           `json:"spiffe_sequence"`
	RefreshHint *int64            `json:"spiffe_refresh_hint"`
}

// Read is [Parse] of at most [MaxBytes] of r.
func Read(td attest.TrustDomain, r io.Reader) (Bundle, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return Bundle{}, fmt.Errorf("reading bundle: %w", err)
	}
	return Parse(td, data)
}

// Parse reads the document of td. A document without roots is one: it says that
// nothing of td is to be trusted any more (section 4.1.3).
func Parse(td attest.TrustDomain, data []byte) (Bundle, error) {
	b, err := parse(data)
	if err != nil {
		return Bundle{}, fmt.Errorf("reading bundle: %w", err)
	}
	b.TrustDomain = td
	return b, nil
}

func parse(data []byte) (Bundle, error) {
	if len(data) > MaxBytes {
		return Bundle{}, fmt.Errorf("more than %d bytes", MaxBytes)
	}
	var doc document
	if err := unmarshal(data, &doc); err != nil {
		return Bundle{}, err
	}
	switch {
	case doc.Keys == nil:
		return Bundle{}, errors.New("there are no keys (section 4.1.3 wants the member)")
	case len(doc.Keys) > MaxKeys:
		return Bundle{}, fmt.Errorf("%d keys, at most %d are allowed", len(doc.Keys), MaxKeys)
	}
	var b Bundle
	if doc.Sequence != nil {
		b.Sequence = *doc.Sequence
	}
	if doc.RefreshHint != nil {
		if *doc.RefreshHint < 0 || *doc.RefreshHint > int64(MaxHint/time.Second) {
			return Bundle{}, fmt.Errorf("a refresh hint of %d seconds, at most %d are allowed", *doc.RefreshHint, int64(MaxHint/time.Second))
		}
		b.RefreshHint = time.Duration(*doc.RefreshHint) * time.Second
	}
	seen := map[string]bool{}
	for i, raw := range doc.Keys {
		key, err := parseKey(raw)
		if err != nil {
			return Bundle{}, fmt.Errorf("key %d: %w", i, err)
		}
		if key == nil || seen[string(key.Certificates[0].Raw)] {
			continue
		}
		seen[string(key.Certificates[0].Raw)] = true
		b.Roots = append(b.Roots, key.Certificates[0])
	}
	return b, nil
}

// parseKey returns nil for an element that a reader is to pass over: one of an
// unknown type or use (section 4.2.1 and 4.2.2).
func parseKey(raw []byte) (*jose.JSONWebKey, error) {
	var head struct {
		Type  string   `json:"kty"`
		Use   string   `json:"use"`
		Chain []string `json:"x5c"`
	}
	if err := unmarshal(raw, &head); err != nil {
		return nil, err
	}
	if head.Use != useX509 {
		return nil, nil
	}
	switch head.Type {
	case "EC", "RSA", "OKP":
	default:
		return nil, nil
	}
	// Counted before they are decoded (X.509-SVID section 6.1.2 wants one).
	if len(head.Chain) != 1 {
		return nil, fmt.Errorf("%d certificates, want exactly one", len(head.Chain))
	}
	// This holds the key that the element names against the certificate's.
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(raw); err != nil {
		return nil, errors.New(attest.Escape(err.Error()))
	}
	if !key.IsPublic() {
		return nil, errors.New("it holds a private key")
	}
	if len(key.Certificates) != 1 {
		return nil, errors.New("it holds no certificate")
	}
	return &key, checkRoot(key.Certificates[0])
}

// unmarshal takes names as they are written, each once; those that it does not
// know are passed over.
func unmarshal(data []byte, into any) error {
	twice, err := kjson.UnmarshalStrict(data, into, kjson.DisallowDuplicateFields)
	if err == nil {
		err = errors.Join(twice...)
	}
	if err != nil {
		return errors.New(attest.Escape(err.Error()))
	}
	return nil
}
