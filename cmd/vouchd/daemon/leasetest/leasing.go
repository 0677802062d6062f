// Package leasetest has hosts whose daemons lease credentials, for tests of the daemon
// and of vouch: logins of a real PostgreSQL, and protocol fakes of vendors.
package leasetest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/credential/postgres/pgtest"
	"github.com/vouchd/vouchd/workloadapi/credentialapi/client"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// A Host is a [daemontest.Host] whose daemon may lease.
type Host struct{ *daemontest.Host }

// New returns a host that leases nothing yet.
func New(t testing.TB) *Host { return &Host{daemontest.New(t)} }

// LeaseSocket makes a process of the test program an agent that leases a login
// from the daemon on that socket, uses it, and goes on until its standard input
// ends.
const LeaseSocket = "TEST_LEASE_SOCKET"

// Database is one PostgreSQL for all tests, with a role for the daemon and
// something to read.
var Database = sync.OnceValues(func() (s *pgtest.Server, err error) {
	defer func() { started = s }()
	s, err = pgtest.Start()
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	conn, err := s.Login(ctx, "postgres", s.Password, "postgres")
	if err != nil {
		return s, err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, `CREATE ROLE vouchd LOGIN CREATEROLE PASSWORD 'the-daemons-own';
		CREATE TABLE tides (height int); INSERT INTO tides VALUES (7);
		GRANT SELECT ON tides TO vouchd WITH GRANT OPTION`)
	return s, err
})

// started is what database started; nil if no test wanted it.
var started *pgtest.Server

func StopDatabase() {
	if started != nil {
		started.Stop()
	}
}

// A Login is what an agent got.
type Login struct{ Username, Password string }

// AgentLeases is what an agent does: it reads from the database with a login of its
// own, and says which that was.
func AgentLeases(socket string, stdin io.Reader) error {
	ctx := context.Background()
	client, err := client.New("unix://" + socket)
	if err != nil {
		return err
	}
	defer client.Close()
	_, fields, err := client.Grant(ctx, &credentialv1.GrantCredentialRequest{
		Name: "tides", Exposure: credentialv1.Exposure_EXPOSURE_MEMORY,
	})
	if err != nil {
		return err
	}
	got := make(map[string]string)
	for _, f := range fields {
		got[f.Name] = string(f.Value.Reveal())
	}
	conn, err := pgx.Connect(ctx, got["url"])
	if err != nil {
		return err
	}
	var height int
	if err := conn.QueryRow(ctx, "SELECT height FROM public.tides").Scan(&height); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(Login{got["username"], got["password"]}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, stdin)
	return err
}

// NewLeasing returns a host whose daemon may lease logins of the database.
func NewLeasing(t testing.TB) (*Host, *pgtest.Server) {
	t.Helper()
	pg, err := Database()
	must(t, err)
	h := New(t)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [tides, tides-for-all]}\n", os.Getuid()))
	must(t, os.WriteFile(h.Path("password"), []byte("the-daemons-own\n"), 0o600))
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	definition := `
  - name: %s
    broker: postgres
    max_ttl: 1h
    renewable: true
    bind: %s
    parameters:
      - {name: table, one_of: [tides], default: tides}
    postgres:
      host: %s
      port: %d
      database: postgres
      user: vouchd
      password_file: %s
      grants:
        - GRANT SELECT ON public.{{table}} TO {{role}}
`
	text := "credentials:"
	for name, bind := range map[string]string{"tides": "process", "tides-for-all": "lease", "ungranted": "process"} {
		text += fmt.Sprintf(definition, name, bind, pg.SocketDir, pg.Port, h.Path("password"))
	}
	h.Write("credentials.d/a.yaml", text)
	return h, pg
}

// An Agent is a process that holds a lease.
type Agent struct {
	Login
	Cmd  *exec.Cmd
	hold io.Closer // its standard input
}

