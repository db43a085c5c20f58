package journal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// NewRecord makes the record that follows state. Of body, the caller sets Time,
// TrustDomain, By and what happened.
func NewRecord(state State, body Body, signers ...Signer) (Record, error) {
	body.Format, body.OldestReader = Format, 1
	body.Number, body.Previous = state.Number+1, state.Head
	raw, err := json.Marshal(body)
	if err != nil {
		return Record{}, fmt.Errorf("encoding journal record: %w", err)
	}
	rec := Record{Body: raw}
	sum := sha256.Sum256(raw)
	for _, s := range signers {
		value, err := s.Key.Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			return Record{}, fmt.Errorf("signing journal record: %w", err)
		}
		rec.Signatures = append(rec.Signatures, Signature{s.Root, value})
	}
	// What does not replay would break the chain for ever.
	if _, err := apply(state, rec); err != nil {
		return Record{}, fmt.Errorf("making journal record: %w", err)
	}
	return rec, nil
}

// Replay verifies records from the first and returns the state they make.
func Replay(records []Record) (State, error) {
	var s State
	for i, rec := range records {
		next, err := apply(s, rec)
		if err != nil {
			return State{}, fmt.Errorf("replaying journal record %d: %w", i+1, err)
		}
		s = next
	}
	return s, nil
}

func apply(s State, rec Record) (State, error) {
	b, err := decode(rec.Body)
	if err != nil {
		return State{}, err
	}
	first := s.Number == 0
	switch {
	case first && b.Folded == nil && (b.Number != 1 || b.Previous != ""):
		return State{}, fmt.Errorf("it is number %d, and nothing comes before it", b.Number)
	case !first && (b.Number != s.Number+1 || b.Previous != s.Head):
		return State{}, fmt.Errorf("it does not follow record %d", s.Number)
	case !first && b.TrustDomain != s.TrustDomain:
		return State{}, fmt.Errorf("it is of trust domain %q, not %q", b.TrustDomain, s.TrustDomain)
	}
	next, err := applyEvent(s, b)
	if err != nil {
		return State{}, err
	}
	if err := verify(s, next, b, rec); err != nil {
		return State{}, err
	}
	sum := sha256.Sum256(rec.Body)
	next.Number, next.Head, next.TrustDomain = b.Number, hex.EncodeToString(sum[:]), b.TrustDomain
	next.heads[b.Number] = next.Head
	if b.Folded != nil {
		b.Folded.remember(b.Number, b.Previous, next.heads)
	}
	return next, nil
}

// decode refuses a record of a later format before it looks at anything else.
func decode(raw []byte) (Body, error) {
	var version struct{ Format, OldestReader int }
	if err := json.Unmarshal(raw, &version); err != nil {
		return Body{}, fmt.Errorf("decoding: %w", err)
	}
	if version.Format < 1 || version.OldestReader < 1 || version.OldestReader > Format {
		return Body{}, fmt.Errorf("format %d needs a reader of at least %d, this release reads up to %d: use a newer release", version.Format, version.OldestReader, Format)
	}
	var b Body
	dec := json.NewDecoder(bytes.NewReader(raw))
	// A newer format that this reader may read has fields that it may not know;
	// one of its own has none.
	if version.Format <= Format {
		dec.DisallowUnknownFields()
	}
	if err := dec.Decode(&b); err != nil {
		return Body{}, fmt.Errorf("decoding: %w", err)
	}
	return b, nil
}

// verify wants the signature of the root that was active before the record, of
// the one that is active after it, and of one whose key it says is ours.
func verify(before, after State, b Body, rec Record) error {
	need := map[string]Root{}
	for _, s := range []State{before, after} {
		if root, ok := s.ActiveRoot(); ok {
			need[root.ID] = root
		}
	}
	if b.Founded != nil {
		need[b.Founded.ID] = *b.Founded
	}
	if b.Added != nil && b.Added.Phase == Prepared {
		need[b.Added.ID] = *b.Added
	}
	if len(need) == 0 {
		return errors.New("no root is there to have signed it")
	}
	sum := sha256.Sum256(rec.Body)
	for id, root := range need {
		cert, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			return fmt.Errorf("root %s: %w", id, err)
		}
		if hex.EncodeToString(cert.SubjectKeyId) != id {
			return fmt.Errorf("root %s has a certificate with another key identifier", id)
		}
		i := slices.IndexFunc(rec.Signatures, func(s Signature) bool { return s.Root == id })
		if i < 0 || !verifySignature(cert.PublicKey, sum[:], rec.Signatures[i].Value) {
			return fmt.Errorf("it lacks a good signature of root %s", id)
		}
	}
	return nil
}

func verifySignature(pub crypto.PublicKey, digest, value []byte) bool {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, value)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest, value) == nil
	}
	return false
}
