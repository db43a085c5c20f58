package ra_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
)

// TestStopsGracefully: the call under way is answered, the long stream ends
// itself on the sign to drain, and nobody comes in any more.
func TestStopsGracefully(t *testing.T) {
	t.Parallel()
	w := ratest.New(t, ratest.Config{})
	s := w.Server(t, func(c *ra.ServerConfig) { c.Grace = 20 * time.Second })
	entered, leave := make(chan struct{}), make(chan struct{})
	handlers{
		call: func(_ context.Context, in *wrapperspb.StringValue) (any, error) {
			close(entered)
			<-leave
			return in, nil
		},
		stream: func(_ any, stream grpc.ServerStream) error {
			if err := stream.SendMsg(wrapperspb.String("open")); err != nil {
				return err
			}
			<-s.Draining()
			return w.RA.Refuse(stream.Context(), door, attest.Caller{}, attest.Deny(attest.ShuttingDown, "", ""))
		},
	}.register(s.Registrar())
	running := ratest.Serve(t, s)
	s.SetReady(true)
	conn := w.Dial(t, running.Addr)
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, streamMethod)
	if err != nil {
		t.Fatal(err)
	}
	var message wrapperspb.StringValue
	if err := stream.RecvMsg(&message); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := call(context.Background(), conn, "x")
		answer <- err
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- running.Stop() }()
	if err := stream.RecvMsg(&message); status.Code(err) != codes.Unavailable || !strings.HasPrefix(status.Convert(err).Message(), "ShuttingDown (id ") {
		t.Errorf("the stream ends with %v", err)
	}
	select {
	case err := <-stopped:
		t.Errorf("stopped over a call under way: %v", err)
	default:
	}
	close(leave)
	if err := <-answer; err != nil {
		t.Errorf("the call under way is answered %v", err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if conn, err := net.DialTimeout("tcp", running.Addr, time.Second); err == nil {
		conn.Close()
		t.Error("the port is still open")
	}
}

// TestStopIsBounded: a stream that does not end is cut off after the grace.
func TestStopIsBounded(t *testing.T) {
	t.Parallel()
	w, _, running := serve(t, handlers{call: echo, stream: func(_ any, stream grpc.ServerStream) error {
		if err := stream.SendMsg(wrapperspb.String("open")); err != nil {
			return err
		}
		<-stream.Context().Done()
		return stream.Context().Err()
	}}, func(c *ra.ServerConfig) { c.Grace = 100 * time.Millisecond })
	stream, err := w.Dial(t, running.Addr).NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, streamMethod)
	if err != nil {
		t.Fatal(err)
	}
	var message wrapperspb.StringValue
	if err := stream.RecvMsg(&message); err != nil {
		t.Fatal(err)
	}
	if err := running.Stop(); err != nil {
		t.Error(err)
	}
	if err := stream.RecvMsg(&message); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v", err)
	}
}

// TestStuckHandlerDoesNotHoldTheProcess: Run returns, and says what is wrong.
func TestStuckHandlerDoesNotHoldTheProcess(t *testing.T) {
	t.Parallel()
	stuck, entered := make(chan struct{}), make(chan struct{})
	defer close(stuck)
	w, _, running := serve(t, handlers{call: func(context.Context, *wrapperspb.StringValue) (any, error) {
		close(entered)
		<-stuck
		return nil, context.Canceled
	}}, func(c *ra.ServerConfig) { c.Grace = 50 * time.Millisecond })
	go call(t.Context(), w.Dial(t, running.Addr), "x")
	<-entered
	if err := running.Stop(); err == nil || !strings.Contains(err.Error(), "handlers did not end") {
		t.Errorf("Run returns %v", err)
	}
}

// TestListenerFails: Run does not hide that nobody can come in.
func TestListenerFails(t *testing.T) {
	t.Parallel()
	w := ratest.New(t, ratest.Config{})
	s := w.Server(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Run(t.Context(), l); err == nil || !strings.Contains(err.Error(), "serving mesh port") {
		t.Errorf("Run returns %v", err)
	}
}

// TestAnswersOfOneCallAreBounded: a handler of a call with one answer has the
// deadline of all answers, a stream has none.
func TestAnswersOfOneCallAreBounded(t *testing.T) {
	t.Parallel()
	bounded := func(ctx context.Context) string {
		if _, ok := ctx.Deadline(); ok {
			return "bounded"
		}
		return "unbounded"
	}
	w, _, running := serve(t, handlers{
		call: func(ctx context.Context, _ *wrapperspb.StringValue) (any, error) {
			return wrapperspb.String(bounded(ctx)), nil
		},
		stream: func(_ any, stream grpc.ServerStream) error {
			return stream.SendMsg(wrapperspb.String(bounded(stream.Context())))
		},
	}, nil)
	conn := w.Dial(t, running.Addr)
	var out wrapperspb.StringValue
	if err := conn.Invoke(t.Context(), callMethod, wrapperspb.String(""), &out); err != nil || out.GetValue() != "bounded" {
		t.Errorf("a call is %s, error %v", out.GetValue(), err)
	}
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, streamMethod)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&out); err != nil || out.GetValue() != "unbounded" {
		t.Errorf("a stream is %s, error %v", out.GetValue(), err)
	}
}
