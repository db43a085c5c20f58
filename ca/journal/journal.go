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
	KeyURI      string    `json:"keyURI,omitempty"` // none: it is only trusted
	Phase       Phase     `json:"phase"`
	Since       time.Time `json:"since"` // of the phase
	// Sequence is that of the first bundle that held it, 0 before.
	Sequence uint64 `json:"sequence,omitempty"`
	// Destroyed tells when the key of a retired root was destroyed.
	Destroyed *time.Time `json:"destroyed,omitempty"`
}

// IssuingCA is one issuing CA, journalled before its first use.
type IssuingCA struct {
	ID          string    `json:"id"` // subject key identifier, hex
	Certificate []byte    `json:"certificate"`
	Replica     string    `json:"replica"`
	Root        string    `json:"root"` // Root.ID
	NotAfter    time.Time `json:"notAfter"`
	// Serving: it signs our own serving certificate alone, under a root that is
	// draining, for clients that trust no newer one.
	Serving bool `json:"serving,omitempty"`
	// Tainted says why it must not be used any more, "" where it may.
	Tainted string `json:"tainted,omitempty"`
}

// Body is what a record says: exactly one of its pointers is set.
type Body struct {
	Format       int        `json:"format"`
	OldestReader int        `json:"oldestReader"`
	Number       uint64     `json:"number"` // from 1, without gaps
	Previous     string     `json:"previous,omitempty"`
	Time         time.Time  `json:"time"`
	TrustDomain  string     `json:"trustDomain"`
	By           string     `json:"by"`                // who asked for it
	Founded      *Root      `json:"founded,omitempty"` // the first root, active at once
	Added        *Root      `json:"added,omitempty"`   // another one: prepared, or trusted
	Step         *Step      `json:"step,omitempty"`
	Issuing      *IssuingCA `json:"issuing,omitempty"`
	Taint        *Taint     `json:"taint,omitempty"`
	Course       *Course    `json:"course,omitempty"`
	Destroyed    *string    `json:"destroyed,omitempty"` // Root.ID: its key is gone
	Folded       *Folded    `json:"folded,omitempty"`
}

// Step moves a root to its next phase. To Active, it moves the one that was
// active to Draining as well.
type Step struct {
	Root   string  `json:"root"` // Root.ID
	To     Phase   `json:"to"`
	Passed *Passed `json:"passed,omitempty"`
}

// Passed says that a gate was not waited for, or not by all.
type Passed struct {
	Reason string   `json:"reason"`           // of the person who forced it, "" where nobody did
	Count  int      `json:"count"`            // consumers that were behind
	Behind []string `json:"behind,omitempty"` // the first of them, by name
}

// MaxBehind bounds the names in a [Passed].
const MaxBehind = 100

// Taint says that an issuing CA must not be used any more.
type Taint struct {
	Issuing string `json:"issuing"` // IssuingCA.ID
	Reason  string `json:"reason"`
}

// Course is how a rotation goes on: by steps of a person, by itself, or not at
// all.
type Course string

// The courses.
const (
	Manual Course = "manual"
	Run    Course = "run"
	Paused Course = "paused"
)

// Folded replaces all records before it, which it repeats but for what has
// expired. It continues their chain.
type Folded struct {
	Roots    []Root      `json:"roots"`
	Issuing  []IssuingCA `json:"issuing"`
	Sequence uint64      `json:"sequence"`
	Course   Course      `json:"course,omitempty"`
	// Heads are the hashes of the records before the last one that is replaced,
	// the newest first: whoever has seen one of them can tell that this is its
	// continuation.
	Heads []string `json:"heads,omitempty"`
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
	Course      Course // of the rotation; Manual at first
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

// Root returns the root of that ID.
func (s *State) Root(id string) (Root, bool) {
	i := slices.IndexFunc(s.Roots, func(r Root) bool { return r.ID == id })
	if i < 0 {
		return Root{}, false
	}
	return s.Roots[i], true
}

// In returns the roots of a phase, the oldest first.
func (s *State) In(phase Phase) []Root {
	var out []Root
	for _, r := range s.Roots {
		if r.Phase == phase {
			out = append(out, r)
		}
	}
	return out
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
	return false // of another history, or too old to tell
}

// Certificates parses the certificates of the bundle: of all roots that are
// trusted now.
func (s *State) Certificates() ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, r := range s.Roots {
		if !r.Phase.InBundle() {
			continue
		}
		cert, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return nil, fmt.Errorf("parsing root %s of the journal: %w", r.ID, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}
