package ra

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ca/hallmark/attest"
)

const (
	// messageAhead is what is set aside for a message before it has come: all of
	// nearly every one. Larger ones get more as they come.
	messageAhead = 64 << 10
	// messagePiece is read at once. It never widens the stream's window, as
	// asking for a whole message does, and what it came in is free at once:
	// frames of one byte each would take fifty times their content.
	messagePiece = 16 << 10
)

// pieces is what gRPC's own side of a stream can do; its interface does not
// name it.
type pieces interface {
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
}

// messages is a stream of messages that are bounded in time and in what half of
// one can hold: gRPC reads without a clock, and sets aside what a header claims.
// Messages are not compressed: no answer of ours ever says that they may be.
type messages struct {
	grpc.ServerStream
	from  pieces
	bound time.Duration
}

// messagesOf wraps a client's stream. bound is within what each message must end;
// zero is for calls that have one answer, which have a deadline as a whole.
func messagesOf(stream grpc.ServerStream, bound time.Duration) (*messages, error) {
	from, ok := grpc.ServerTransportStreamFromContext(stream.Context()).(pieces)
	if !ok {
		return nil, errors.New("reading stream: its transport cannot be read piece by piece")
	}
	return &messages{stream, from, bound}, nil
}

// RecvMsg implements [grpc.ServerStream]. An error ends the stream; one that the
// client's message is at fault for is an *attest.DenyError.
func (m *messages) RecvMsg(into any) error {
	var header [5]byte
	if err := m.from.ReadMessageHeader(header[:]); err != nil {
		return cut(err)
	}
	length := binary.BigEndian.Uint32(header[1:])
	switch {
	case header[0] != 0:
		return attest.Deny(attest.RequestMalformed, "", "a message is compressed, or no message")
	case length > maxMessage:
		return attest.Deny(attest.RequestTooLarge, "", "%d bytes, at most %d are read", length, maxMessage)
	}
	data, err := m.within(int(length))
	if err != nil {
		return err
	}
	if err := (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, into); err != nil {
		return attest.Deny(attest.RequestMalformed, "", "decoding message: %v", err)
	}
	return nil
}

// within reads a message of length. Only the stream's end ends a read, so one
// that is late is left to it: the error makes the handler return.
func (m *messages) within(length int) ([]byte, error) {
	if m.bound == 0 {
		return m.read(length)
	}
	type read struct {
		data []byte
		err  error
	}
	done := make(chan read, 1)
	go func() {
		data, err := m.read(length)
		done <- read{data, err}
	}()
	timer := time.NewTimer(m.bound)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.data, r.err
	case <-timer.C:
		return nil, attest.Deny(attest.RequestMalformed, "", "a message of %d bytes did not end within %s", length, m.bound)
	}
}

func (m *messages) read(length int) ([]byte, error) {
	data := make([]byte, 0, min(length, messageAhead))
	for len(data) < length {
		piece, err := m.from.Read(min(length-len(data), messagePiece))
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, cut(err)
		}
		if need := len(data) + piece.Len(); need > cap(data) {
			data = append(make([]byte, 0, min(length, 2*cap(data))), data...)
		}
		for _, b := range piece {
			data = append(data, b.ReadOnlyData()...)
		}
		piece.Free()
	}
	return data, nil
}

// cut is what an error of the transport means: the client's orderly end, an end
// in the middle of a message, or whatever ended the stream.
func cut(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return attest.Deny(attest.RequestMalformed, "", "the stream ended within a message")
	case errors.Is(err, io.EOF):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), status.Code(err) != codes.Unknown:
		return err
	}
	return status.Errorf(codes.Unavailable, "reading stream: %v", err)
}
