// Package databasetest has hosts whose daemon connects to a real PostgreSQL in the stead of
// this process, for tests of doors to databases from end to end.
package databasetest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/credential/postgres/pgtest"
)

// A Host is a [daemontest.Host] with a database.
type Host struct {
	*daemontest.Host
	Server *pgtest.Server
}

// New returns a host with the credential "tides", which this user is granted; its daemon is
// not started. More is keys of the database block.
func New(t testing.TB, more ...string) *Host {
	t.Helper()
	server, err := leasetest.Database()
	must(t, err)
	h := &Host{daemontest.New(t), server}
	h.Configure("proxy_socket: " + h.Path("proxy.sock") + "\n")
	h.Entries(fmt.Sprintf("unix:uid:%d", os.Getuid()))
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	h.Write("pg-password", "the-daemons-own")
	must(t, os.Chmod(h.Path("pg-password"), 0o600))
	h.Define(more...)
	return h
}

// Entries has the user's entry want these selectors.
func (h *Host) Entries(selectors ...string) {
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"%s\"], credentials: [tides, other]}\n", strings.Join(selectors, `", "`)))
}

// Define writes the definition of "tides".
func (h *Host) Define(more ...string) {
	h.Write("credentials.d/tides.yaml", h.Definition("tides", "10m", more...))
}

// Definition is one of a credential by that name, which logs in over TLS.
func (h *Host) Definition(name, ttl string, more ...string) string {
	if !strings.Contains(strings.Join(more, "\n"), "upstream:") {
		more = append(more, fmt.Sprintf("upstream: postgres://localhost:%d/postgres", h.Server.Port), "ca_file: "+h.Server.CAFile, `allow_addresses: [127.0.0.1/32, "::1/128"]`)
	}
	return fmt.Sprintf(`credentials:
  - name: %s
    broker: postgres
    ttl: %s
    limits: {rate: 100000/1m, concurrent: 1000}
    postgres:
      host: %s
      port: %d
      database: postgres
      user: vouchd
      password_file: %s
      connection_limit: 1000
      grants: ['GRANT SELECT ON public.tides TO {{role}}']
    database:
      protocol: postgres
      %s
`, name, ttl, h.Server.SocketDir, h.Server.Port, h.Path("pg-password"), strings.Join(more, "\n      "))
}

// Start starts the daemon in this process, and waits until it connects.
func (h *Host) Start() {
	h.T.Helper()
	h.Host.Start()
	h.Ready("tides")
}

// Ready waits until somebody listens.
func (h *Host) Ready(name string) {
	h.T.Helper()
	daemontest.Eventually(h.T, "the database's socket is there", func() bool {
		c, err := net.Dial("unix", h.Socket(name)+"/.s.PGSQL.5432")
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// Socket is the directory of a database's socket.
func (h *Host) Socket(name string) string { return h.Path("pg/" + name) }

// Connect connects as an agent does.
func (h *Host) Connect(ctx context.Context, more string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, "host="+h.Socket("tides")+" sslmode=disable "+more)
}

// Agent is a connection for the time of the test.
func (h *Host) Agent() *pgx.Conn {
	h.T.Helper()
	c, err := h.Connect(h.T.Context(), "")
	if err != nil {
		why, _, _ := h.Vouch("log", "show", "--event", "lease", "--outcome", "error")
		h.T.Fatalf("%v; the log says\n%s", err, why)
	}
	h.T.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// Psql runs psql, with statements to read from its standard input.
func (h *Host) Psql(input string, args ...string) (out string, code int) {
	h.T.Helper()
	cmd := exec.Command("psql", append([]string{"-X", "-w", "-A", "-t", "-q", "-h", h.Socket("tides")}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
	cmd.Stdin = strings.NewReader(input)
	b, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		h.T.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
