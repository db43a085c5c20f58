package attest

import (
	"errors"
	"fmt"
)

// DenyError is a refusal, and the only error by which callers branch.
type DenyError struct {
	Reason Reason
	// Object is the caller's own object that the refusal is about (a pod, an
	// image). It may be told to a caller that has proved who it is.
	Object string
	// Detail is for log and ledger. It never leaves.
	Detail string
}

// Deny makes a refusal. Detail is formatted like fmt.Sprintf.
func Deny(reason Reason, object, format string, args ...any) *DenyError {
	return &DenyError{Reason: reason, Object: object, Detail: fmt.Sprintf(format, args...)}
}

// Error returns the whole text, Detail included: for log and ledger only.
// [DenyError.Public] is what a caller may read.
func (e *DenyError) Error() string {
	s := e.Reason.String()
	if e.Object != "" {
		s += ": " + e.Object
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Public returns what a proven caller may be told: reason, object and mend.
func (e *DenyError) Public() string {
	s := e.Reason.String()
	if e.Object != "" {
		s += ": " + e.Object
	}
	return s + ": " + e.Reason.Mend()
}

// DenialOf finds the refusal in err. An error that is none becomes an
// InternalError: unknown trouble is never a grant, and never the caller's
// fault.
func DenialOf(err error) *DenyError {
	var d *DenyError
	if errors.As(err, &d) {
		return d
	}
	return &DenyError{Reason: InternalError, Detail: err.Error()}
}
