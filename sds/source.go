package sds

import (
	"context"
	"log/slog"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
)

// Source knows what the names stand for. There are two: the authority's own,
// and the one of an agent inside the pod.
type Source interface {
	// Open takes in one stream, before anything that it sent is read. It MUST
	// answer by ctx's deadline or its own, and its error MUST be one that ends
	// the call as sds/ra's Status has it.
	Open(ctx context.Context, cred attest.Credential) (Holder, error)
	// Refuse records a refusal of a stream that was not taken in, and returns
	// the error to end it with.
	Refuse(ctx context.Context, deny *attest.DenyError) error
}

// Holder is one stream's view of its proxy's secrets. None of its methods but
// Refuse may block. Only the stream's goroutine calls them.
type Holder interface {
	slog.LogValuer // names the proxy

	// Identity is the caller's own.
	Identity() attest.Identity
	// Expires tells when the credential ends, and the stream with it. Zero is
	// never.
	Expires() time.Time

	// Want tells what the stream is subscribed to: a bundle at least, and the
	// SVID where svid is set. The source sets about getting it.
	Want(svid bool)
	// SVID and Bundle return the newest that this stream may have, nil while
	// there is none.
	SVID() *SVID
	Bundle() *Bundle
	// Wake has a token whenever SVID or Bundle may return something else.
	Wake() <-chan struct{}

	// Done is closed when the source ends the stream, and Err then says why.
	// From then on SVID and Bundle return nil.
	Done() <-chan struct{}
	Err() error

	// Answered tells what the client said of one version of a name: refusal is
	// its text, escaped, and "" where it accepted.
	Answered(name, version, refusal string)
	// Unknown notes a name that stands for nothing, and tells whether it is the
	// proxy's first request for it.
	Unknown(name string) (first bool)
	// Sample tells whether a line of kind about the proxy is to be logged now, and
	// how many were left out before it: clients that come back in a loop must not
	// fill a disk.
	Sample(kind string) (leftOut uint64, ok bool)
	// Refuse records a refusal of the stream's own and returns the error to end
	// it with.
	Refuse(ctx context.Context, deny *attest.DenyError) error
	// Close lets the stream go.
	Close()
}