func StartAgent(t testing.TB, h *Host) *Agent {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), LeaseSocket+"="+h.Path("agent.sock"))
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	a := &Agent{Cmd: cmd, hold: in}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("the agent got no login: %v; the daemon said:\n%s", err, h.Stderr)
	}
	must(t, json.Unmarshal(line, &a.Login))
	return a
}

// Exit lets the agent end by itself.
func (a *Agent) Exit(t *testing.T) {
	t.Helper()
	must(t, a.hold.Close())
	must(t, a.Cmd.Wait())
}

// Thief uses a login from outside the agent, as whoever copied it would.
func (l Login) Thief(t *testing.T, pg *pgtest.Server) *pgx.Conn {
	t.Helper()
	conn, err := pg.Login(t.Context(), l.Username, l.Password, "postgres")
	must(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// CheckGone checks that nothing of a login is left a second after it ended.
func (l Login) CheckGone(t *testing.T, pg *pgtest.Server, session *pgx.Conn, ended time.Time) {
	t.Helper()
	daemontest.Eventually(t, "the login is refused", func() bool {
		conn, err := pg.Login(t.Context(), l.Username, l.Password, "postgres")
		if err == nil {
			conn.Close(t.Context())
		}
		return err != nil
	})
	daemontest.Eventually(t, "an open session of the login ends", func() bool { return session.Ping(t.Context()) != nil })
	if took := time.Since(ended); took > time.Second {
		t.Errorf("the login worked for %v after its end", took)
	}
	admin := pg.Admin(t, "postgres")
	daemontest.Eventually(t, "its role is dropped", func() bool {
		var n int
		must(t, admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = $1", l.Username).Scan(&n))
		return n == 0
	})
}

// CheckSecret checks that nothing the daemon wrote holds the password.
func (h *Host) CheckSecret(l Login) {
	h.T.Helper()
	if strings.Contains(h.Stderr.String(), l.Password) {
		h.T.Error("the daemon's messages hold the password")
	}
	out, err := exec.Command("grep", "-rlF", "-e", l.Password, h.Dir).CombinedOutput()
	if len(out) > 0 {
		h.T.Errorf("the password is in %s", out)
	} else if err == nil || err.Error() != "exit status 1" {
		h.T.Errorf("looking for the password: %v", err)
	}
	if out, _, _ := h.Vouch("status", "--output", "json"); strings.Contains(out, l.Password) {
		h.T.Error("the status holds the password")
	}
	if out, _, _ := h.Vouch("lease", "list", "--output", "json"); strings.Contains(out, l.Password) {
		h.T.Error("the list of leases holds the password")
	}
}

// A Record is what a test looks at of one.
type Record struct {
	Event      string `json:"event"`
	Identity   string `json:"spiffe_id"`
	Outcome    string `json:"outcome"`
	Reason     string `json:"reason"`
	RequestID  string `json:"request_id"`
	Credential struct {
		Lease      string    `json:"lease"`
		Handle     string    `json:"handle"`
		Exposure   string    `json:"exposure"`
		Revocation string    `json:"revocation"`
		ScopeAsked string    `json:"scope_asked"`
		TTL        int       `json:"ttl_s"`
		NotAfter   time.Time `json:"not_after"`
	} `json:"credential"`
	Workload struct {
		PID int `json:"pid"`
	} `json:"workload"`
	Use struct {
		Count  int    `json:"count"`
		Source string `json:"source"`
	} `json:"use"`
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// GrantHandle leases a credential that vouchd calls or connects with, and returns the handle
// and the lease's ID.
func GrantHandle(ctx context.Context, socket, name string) (handle, lease string, err error) {
	c, err := client.New("unix://" + socket)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	l, fields, err := c.Grant(ctx, &credentialv1.GrantCredentialRequest{Name: name, Exposure: credentialv1.Exposure_EXPOSURE_MEMORY})
	if err != nil {
		return "", "", err
	}
	for _, f := range fields {
		if f.Name != "handle" {
			return "", "", fmt.Errorf("field %s is handed out", f.Name)
		}
		handle = string(f.Value.Reveal())
	}
	return handle, l.Id, nil
}
