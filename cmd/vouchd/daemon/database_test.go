package daemon_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/databasetest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
)

func TestAgentQueriesADatabaseWithoutAPassword(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Start()
	c := h.Agent()
	var height int
	must(t, c.QueryRow(t.Context(), "SELECT height FROM tides").Scan(&height))
	var user string
	var secure bool
	must(t, c.QueryRow(t.Context(), "SELECT current_user, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&user, &secure))
	if height != 7 || !matches("^vouch_tides_", user) || !secure {
		t.Errorf("the agent reads %d as %s, with TLS: %v", height, user, secure)
	}
	if out, code := h.Psql("SELECT height FROM tides;\nSELECT current_user;\n", "-U", "nobody"); code != 0 || !matches("^7\nvouch_tides_[a-z0-9]+\n$", out) || strings.Contains(out, user) {
		t.Errorf("psql exits %d: %s", code, out)
	}
	must(t, c.Close(t.Context()))
	eventually(t, "the login has ended with its connection", func() bool { return len(h.roles(user)) == 0 })
	begun, ended := h.Records("proxy.call", audit.Success), []audit.Leaf(nil)
	eventually(t, "what came of the connections is recorded", func() bool {
		ended = daemontest.RecordsYet(h.Host.Host, "proxy.outcome", audit.Success)
		return len(ended) == 2
	})
	if len(begun) != 2 || begun[0].Call.Door != "postgres" || begun[0].Call.Method != "CONNECT" || begun[0].Credential.Handle != user {
		t.Errorf("the record of the connection is %+v", begun)
	}
	if out := h.OK("log", "show", "--event", "proxy.outcome"); !matches(`CONNECT postgres, \d+ bytes sent and \d+ received in .*, statements SELECT=2, 2 rows`, out) {
		t.Errorf("log show prints\n%s", out)
	}
	if out := h.OK("log", "report"); !strings.Contains(out, "called 2 times, ") || strings.Contains(out, "failed") {
		t.Errorf("log report prints\n%s", out)
	}
	for _, r := range ended {
		if r.Call.Statements != "SELECT=2" || r.Call.Rows != 2 || r.Call.Sent == 0 || r.Call.Received == 0 || !r.Call.WithinTTL || r.Credential.Lease == "" {
			t.Errorf("the outcome is %+v of %+v", r.Call, r.Credential)
		}
	}
}

// roles returns the logins that there are of that name.
func (h *dbHost) roles(name string) (list []string) {
	rows, err := h.Server.Admin(h.T, "postgres").Query(context.Background(), "SELECT rolname FROM pg_roles WHERE rolname = $1", name)
	must(h.T, err)
	list, err = pgx.CollectRows(rows, pgx.RowTo[string])
	must(h.T, err)
	return list
}

func TestNamesOfUserAndDatabaseAreNotTheAgents(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Start()
	for _, tt := range []struct{ settings, state string }{
		{"user=postgres", ""},
		{"user=postgres dbname=postgres", ""},
		{"user=me dbname=tides", ""},
		{"user=me dbname=me", ""},
		{"user=me dbname=template1", "3D000"},
		{"user=me application_name=x client_encoding=UTF8 statement_timeout=1000", ""},
		{"user=me search_path=public", ""},
		{"user=me options='-c role=postgres'", "42501"},
		{"user=me role=postgres", "42501"},
		{"user=me replication=database", "42501"},
		{"user=me session_preload_libraries=x", "42501"},
		{"user=me max_protocol_version=latest", ""}, // 3.0 is what it gets
		{"user=me password=guess", ""},              // nobody asks for it
		{"user=tidesvouch" + strings.Repeat("a", 32), "28000"},
	} {
		c, err := h.Connect(t.Context(), tt.settings)
		if got := stateOf(err); got != tt.state {
			t.Errorf("%s: %v", tt.settings, err)
		}
		if err == nil {
			c.Close(t.Context())
		}
	}
}

// stateOf is the SQLSTATE of an error, empty for none.
func stateOf(err error) string {
	var e *pgconn.PgError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Code
	}
	return err.Error()
}

// TestMessagesPassBothWays: the kinds of message that programs use.
func TestMessagesPassBothWays(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Start()
	ctx, c := t.Context(), h.Agent()
	// Prepared, with parameters, in a pipeline.
	batch := &pgx.Batch{}
	for i := range 50 {
		batch.Queue("SELECT $1::int * 2", i)
	}
	results := c.SendBatch(ctx, batch)
	for i := range 50 {
		var n int
		must(t, results.QueryRow().Scan(&n))
		if n != 2*i {
			t.Fatalf("statement %d of the pipeline returns %d", i, n)
		}
	}
	must(t, results.Close())
	// COPY in both directions.
	_, err := c.Exec(ctx, "CREATE TEMP TABLE moons (name text, n int)")
	must(t, err)
	n, err := c.CopyFrom(ctx, pgx.Identifier{"moons"}, []string{"name", "n"}, pgx.CopyFromSlice(5000, func(i int) ([]any, error) { return []any{strings.Repeat("x", 100), i}, nil }))
	must(t, err)
	var out bytes.Buffer
	tag, err := c.PgConn().CopyTo(ctx, &out, "COPY moons TO STDOUT")
	must(t, err)
	if n != 5000 || tag.RowsAffected() != 5000 || bytes.Count(out.Bytes(), []byte("\n")) != 5000 {
		t.Errorf("%d rows go in by COPY, and %v come out", n, tag)
	}
	// Errors leave the connection as it was.
	if _, err := c.Exec(ctx, "SELECT nothing FROM nowhere"); stateOf(err) != "42P01" {
		t.Error(err)
	}
	// A portal that is read in parts.
	tx, err := c.Begin(ctx)
	must(t, err)
	_, err = tx.Exec(ctx, "DECLARE m CURSOR FOR SELECT n FROM moons ORDER BY n")
	must(t, err)
	for _, first := range []int{0, 100} {
		rows, err := tx.Query(ctx, "FETCH 100 FROM m")
		must(t, err)
		list, err := pgx.CollectRows(rows, pgx.RowTo[int])
		must(t, err)
		if len(list) != 100 || list[0] != first {
			t.Errorf("the cursor returns %d rows from %d", len(list), list[0])
		}
	}
	must(t, tx.Commit(ctx))
	// Notifications, between two agents.
	_, err = c.Exec(ctx, "LISTEN tide")
	must(t, err)
	_, err = h.Agent().Exec(ctx, "NOTIFY tide, 'high'")
	must(t, err)
	note, err := c.WaitForNotification(ctx)
	must(t, err)
	if note.Payload != "high" {
		t.Errorf("the notification is %+v", note)
	}
	if out, code := h.Psql("\\copy (SELECT generate_series(1,3)) TO STDOUT\nSELECT 1 \\; SELECT 2;\n"); code != 0 || out != "1\n2\n3\n1\n2\n" {
		t.Errorf("psql exits %d: %s", code, out)
	}
}

func TestStatementThatRunsIsCancelledByItsOwnProcessAlone(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Start()
	// psql cancels at the first interrupt.
	cmd := exec.Command("psql", "-X", "-w", "-h", h.Socket("tides"), "-c", "SELECT pg_sleep(60)")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	admin := h.Server.Admin(t, "postgres")
	eventually(t, "psql's statement runs", func() bool {
		var n int
		must(t, admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)' AND application_name = 'psql' AND usename LIKE 'vouch_tides_%' AND state = 'active'").Scan(&n))
		return n > 0
	})
	must(t, cmd.Process.Signal(syscall.SIGINT))
	cmd.Wait()
	if !strings.Contains(out.String(), "canceling statement due to user request") {
		t.Errorf("psql says %s", out.String())
	}
	// The key is this connection's, and no other's.
	c := h.Agent()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	slept := make(chan error, 1)
	go func() { _, err := c.Exec(ctx, "SELECT pg_sleep(2)"); slept <- err }()
	for _, key := range [][]byte{{0, 0, 0, 0}, {1, 2, 3, 4}} {
		sendCancel(t, h, c.PgConn().PID(), key)
	}
	if err := <-slept; err != nil {
		t.Errorf("a wrong key cancels: %v", err)
	}
	go func() { _, err := c.Exec(ctx, "SELECT pg_sleep(30)"); slept <- err }()
	eventually(t, "the statement is cancelled", func() bool {
		sendCancel(t, h, c.PgConn().PID(), c.PgConn().SecretKey())
		select {
		case err := <-slept:
			if stateOf(err) != "57014" {
				t.Errorf("the statement ends with %v", err)
			}
			return true
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
}

func sendCancel(t *testing.T, h *dbHost, pid uint32, key []byte) {
	t.Helper()
	u, err := net.Dial("unix", h.Socket("tides")+"/.s.PGSQL.5432")
	must(t, err)
	defer u.Close()
	m := binary.BigEndian.AppendUint32(nil, 16)
	m = binary.BigEndian.AppendUint32(m, 80877102)
	m = append(binary.BigEndian.AppendUint32(m, pid), key...)
	_, err = u.Write(m)
	must(t, err)
	io.Copy(io.Discard, u)
}

// TestAGreatResultPassesInLittleMemory, and its reader may take its time.
func TestAGreatResultPassesInLittleMemory(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.StartProcess()
	h.Ready("tides")
	c := h.Agent()
	rows, err := c.Query(t.Context(), "SELECT i, repeat('x', 1000) FROM generate_series(1, 200000) i")
	must(t, err)
	n := 0
	for rows.Next() {
		n++
	}
	must(t, rows.Err())
	var length int
	must(t, c.QueryRow(t.Context(), "SELECT length(repeat('y', 200000000))").Scan(&length))
	big, err := c.Query(t.Context(), "SELECT repeat('y', 100000000)") // one row of 100 MB
	must(t, err)
	for big.Next() {
		length = len(big.RawValues()[0])
	}
	must(t, big.Err())
	if n != 200_000 || length != 100_000_000 {
		t.Errorf("%d rows come, and a value of %d bytes", n, length)
	}
	for _, pid := range childrenOf(t, h.Cmd.Process.Pid) {
		most := peak(t, pid)
		t.Logf("the proxy has had %d MiB", most>>20)
		if most > 80<<20 {
			t.Error("that is more than 80 MiB")
		}
	}
}

func TestConnectionEndsWithItsLease(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Start()
	ctx := t.Context()
	c := h.Agent()
	running := make(chan error, 1)
	go func() { _, err := c.Exec(ctx, "SELECT pg_sleep(60)"); running <- err }()
	eventually(t, "the lease is there", func() bool {
		leases, err := h.Admin().Leases(ctx)
		must(t, err)
		return len(leases) == 1
	})
	h.OK("lease", "revoke", "--credential", "tides")
	if err := <-running; stateOf(err) != "57P01" {
		t.Errorf("the statement ends with %v", err)
	}
	if _, err := h.Connect(ctx, ""); stateOf(err) != "57P01" || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("the next connection: %v", err)
	}
	// Who asks again may connect again.
	_, _, err := h.grant(ctx, "tides")
	must(t, err)
	again, err := h.Connect(ctx, "")
	must(t, err)
	must(t, again.Close(ctx))
	// So does the end of a definition.
	c = h.Agent()
	go func() { _, err := c.Exec(ctx, "SELECT pg_sleep(60)"); running <- err }()
	must(t, os.Remove(h.Path("credentials.d/tides.yaml")))
	if err := <-running; stateOf(err) != "57P01" {
		t.Errorf("the statement ends with %v", err)
	}
	eventually(t, "the socket is gone", func() bool {
		_, err := os.Stat(h.Socket("tides"))
		return errors.Is(err, os.ErrNotExist)
	})
	h.Define()
	h.Ready("tides")
	h.Agent()
	// And of the entry.
	c = h.Agent()
	go func() { _, err := c.Exec(ctx, "SELECT pg_sleep(60)"); running <- err }()
	h.Entries("unix:uid:4242")
	if err := <-running; stateOf(err) != "57P01" {
		t.Errorf("the statement ends with %v", err)
	}
	if _, err := h.Connect(ctx, ""); stateOf(err) != "28000" {
		t.Errorf("who is not entitled: %v", err)
	}
}

// TestConnectionLivesAsLongAsItsDefinitionAllows: its lease is renewed until then.
func TestConnectionLivesAsLongAsItsDefinitionAllows(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	text := strings.Replace(h.Definition("tides", "10s"), "ttl: 10s", "ttl: 10s\n    max_ttl: 18s\n    renewable: true", 1)
	h.Write("credentials.d/tides.yaml", text)
	h.Start()
	c := h.Agent()
	began := time.Now()
	for {
		if _, err := c.Exec(t.Context(), "SELECT pg_sleep(0.5)"); err != nil {
			if took := time.Since(began); stateOf(err) != "57P01" || took < 14*time.Second || took > 25*time.Second {
				t.Errorf("after %v: %v", took, err)
			}
			return
		}
	}
}

func TestTwoHundredConnectionsAtOnce(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Start()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const many = 200
	var work, all sync.WaitGroup
	all.Add(many)
	users := make(chan string, many)
	for range many {
		work.Go(func() {
			c, err := h.Connect(ctx, "")
			if err != nil {
				t.Error(err)
				all.Done()
				return
			}
			defer c.Close(context.Background())
			all.Done()
			all.Wait()
			var user string
			if err := c.QueryRow(ctx, "SELECT current_user").Scan(&user); err != nil {
				t.Error(err)
			}
			users <- user
		})
	}
	work.Wait()
	close(users)
	seen := make(map[string]bool)
	for u := range users {
		seen[u] = true
	}
	if len(seen) != many {
		t.Errorf("%d connections have %d logins", many, len(seen))
	}
	eventually(t, "all leases have ended", func() bool {
		leases, err := h.Admin().Leases(context.Background())
		must(t, err)
		return len(leases) == 0
	})
}

func TestServerThatCannotShowWhoItIsGetsNothing(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Define(fmt.Sprintf("upstream: postgres://localhost:%d/postgres", h.Server.Port), `allow_addresses: [127.0.0.1/32, "::1/128"]`) // trusts the system's authorities
	h.Start()
	if _, err := h.Connect(t.Context(), ""); stateOf(err) != "08006" || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
	h.Define(fmt.Sprintf("upstream: postgres://127.0.0.1:%d/postgres", h.Server.Port), "ca_file: "+h.Server.CAFile, "allow_addresses: [127.0.0.1/32]")
	eventually(t, "another name is refused", func() bool {
		_, err := h.Connect(t.Context(), "")
		return stateOf(err) == "08006" && strings.Contains(err.Error(), "127.0.0.1 because it doesn't contain any IP SANs")
	})
	h.Define(fmt.Sprintf("upstream: postgres://localhost:%d/postgres", h.Server.Port), "ca_file: "+h.Server.CAFile)
	eventually(t, "a private address is refused", func() bool {
		_, err := h.Connect(t.Context(), "")
		return stateOf(err) == "08006" && strings.Contains(err.Error(), "allow_addresses")
	})
	if log := h.serverLog(); strings.Contains(log, "vouch_tides") && strings.Contains(log, "connection authorized: user=vouch_tides") {
		t.Error("somebody logged in")
	}
}

func (h *dbHost) serverLog() string {
	b, err := os.ReadFile(h.Server.LogFile())
	must(h.T, err)
	return string(b)
}

// A dbHost is a [databasetest.Host], with what these tests ask of one.
type dbHost struct{ *databasetest.Host }

func newDatabase(t testing.TB, more ...string) *dbHost { return &dbHost{databasetest.New(t, more...)} }

// grant leases, as vouch get does.
func (h *dbHost) grant(ctx context.Context, name string) (handle string, lease string, err error) {
	return leasetest.GrantHandle(ctx, h.Path("agent.sock"), name)
}
