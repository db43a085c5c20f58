package journal

// Phase is where a root stands in its life.
type Phase string

// The phases, in the order of a life.
//
//	prepared → published → active → draining → retired
//	    └──────────┴→ aborted          trusted ──┘
const (
	Prepared  Phase = "prepared"  // known to the journal, trusted by nobody
	Published Phase = "published" // in the bundle, and signs nothing
	Active    Phase = "active"    // signs issuing CAs; one in a trust domain
	Draining  Phase = "draining"  // in the bundle, and signs nothing new
	Retired   Phase = "retired"   // out of the bundle; its key is kept for a time
	Aborted   Phase = "aborted"   // out before it ever signed
	Trusted   Phase = "trusted"   // in the bundle, and never ours to sign with
)

// InBundle tells whether a root of the phase is to be trusted.
func (p Phase) InBundle() bool {
	return p == Published || p == Active || p == Draining || p == Trusted
}

// steps are the moves that a [Step] may make. Active → draining is no step of
// its own: it comes with another root's activation.
var steps = map[Phase][]Phase{
	Prepared:  {Published, Aborted},
	Published: {Active, Aborted},
	Draining:  {Retired},
	Trusted:   {Retired},
}
