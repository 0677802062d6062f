package credentialapi

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/credential/postgres"
	"github.com/vouchd/vouchd/workloadapi"
	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

// A stack serves the API.
type stack struct{ *gatetest.Stack }

// definitions are of credentials whose upstream cannot be reached: what is
// granted in full, cmd/vouchd tests with a real one.
const definitions = `
credentials:
  - name: tides
    broker: postgres
    parameters:
      - {name: table, one_of: [tides, waves], default: tides}
    postgres: {host: %[1]s, database: d, user: u, grants: ["GRANT SELECT ON sea.{{table}} TO {{role}}"]}
  - name: winds
    broker: postgres
    postgres: {host: %[1]s, database: d, user: u, grants: ["GRANT SELECT ON air.winds TO {{role}}"]}
  - name: currents
    broker: postgres
    bind: unit
    postgres: {host: %[1]s, database: d, user: u, grants: ["GRANT SELECT ON sea.currents TO {{role}}"]}
`

// startStack serves the API to whom these entries entitle.
func startStack(t testing.TB, entries string) *stack {
	t.Helper()
	s := &stack{gatetest.Start(t, entries)}
	dir := filepath.Join(s.Dir, "credentials.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), fmt.Appendf(nil, definitions, filepath.Join(s.Dir, "nothing")), 0o644); err != nil {
		t.Fatal(err)
	}
	defs, err := credential.LoadDefinitions(dir, credential.Brokers{"postgres": postgres.Open}, false)
	if err != nil {
		t.Fatal(err)
	}
	pins, err := NewPins(nil)
	if err != nil {
		t.Fatal(err)
	}
	manager, err := lease.Open(t.Context(), lease.Config{
		Journal: filepath.Join(s.Dir, "leases"), Sealer: s.Node, Recorder: NewRecorder(s.Recorder),
		Processes: pins, Definitions: defs, Log: s.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { manager.Close(); pins.Close() })
	api := New(Options{Gate: s.Gate, Attester: s.Attester, Authority: s.Authority, Leases: manager, Pins: pins})
	s.Serve(func(ctx context.Context, l *net.UnixListener) error { return workloadapi.Serve(ctx, l, s.Gate, api) })
	return s
}
