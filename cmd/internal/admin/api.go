package admin

import (
	"context"
	"time"

	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// SocketName is the name of the socket in the state directory.
const SocketName = "admin.sock"

// Rotation is what the socket steers. *rotate.Runner is the real one.
type Rotation interface {
	Status(ctx context.Context) (rotate.Status, error)
	Start(ctx context.Context, who string) error
	Activate(ctx context.Context, who string, force rotate.Force) error
	Retire(ctx context.Context, who, root string, force rotate.Force) error
	Abort(ctx context.Context, who string) error
	Trust(ctx context.Context, who string, der []byte) error
	Untrust(ctx context.Context, who, root string, force rotate.Force) error
	Pause(ctx context.Context, who string) error
	Resume(ctx context.Context, who string) error
	RunAll(ctx context.Context, who string) error
}

// Status is the answer of GET /v1/status: everything on one screen.
type Status struct {
	At         time.Time      `json:"at"`
	Ready      bool           `json:"ready"` // all conditions hold
	Facts      Facts          `json:"facts"`
	Conditions []Condition    `json:"conditions"`
	Rotation   RotationStatus `json:"rotation"`
}

// RotationStatus is the answer of GET /v1/rotation, and of each command: how the
// rotation stands after it.
type RotationStatus struct {
	rotate.Status
	// Error says why there is no more to tell than what this process knows, ""
	// where there is.
	Error string `json:"error,omitempty"`
}

// Condition is one thing that readiness asks.
type Condition struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	Text  string `json:"text,omitempty"` // why not
}

// Facts is what a person wants to know of the server beside the rotation. What
// is not known stays zero and is not shown.
type Facts struct {
	Version     string    `json:"version,omitempty"`
	TrustDomain string    `json:"trustDomain,omitempty"`
	Cluster     string    `json:"cluster,omitempty"`
	Replica     string    `json:"replica,omitempty"`
	Started     time.Time `json:"started,omitzero"`
	// ImageGate is disabled, audit or enforce.
	ImageGate string `json:"imageGate,omitempty"`
	// Issuing is the issuing CA's key id in hex, IssuingUntil its end.
	Issuing      string    `json:"issuing,omitempty"`
	IssuingUntil time.Time `json:"issuingUntil,omitzero"`
	// ServingUntil is the end of our own certificate at the mesh port.
	ServingUntil time.Time `json:"servingUntil,omitzero"`
	// ViewAge is how old the view of the cluster is, in seconds; nil: there is
	// none yet.
	ViewAge *float64 `json:"viewAgeSeconds,omitempty"`
	// OutageTolerance is how long the mesh goes on without us, in seconds: half of
	// a leaf's default life.
	OutageTolerance float64 `json:"outageToleranceSeconds,omitempty"`
	// LedgerUsage is the part of ledger.maxBytes that is in use, from 0 to 1.
	LedgerUsage *float64 `json:"ledgerUsage,omitempty"`
	// More are the lines of other parts, in the order in which they are shown.
	More []Line `json:"more,omitempty"`
}

// Line is one more fact.
type Line struct {
	Name string `json:"name"` // at most 13 characters fit its column
	Text string `json:"text"`
	Bad  bool   `json:"bad,omitempty"` // it wants a person
}

// Action is a command of the rotation, and the last part of its route.
type Action string

// The commands.
const (
	Start    Action = "start"
	Activate Action = "activate"
	Retire   Action = "retire"
	Abort    Action = "abort"
	Trust    Action = "trust"
	Untrust  Action = "untrust"
	Pause    Action = "pause"
	Resume   Action = "resume"
	Run      Action = "run"
)

// Order is the body of POST /v1/rotation/{action}. What the action does not take
// is refused.
type Order struct {
	Root        string `json:"root,omitempty"`        // retire, untrust: rotate.RootStatus.ID
	Certificate string `json:"certificate,omitempty"` // trust: one root in PEM
	// Force passes a gate that is shut (activate, retire, untrust).
	Force *Force `json:"force,omitempty"`
}

// Force says why a gate is passed that is shut.
type Force struct {
	Reason string `json:"reason"`
}

// fault is the body of every answer that is not 200.
type fault struct {
	Why  string `json:"why"`
	Mend string `json:"mend,omitempty"`
	ID   string `json:"id,omitempty"` // finds the line in the log
}
