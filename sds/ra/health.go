package ra

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// health answers Check of the gRPC health protocol. Watch is left out, which the
// protocol allows: anybody could hold a stream with it.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	ready, stopping atomic.Bool
	registered      func() map[string]grpc.ServiceInfo
}

// Check implements the health protocol. Every service is as ready as the server.
func (h *health) Check(_ context.Context, req *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if name := req.GetService(); name != "" {
		if _, known := h.registered()[name]; !known {
			return nil, status.Error(codes.NotFound, "unknown service")
		}
	}
	state := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if h.ready.Load() && !h.stopping.Load() {
		state = grpc_health_v1.HealthCheckResponse_SERVING
	}
	return &grpc_health_v1.HealthCheckResponse{Status: state}, nil
}
