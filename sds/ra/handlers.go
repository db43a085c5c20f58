package ra

import (
	"context"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/tap"

	"github.com/hallmark-ca/hallmark/attest"
)

type registrar struct{ server *Server }

// RegisterService implements [grpc.ServiceRegistrar].
func (r registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, m := range desc.Methods {
		r.server.single["/"+desc.ServiceName+"/"+m.MethodName] = true
	}
	for _, m := range desc.Streams {
		if !m.ServerStreams {
			r.server.single["/"+desc.ServiceName+"/"+m.StreamName] = true
		}
	}
	r.server.grpc.RegisterService(desc, impl)
}

// tap bounds calls that have one answer, before anything waits for them: no
// handler could end a read. What it makes ends with the call's own context.
func (s *Server) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	if s.single[info.FullMethodName] {
		ctx, _ = s.cfg.RA.Bound(ctx)
	}
	return ctx, nil
}

// unary and stream are around every handler: a panic ends its call, not the
// process, and no error leaves but through [Status].

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(ctx, info.FullMethod, p)
		}
		err = Status(err)
	}()
	return handler(ctx, req)
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(stream.Context(), info.FullMethod, p)
		}
		err = Status(err)
	}()
	if info.IsClientStream {
		bound := s.cfg.MessageTime
		if s.single[info.FullMethod] {
			bound = 0
		}
		bounded, err := messagesOf(stream, bound)
		if err != nil {
			return s.cfg.RA.refuse(stream.Context(), refusalOf{door: DoorMesh, deny: attest.Deny(attest.InternalError, "", "%v", err)})
		}
		stream = bounded
	}
	return handler(srv, stream)
}

// maxStack bounds how much of a stack is logged.
const maxStack = 8 << 10

func (s *Server) panicked(ctx context.Context, method string, p any) error {
	deny := attest.Deny(attest.InternalError, "", "panic in %s: %v", method, p)
	refused := s.cfg.RA.refuse(ctx, refusalOf{door: DoorMesh, deny: deny})
	if _, ok := s.cfg.RA.panics.take(attest.InternalError, false, s.cfg.Now()); ok {
		stack := debug.Stack()
		s.cfg.Log.Error("a handler panicked", "id", refused.ID, "method", method, "stack", string(stack[:min(len(stack), maxStack)]))
	}
	return refused
}
