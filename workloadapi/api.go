// Package workloadapi is the SPIFFE Workload API: X509-SVIDs, JWT-SVIDs, WIT-SVIDs and trust
// bundles for the process that asks. It also assembles the endpoint on the agent socket, where
// other fronts answer too.
//
// The gate decides who asks and whether it gets something. This package makes what it gets:
// every message of a stream is complete, is issued for a caller that was attested for it, and
// is followed by the next when the caller's entitlement, the bundle or the time requires it.
package workloadapi

import (
	"log/slog"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// Options are what the API answers with. All but Foreign are required.
type Options struct {
	Gate      *gate.Gate
	Watcher   *process.Watcher // of the files that attestations rest on
	Authority identity.Issuer
	Foreign   Foreign // may be nil: this trust domain is the only one
	Logger    *slog.Logger
}

// An API is the SPIFFE Workload API. Its methods are safe for concurrent use.
type API struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	gate      *gate.Gate
	watcher   *process.Watcher
	authority identity.Issuer
	foreign   Foreign // nil: none
	logger    *slog.Logger
}

// New returns the API.
func New(o Options) *API {
	return &API{gate: o.Gate, watcher: o.Watcher, authority: o.Authority, foreign: o.Foreign, logger: o.Logger}
}

// Register implements [Front].
func (a *API) Register(s grpc.ServiceRegistrar) { workload.RegisterSpiffeWorkloadAPIServer(s, a) }
