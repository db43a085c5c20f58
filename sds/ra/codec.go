package ra

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec "proto"
	"google.golang.org/grpc/mem"
)

// Encoded is a message that is on the wire already, in pieces that are sent one
// behind the other. The pieces may be shared by any number of messages and must
// not be changed.
type Encoded [][]byte

// Decoder is a message that reads itself. data is its own only during the call.
// What is wrong with it must be kept and told by the handler: an error out of
// here would leave as Internal, before the handler has seen it.
type Decoder interface{ Decode(data []byte) }

// codec is Protocol Buffers, but for messages that encode or decode themselves.
type codec struct{}

var protobuf = encoding.GetCodecV2("proto")

func (codec) Name() string { return protobuf.Name() }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	pieces, ok := v.(Encoded)
	if !ok {
		return protobuf.Marshal(v)
	}
	out := make(mem.BufferSlice, len(pieces))
	for i, piece := range pieces {
		out[i] = mem.SliceBuffer(piece)
	}
	return out, nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	d, ok := v.(Decoder)
	if !ok {
		return protobuf.Unmarshal(data, v)
	}
	if len(data) == 1 {
		d.Decode(data[0].ReadOnlyData())
		return nil
	}
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	d.Decode(whole.ReadOnlyData())
	return nil
}
