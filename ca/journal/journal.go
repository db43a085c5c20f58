// Package journal keeps the authority's state: its roots, its issuing CAs and
// the sequence of its bundle, as a chain of signed records.
//
// Invariants: each record carries the hash of the one before and is signed by
// the active root (the record that founds a root also by that root itself); a
// record is used only when it is durable; a private key is never in it, only
// the URI under which it can be opened. Records carry their format and the
// oldest reader that understands them, so that an older release refuses what it
// does not know instead of misreading it.
//
// [Replay] is pure. A [Store] may be shared between goroutines.
package journal

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Format is the format of the records that this release writes, and the newest
// it reads.
const Format = 1

// Errors of a [Store].
var (
	// ErrConflict: another writer was first. Load again and decide again.
	ErrConflict = errors.New("journal has moved on")
	// ErrStateUnknown: whether the record was stored is not known until a Load
	// shows it. Nothing of it may be used until then.
	ErrStateUnknown = errors.New("outcome of the journal write is unknown")
	// ErrNoJournal: nothing was ever founded here.
	ErrNoJournal = errors.New("there is no journal: run hallmark init first")
)

// Store keeps the records.
//
// Load MUST return the verified state as it is durable. Append MUST be durable
// on return, or fail with ErrConflict, ErrStateUnknown, or an error that means
// that nothing was stored.
type Store interface {
	Load(context.Context) (State, error)
	Append(context.Context, Record) error
}

// Root is one root.
type Root struct {
	ID          string    `json:"id"` // subject key identifier, hex
	Certificate []byte    `json:"certificate"`
	KeyURI      string    `json:"keyURI"`
	Phase       Phase     `json:"phase"`
	Since       time.Time `json:"since"`
}

// Phase is where a root stands in its life.
type Phase string

// Active is the phase of the root that signs.
const Active Phase = "active"

// IssuingCA is one issuing CA, journalled before its first use.
type IssuingCA struct {
	ID          string    `json:"id"` // subject key identifier, hex
	Certificate []byte    `json:"certificate"`
	Replica     string    `json:"replica"`
	Root        string    `json:"root"` // Root.ID
	NotAfter    time.Time `json:"notAfter"`
}

// Body is what a record says: exactly one of Founded, Issuing and Folded.
type Body struct {
	Format       int        `json:"format"`
	OldestReader int        `json:"oldestReader"`
	Number       uint64     `json:"number"` // from 1, without gaps
	Previous     string     `json:"previous,omitempty"`
	Time         time.Time  `json:"time"`
	TrustDomain  string     `json:"trustDomain"`
	By           string     `json:"by"` // who asked for it
	Founded      *Root      `json:"founded,omitempty"`
	Issuing      *IssuingCA `json:"issuing,omitempty"`
	Folded       *Folded    `json:"folded,omitempty"`
}

// Folded replaces all records before it, which it repeats but for what has
// expired. It continues their chain.
type Folded struct {
	Roots    []Root      `json:"roots"`
	Issuing  []IssuingCA `json:"issuing"`
	Sequence uint64      `json:"sequence"`
}

// Record is a body as it was signed.
type Record struct {
	Body       json.RawMessage `json:"body"`
	Signatures []Signature     `json:"signatures"`
}

// Signature is by the root of that ID over the SHA-256 of the body's bytes.
type Signature struct {
	Root  string `json:"root"`
	Value []byte `json:"value"`
}

// Signer is a root's key.
type Signer struct {
	Root string // Root.ID
	Key  crypto.Signer
}

// State is the journal replayed.
type State struct {
	TrustDomain string
	Number      uint64 // of the last record
	Head        string // hash of the last record's body, hex
	Sequence    uint64 // of the bundle
	Roots       []Root
	Issuing     []IssuingCA
	// heads are the hashes by record number, as far as the records reach back.
	heads map[uint64]string
}

// ActiveRoot returns the root that signs.
func (s *State) ActiveRoot() (Root, bool) {
	i := slices.IndexFunc(s.Roots, func(r Root) bool { return r.Phase == Active })
	if i < 0 {
		return Root{}, false
	}
	return s.Roots[i], true
}

// Extends tells whether the state continues the one whose last record had that
// number and hash: if not, the journal was rolled back or replaced.
func (s *State) Extends(number uint64, head string) bool {
	if number == 0 {
		return true
	}
	if known, ok := s.heads[number]; ok {
		return known == head
	}
	// Folded away: a record after it carries on its chain, and is signed.
	return number < s.Number
}

// Certificates parses the certificates of all trusted roots.
func (s *State) Certificates() ([]*x509.Certificate, error) {
	certs := make([]*x509.Certificate, len(s.Roots))
	for i, r := range s.Roots {
		cert, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return nil, fmt.Errorf("parsing root %s of the journal: %w", r.ID, err)
		}
		certs[i] = cert
	}
	return certs, nil
}
