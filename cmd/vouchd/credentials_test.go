package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/postgres/pgtest"
	"github.com/vouchd/vouchd/workloadapi/credentialapi/client"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// leaseSocket makes a process of the test program an agent that leases a login
// from the daemon on that socket, uses it, and goes on until its standard input
// ends.
const leaseSocket = "TEST_LEASE_SOCKET"

// database is one PostgreSQL for all tests, with a role for the daemon and
// something to read.
var database = sync.OnceValues(func() (s *pgtest.Server, err error) {
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

func stopDatabase() {
	if started != nil {
		started.Stop()
	}
}

// A login is what an agent got.
type login struct{ Username, Password string }

// agentLeases is what an agent does: it reads from the database with a login of its
// own, and says which that was.
func agentLeases(socket string, stdin io.Reader) error {
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
	if err := json.NewEncoder(os.Stdout).Encode(login{got["username"], got["password"]}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, stdin)
	return err
}

// newLeasingHost returns a host whose daemon may lease logins of the database.
func newLeasingHost(t *testing.T) (*host, *pgtest.Server) {
	t.Helper()
	pg, err := database()
	must(t, err)
	h := newHost(t)
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

// An agent is a process that holds a lease.
type agent struct {
	login
	cmd  *exec.Cmd
	hold io.Closer // its standard input
}

func startAgent(t testing.TB, h *host) *agent {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), leaseSocket+"="+h.Path("agent.sock"))
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	a := &agent{cmd: cmd, hold: in}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("the agent got no login: %v; the daemon said:\n%s", err, h.Stderr)
	}
	must(t, json.Unmarshal(line, &a.login))
	return a
}

// exit lets the agent end by itself.
func (a *agent) exit(t *testing.T) {
	t.Helper()
	must(t, a.hold.Close())
	must(t, a.cmd.Wait())
}

// thief uses a login from outside the agent, as whoever copied it would.
func (l login) thief(t *testing.T, pg *pgtest.Server) *pgx.Conn {
	t.Helper()
	conn, err := pg.Login(t.Context(), l.Username, l.Password, "postgres")
	must(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// checkGone checks that nothing of a login is left a second after it ended.
func (l login) checkGone(t *testing.T, pg *pgtest.Server, session *pgx.Conn, ended time.Time) {
	t.Helper()
	eventually(t, "the login is refused", func() bool {
		conn, err := pg.Login(t.Context(), l.Username, l.Password, "postgres")
		if err == nil {
			conn.Close(t.Context())
		}
		return err != nil
	})
	eventually(t, "an open session of the login ends", func() bool { return session.Ping(t.Context()) != nil })
	if took := time.Since(ended); took > time.Second {
		t.Errorf("the login worked for %v after its end", took)
	}
	admin := pg.Admin(t, "postgres")
	eventually(t, "its role is dropped", func() bool {
		var n int
		must(t, admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = $1", l.Username).Scan(&n))
		return n == 0
	})
}

// checkSecret checks that nothing the daemon wrote holds the password.
func (h *host) checkSecret(l login) {
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

func TestLoginEndsWithItsAgent(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.Start()
	a := startAgent(t, h)
	session := a.thief(t, pg)
	h.checkSecret(a.login)
	a.exit(t)
	a.checkGone(t, pg, session, time.Now())
	h.checkSecret(a.login)

	eventually(t, "the end is recorded", func() bool {
		out, _, _ := h.Vouch("log", "show", "--event", "lease.revoke")
		return strings.Contains(out, "lease.revoke")
	})
	out, stderr, code := h.Vouch("log", "show", "--credential", "tides", "--output", "json")
	if code != 0 {
		t.Fatalf("vouch log show: %s", stderr)
	}
	told := make(map[string]record)
	for line := range strings.Lines(out) {
		var r record
		must(t, json.Unmarshal([]byte(line), &r))
		told[r.Event] = r
		if r.Identity != "spiffe://example.org/agent" || r.Outcome != "success" || r.Credential.Handle != a.Username || r.Credential.Lease != told["lease.grant_intent"].Credential.Lease {
			t.Errorf("record tells another story: %s", line)
		}
	}
	grant := told["lease.grant"]
	if grant.Workload.PID != a.cmd.Process.Pid || grant.Credential.Exposure != "memory" || grant.Credential.TTL != 300 || grant.Credential.NotAfter.IsZero() ||
		grant.RequestID == "" || grant.RequestID != told["lease.grant_intent"].RequestID {
		t.Errorf("grant tells too little: %+v", grant)
	}
	if told["lease.grant_intent"].Credential.ScopeAsked != "table=tides" {
		t.Errorf("intent does not say what was asked for: %+v", told["lease.grant_intent"])
	}
	if use := told["credential.use"]; use.Use.Count == 0 || use.Use.Source != "upstream" {
		t.Errorf("use is not told, though sessions were open: %+v", use)
	}
	if end := told["lease.revoke"]; end.Reason != "process ended" || end.Credential.Revocation != "hard" {
		t.Errorf("end tells too little: %+v", end)
	}
	h.Stop()
	if out, stderr, code := h.Vouch("log", "verify"); code != 0 {
		t.Errorf("vouch log verify exits %d: %s%s", code, out, stderr)
	}
}

// A record is what a test looks at of one.
type record struct {
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

func TestLoginEndsThoughTheDaemonWasKilled(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.StartProcess()
	gone, stays := startAgent(t, h), startAgent(t, h)
	session := gone.thief(t, pg)
	h.Kill()
	gone.exit(t)
	if err := session.Ping(t.Context()); err != nil {
		t.Fatalf("the login ended without a daemon to end it: %v", err)
	}
	h.StartProcess()
	gone.checkGone(t, pg, session, time.Now())
	h.checkSecret(gone.login)

	// An agent that lived through it keeps its login, and no longer than it lives.
	session = stays.thief(t, pg)
	stays.exit(t)
	stays.checkGone(t, pg, session, time.Now())
}

func TestWatchSendsTheNextLoginBeforeTheLastEnds(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.Start()
	client, err := client.New("unix://" + h.Path("agent.sock"))
	must(t, err)
	defer client.Close()
	var got []login
	enough := errors.New("enough")
	err = client.Watch(t.Context(), &credentialv1.GrantCredentialRequest{Name: "tides", TtlSeconds: 3}, func(_ *credentialv1.Lease, fields []credential.Field) error {
		var l login
		for _, f := range fields {
			switch f.Name {
			case "username":
				l.Username = string(f.Value.Reveal())
			case "password":
				l.Password = string(f.Value.Reveal())
			}
		}
		if got = append(got, l); len(got) < 3 {
			return nil
		}
		return enough
	})
	if err != enough {
		t.Fatalf("the watch ended early: %v", err)
	}
	got[1].thief(t, pg) // works still
	got[2].thief(t, pg)
	eventually(t, "the first login is refused", func() bool {
		conn, err := pg.Login(t.Context(), got[0].Username, got[0].Password, "postgres")
		if err == nil {
			conn.Close(t.Context())
		}
		return err != nil
	})
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"]}\n", os.Getuid()))
	eventually(t, "no lease is left", func() bool {
		leases, err := h.Admin().Leases(t.Context())
		must(t, err)
		return len(leases) == 0
	})
}
