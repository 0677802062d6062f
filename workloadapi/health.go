package workloadapi

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// Health answers gRPC's health checks (grpc.health.v1.Health/Check), as probes that are
// written for SPIRE's agent ask it. It attests nobody and says nothing but whether a process
// with an identity would be served now. Watch is not implemented.
type Health struct {
	grpc_health_v1.UnimplementedHealthServer
	Ill func() error // why nobody would be served; nil: they are
}

// Register implements [Front].
func (h *Health) Register(s grpc.ServiceRegistrar) { grpc_health_v1.RegisterHealthServer(s, h) }

// Check answers for the endpoint as a whole, and for the Workload API by its name.
func (h *Health) Check(_ context.Context, req *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if s := req.Service; s != "" && s != "SpiffeWorkloadAPI" {
		return nil, status.Errorf(codes.NotFound, "no service %.80q is checked here; leave it out", s)
	}
	if h.Ill() != nil {
		return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_NOT_SERVING}, nil
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}
