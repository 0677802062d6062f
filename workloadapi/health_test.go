package workloadapi

import (
	"errors"
	"os"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

func TestHealthCheckSaysWhetherAnybodyWouldBeServed(t *testing.T) {
	t.Parallel()
	h := new(Health)
	s := startStack(t, gatetest.Entry("/other", os.Getuid()+1), h)
	h.Ill = s.Gate.Refusal
	probe := grpc_health_v1.NewHealthClient(s.Dial()) // sends no security header
	check := func(service string, want grpc_health_v1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		r, err := probe.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil || r.Status != want {
			t.Errorf("service %q: %v, %v, want %v", service, r.GetStatus(), err, want)
		}
	}
	check("", grpc_health_v1.HealthCheckResponse_SERVING)
	check("SpiffeWorkloadAPI", grpc_health_v1.HealthCheckResponse_SERVING)
	if _, err := probe.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("of a service that is not here: %v", err)
	}
	s.Gate.SetNode(nil, errors.New("its boot state is not what the policy wants"))
	check("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
}
