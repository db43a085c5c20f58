package ra_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

// wire is a client that says each frame itself.
type wire struct {
	*http2.Framer
	t       *testing.T
	headers bytes.Buffer
}

// dialFrames opens a connection, and returns it with its stream 1 begun.
func dialFrames(t *testing.T, client *tls.Conn) *wire {
	t.Helper()
	w := &wire{Framer: http2.NewFramer(client, client), t: t}
	if _, err := io.WriteString(client, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	e := hpack.NewEncoder(&w.headers)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", streamMethod}, {":authority", "hallmark.test"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.headers.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *wire) data(p []byte) {
	w.t.Helper()
	if err := w.WriteData(1, false, p); err != nil {
		w.t.Fatal(err)
	}
}

// TestHalfSentMessageEnds: a message that has begun and does not end, ends its
// stream, and does not widen what the client may send. Silence between messages
// ends nothing.
func TestHalfSentMessageEnds(t *testing.T) {
	t.Parallel()
	const bound = 300 * time.Millisecond
	type end struct {
		err   error
		after time.Duration
	}
	first, ended := make(chan struct{}), make(chan end, 1)
	w, _, running := serve(t, handlers{call: echo, stream: func(_ any, stream grpc.ServerStream) error {
		if err := stream.RecvMsg(&raw{}); err != nil {
			return err
		}
		close(first)
		start := time.Now()
		err := stream.RecvMsg(&raw{})
		ended <- end{err, time.Since(start)}
		return err
	}}, func(cfg *ra.ServerConfig) { cfg.MessageTime = bound })
	client := dialFrames(t, tls.Client(dialTCP(t, running.Addr), w.TLS()))
	client.data([]byte{0, 0, 0, 0, 1, 'x'})
	<-first
	silence := time.NewTimer(2 * bound)
	defer silence.Stop()
	select {
	case e := <-ended:
		t.Fatalf("a silent stream ended: %v", e.err)
	case <-silence.C:
	}
	client.data(append([]byte{0, 0, 3, 255, 255}, make([]byte, 5000)...)) // of 256 KiB
	e := <-ended
	if deny := ra.Received(e.err); deny == nil || deny.Reason != attest.RequestMalformed || e.after < 3*bound {
		t.Errorf("it ended after %s with %v", e.after, e.err)
	}
	for {
		frame, err := client.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := frame.(*http2.WindowUpdateFrame); ok && f.StreamID == 1 {
			t.Errorf("the stream's window was widened by %d", f.Increment)
		}
		if frame.Header().StreamID == 1 && frame.Header().Flags.Has(http2.FlagDataEndStream) {
			return
		}
	}
}

// TestMessageOfSmallFrames: what comes byte by byte is one message all the same.
func TestMessageOfSmallFrames(t *testing.T) {
	t.Parallel()
	got := make(chan []byte, 2)
	w, _, running := serve(t, handlers{call: echo, stream: func(_ any, stream grpc.ServerStream) error {
		for {
			var in raw
			if err := stream.RecvMsg(&in); err != nil {
				return err
			}
			got <- in.data
		}
	}}, nil)
	client := dialFrames(t, tls.Client(dialTCP(t, running.Addr), w.TLS()))
	want := bytes.Repeat([]byte("secrets"), 1000)
	message := append([]byte{0, 0, 0, byte(len(want) >> 8), byte(len(want) & 255)}, want...)
	for _, b := range message {
		client.data([]byte{b})
	}
	client.data(append(message, message[:3]...)) // and one more behind it, in one frame
	for range 2 {
		if data := <-got; !bytes.Equal(data, want) {
			t.Errorf("%d bytes came, want %d", len(data), len(want))
		}
	}
}

// TestCutMessages: the orderly end is none of the client's faults, an end within
// a message and a compressed one are.
func TestCutMessages(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		data string
		fine bool
	}{
		"nothing": {"", true}, "half a header": {"\x00\x00", false}, "half a message": {"\x00\x00\x00\x00\x05abc", false}, "compressed": {"\x01\x00\x00\x00\x01a", false},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			w, _, running := serve(t, handlers{call: echo, stream: func(_ any, stream grpc.ServerStream) error {
				err := stream.RecvMsg(&raw{})
				ended <- err
				return err
			}}, nil)
			client := dialFrames(t, tls.Client(dialTCP(t, running.Addr), w.TLS()))
			if err := client.WriteData(1, true, []byte(c.data)); err != nil {
				t.Fatal(err)
			}
			err := <-ended
			deny := ra.Received(err)
			switch {
			case c.fine && !errors.Is(err, io.EOF):
				t.Errorf("error is %v", err)
			case !c.fine && (deny == nil || deny.Reason != attest.RequestMalformed || status.Code(ra.Status(err)) != codes.InvalidArgument):
				t.Errorf("error is %v", err)
			}
		})
	}
}
