package ra

import (
	"context"
	"errors"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ca/hallmark/attest"
)

// Refusal is what every refused caller gets. It is made by [RA] alone, which
// counted and recorded it under its ID.
type Refusal struct {
	ID   string
	Deny *attest.DenyError

	proven bool // the caller has proved who it is, and may read of its objects
	pod    attest.PodRef
}

// Error returns the whole text, Detail included: for the log.
func (r *Refusal) Error() string { return r.Deny.Error() + " (id " + r.ID + ")" }

// Unwrap returns the refusal without its id.
func (r *Refusal) Unwrap() error { return r.Deny }

// GRPCStatus implements the interface by which gRPC finds an error's status, so
// that a Refusal leaves as [Status] has it, whoever returns it.
func (r *Refusal) GRPCStatus() *status.Status {
	return status.New(codeOf(r.Deny.Reason.Kind()), r.text())
}

// text is what may leave. A refusal of kind unauthenticated reads the same
// whatever its reason, so that nobody learns which check to beat next.
func (r *Refusal) text() string {
	end := " (id " + r.ID + ")"
	switch {
	case r.Deny.Reason.Kind() == attest.KindUnauthenticated:
		return "not authenticated" + end
	case !r.proven:
		return r.Deny.Reason.String() + end
	case r.Deny.Reason.Kind() == attest.KindForbidden:
		end = " (pod " + attest.Escape(r.pod.String()) + ", id " + r.ID + ")"
	}
	return attest.Escape(r.Deny.Public()) + end
}

// codeOf is the only place where a Kind becomes a code. None becomes Internal:
// clients give up on it, and there is nothing here that nobody can mend.
func codeOf(k attest.Kind) codes.Code {
	switch k {
	case attest.KindUnauthenticated:
		return codes.Unauthenticated
	case attest.KindForbidden:
		return codes.PermissionDenied
	case attest.KindInvalid:
		return codes.InvalidArgument
	case attest.KindLimited:
		return codes.ResourceExhausted
	}
	return codes.Unavailable
}

// Status turns any error of a handler into the gRPC status that leaves: a
// [*Refusal] by its Kind, a bare [*attest.DenyError] likewise but opaque, a
// context's error into its own code, a status of gRPC (from receiving or
// sending) as it is. Anything else is our fault, and its text stays here.
func Status(err error) error {
	if err == nil {
		return nil
	}
	var refusal *Refusal
	if errors.As(err, &refusal) {
		return refusal.GRPCStatus().Err()
	}
	var deny *attest.DenyError
	switch {
	case errors.As(err, &deny):
		return (&Refusal{ID: "none", Deny: deny}).GRPCStatus().Err()
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the caller has gone")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the caller's deadline has passed")
	}
	if own, ok := err.(interface{ GRPCStatus() *status.Status }); ok && own.GRPCStatus().Code() != codes.Unknown {
		return err
	}
	return status.Error(codes.Unavailable, attest.InternalError.String())
}

// Received tells what an error of receiving a message means: a refusal that
// goes to [RA.Refuse] where the message was at fault, nil where the client has
// simply gone or ended its side.
func Received(err error) *attest.DenyError {
	var deny *attest.DenyError
	if errors.As(err, &deny) {
		return deny
	}
	switch status.Code(err) {
	case codes.ResourceExhausted:
		return attest.Deny(attest.RequestTooLarge, "", "%v", err)
	case codes.Internal:
		return attest.Deny(attest.RequestMalformed, "", "%v", err)
	}
	return nil
}

// refusalOf is what is known of one refusal.
type refusalOf struct {
	id     string // "" makes one
	door   string
	caller attest.Caller // whom it is recorded of; zero if nobody proved anything
	proven bool          // caller may read of its own objects
	peer   netip.Addr
	deny   *attest.DenyError
}
