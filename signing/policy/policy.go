package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/sigstore"
)

// Hash names the content of one policy, or of several in their order.
type Hash [sha256.Size]byte

// String returns the hash in hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Facts are what a policy reads of a pod. The labels are under the control of
// whoever writes the pod.
type Facts struct {
	Labels map[string]string
}

// Policy is one checked ClusterImagePolicy. It is immutable.
type Policy struct {
	name        string
	file        string
	warn        bool
	globs       []glob
	match       []match
	authorities []*Authority
	unusable    string
	hash        Hash
}

// Name returns metadata.name, or for what has none the file's name and the
// number of the document in it.
func (p *Policy) Name() string { return p.name }

// File returns the name of the file that the policy stands in.
func (p *Policy) File() string { return p.file }

// Warns tells whether the policy never refuses an image (mode warn).
func (p *Policy) Warns() bool { return p.warn }

// Unusable says why the policy cannot be used, or is empty. An unusable policy
// fails for every image that it names.
func (p *Policy) Unusable() string { return p.unusable }

// Authorities returns the authorities, of which any one is enough. The slice
// MUST NOT be changed.
func (p *Policy) Authorities() []*Authority { return p.authorities }

// Hash names the policy's content.
func (p *Policy) Hash() Hash { return p.hash }

func (p *Policy) names(i Image) bool {
	return slices.ContainsFunc(p.globs, func(g glob) bool { return g.match(i) })
}

func (p *Policy) covers(f Facts) bool {
	return len(p.match) == 0 || slices.ContainsFunc(p.match, func(m match) bool { return m.selector.matches(f.Labels) })
}

// Action is what a static authority does.
type Action uint8

// The actions. StaticNone: the authority is not static.
const (
	StaticNone Action = iota
	StaticPass
	StaticFail
)

// Authority is one who may vouch for an image. It is immutable.
type Authority struct {
	name    string
	key     *sigstore.Key
	static  Action
	message string
	format  evidence.Format // "" for both
}

// Name returns the authority's name, authority-N where the policy gives none.
func (a *Authority) Name() string { return a.name }

// Key returns the key that must have signed, or nil for a static authority.
func (a *Authority) Key() *sigstore.Key { return a.key }

// Static returns what a static authority does, whatever was signed.
func (a *Authority) Static() Action { return a.static }

// Message returns what a static authority that fails has to say.
func (a *Authority) Message() string { return a.message }

// Accepts tells whether the authority takes signatures in format f.
func (a *Authority) Accepts(f evidence.Format) bool { return a.format == "" || a.format == f }
