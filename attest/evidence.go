package attest

import "context"

// Verdict is what was decided of one image.
type Verdict uint8

// The verdicts. VerdictUnchecked: the gate is disabled for the namespace.
// VerdictWouldDeny: the gate only audits (or the policy only warns), and would
// have refused.
const (
	VerdictUnchecked Verdict = iota
	VerdictPass
	VerdictWouldDeny
)

// String returns the name used in records.
func (v Verdict) String() string {
	return [...]string{"unchecked", "pass", "would-deny"}[v]
}

// ImageEvidence is the decision on one container's image, as it goes into the
// record of an issuance.
type ImageEvidence struct {
	Container string
	Kind      ContainerKind
	Image     string // as the spec names it
	Digest    string // sha256:…; what was judged
	Verdict   Verdict
	Reason    Reason // why it would be denied; zero on a pass
	Policies  []string
	Authority string // POLICY/AUTHORITY that passed
	Signer    string // who signed, as the authority names it
	// Provisional: the digest was resolved from a tag, and nothing has yet
	// shown what runs. The pod gets the minimum lifetime.
	Provisional bool
}

// ImageGate decides whether every image of every given pod may run.
//
// Check MUST return one entry for each container that counts, or an error; a
// [*DenyError] of kind Forbidden is a verdict, one of kind Unavailable says
// that none could be reached in time, and MUST never be taken for a pass. It
// MUST answer by ctx's deadline and be safe for concurrent use.
type ImageGate interface {
	Check(ctx context.Context, pods []*Pod) ([]ImageEvidence, error)
}
