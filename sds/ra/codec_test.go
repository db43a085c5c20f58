package ra_test

import (
	"bytes"
	"strconv"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
)

// raw keeps a copy of what it was given.
type raw struct{ data []byte }

func (r *raw) Decode(data []byte) { r.data = bytes.Clone(data) }

// TestCodec sends messages of many sizes each way, in pieces and whole.
func TestCodec(t *testing.T) {
	t.Parallel()
	w, _, running := serve(t, handlers{call: echo, stream: func(_ any, stream grpc.ServerStream) error {
		for {
			var in raw
			if stream.RecvMsg(&in) != nil {
				return nil //nolint:nilerr // the client's end
			}
			half := len(in.data) / 2
			if err := stream.SendMsg(ra.Encoded{in.data[:half], nil, in.data[half:]}); err != nil {
				return err
			}
		}
	}}, nil)
	stream, err := w.Dial(t, running.Addr).NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, streamMethod)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 100, 20_000, 70_000, 250_000} {
		want := wrapperspb.Bytes(bytes.Repeat([]byte(strconv.Itoa(size%7)), size))
		if err := stream.SendMsg(want); err != nil {
			t.Fatal(err)
		}
		var got wrapperspb.BytesValue
		if err := stream.RecvMsg(&got); err != nil || !proto.Equal(want, &got) {
			t.Errorf("%d bytes come back as %d: %v", size, len(got.GetValue()), err)
		}
	}
}

// TestMessageTooLarge: what is not read is counted by the front end all the same.
func TestMessageTooLarge(t *testing.T) {
	t.Parallel()
	denied := make(chan *attest.DenyError, 1)
	w, _, running := serve(t, handlers{call: echo, stream: func(_ any, stream grpc.ServerStream) error {
		err := stream.RecvMsg(&raw{})
		denied <- ra.Received(err)
		return err
	}}, nil)
	stream, err := w.Dial(t, running.Addr).NewStream(ratest.With(t.Context(), "x"), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, streamMethod)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(wrapperspb.Bytes(make([]byte, 600<<10))); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&wrapperspb.BytesValue{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("answer is %v", err)
	}
	if deny := <-denied; deny == nil || deny.Reason != attest.RequestTooLarge {
		t.Errorf("refused by %v", deny)
	}
}
