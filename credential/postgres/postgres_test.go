package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/postgres"
	"github.com/vouchd/vouchd/credential/postgres/pgtest"
	"github.com/vouchd/vouchd/secret"
)

var (
	server *pgtest.Server
	// vouchd is the daemon's own user, with no more rights than the manual asks for.
	vouchdPassword = "canary-vouchd-password"
	passwordFile   string
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == crashChild {
		runCrashChild(os.Args[2:])
		return
	}
	os.Exit(func() int {
		var err error
		if server, err = pgtest.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer server.Stop()
		dir, err := os.MkdirTemp("", "pgtest")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		passwordFile = filepath.Join(dir, "password")
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// prepare makes what docs/brokers.md tells an administrator to make.
func prepare() error {
	ctx := context.Background()
	conn, err := server.Login(ctx, "postgres", server.Password, "postgres")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, s := range []string{
		"CREATE ROLE vouchd LOGIN CREATEROLE PASSWORD '" + vouchdPassword + "'",
		"CREATE DATABASE warehouse OWNER vouchd",
		"CREATE DATABASE elsewhere OWNER vouchd",
		"CREATE ROLE readonly",
		"CREATE ROLE vouch_heir",
		"GRANT vouch_heir TO vouchd",
	} {
		if _, err := conn.Exec(ctx, s); err != nil {
			return err
		}
	}
	own, err := server.Login(ctx, "vouchd", vouchdPassword, "warehouse")
	if err != nil {
		return err
	}
	defer own.Close(ctx)
	if _, err := own.Exec(ctx, "CREATE SCHEMA sales; GRANT CREATE ON SCHEMA sales TO vouch_heir; CREATE TABLE sales.orders (n int); INSERT INTO sales.orders VALUES (7); CREATE TABLE sales.\"odd\"\"name\" (n int)"); err != nil {
		return err
	}
	return os.WriteFile(passwordFile, []byte(vouchdPassword+"\n"), 0o600)
}

// definition returns the text of a definition of the test's database.
func definition(more string) string {
	return fmt.Sprintf(`
credentials:
  - name: warehouse-readonly
    broker: postgres
    ttl: 1m
    max_ttl: 5m
    renewable: true
    bind: lease
    limits: {rate: 100000/1m, concurrent: 100000}
    parameters: [{name: table, one_of: [orders, "odd\"name"], default: orders}]
    postgres:
      host: %s
      port: %d
      database: warehouse
      user: vouchd
      password_file: %s
      grants:
        - GRANT USAGE, CREATE ON SCHEMA sales TO {{role}}
        - GRANT SELECT ON sales.{{table}} TO {{role}}
%s`, server.SocketDir, server.Port, passwordFile, more)
}

// open returns the broker of the one definition in text.
func open(t testing.TB, text string) credential.Broker {
	t.Helper()
	return credentialtest.Broker(t, "postgres", postgres.Open, text)
}

func request(params map[string]string) credential.Request {
	return credential.Request{LeaseID: "L", Holder: credential.Holder{ID: spiffeid.RequireFromString("spiffe://example.org/agent")}, Params: params, TTL: time.Minute}
}

// issue obtains a login and returns its fields.
func issue(t testing.TB, b credential.Broker, table string) (credential.Plan, map[string]string) {
	t.Helper()
	r := request(map[string]string{"table": table})
	p, err := b.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := b.Issue(t.Context(), r, p)
	if err != nil {
		t.Fatal(err)
	}
	fields := make(map[string]string)
	for _, f := range issued.Fields {
		fields[f.Name] = string(f.Value.Reveal())
	}
	return p, fields
}

func roleExists(t testing.TB, role string) bool {
	t.Helper()
	var n int
	if err := server.Admin(t, "postgres").QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = $1", role).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n == 1
}

func TestIssuedLoginCanDoWhatItWasGrantedAndNoMore(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	p, fields := issue(t, b, "orders")
	conn, err := pgx.Connect(t.Context(), fields["url"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT n FROM sales.orders").Scan(&n); err != nil || n != 7 {
		t.Errorf("reading the table that was granted: %d, %v", n, err)
	}
	for _, s := range []string{"INSERT INTO sales.orders VALUES (1)", `SELECT * FROM sales."odd""name"`, "CREATE ROLE x", "ALTER ROLE vouchd PASSWORD 'x'"} {
		if _, err := conn.Exec(t.Context(), s); err == nil {
			t.Errorf("%s was allowed", s)
		}
	}
	var until time.Time
	if err := conn.QueryRow(t.Context(), "SELECT rolvaliduntil FROM pg_roles WHERE rolname = current_user").Scan(&until); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(until); left < 50*time.Second || left > 70*time.Second {
		t.Errorf("the role is valid for %v more, want about a minute", left)
	}
	if _, err := b.Revoke(t.Context(), p.Handle); err != nil {
		t.Error(err)
	}
}

func TestRevokeEndsSessionsAndEverythingTheRoleMade(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	p, fields := issue(t, b, "orders")
	conn, err := pgx.Connect(t.Context(), fields["url"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "CREATE TABLE sales.made_"+fmt.Sprint(time.Now().UnixNano())+" AS SELECT 1; BEGIN; SELECT * FROM sales.orders"); err != nil {
		t.Fatal(err)
	}
	use, err := b.Revoke(t.Context(), p.Handle)
	if err != nil {
		t.Fatal(err)
	}
	if !use.Known || use.Count != 1 || use.First.IsZero() || use.Last.Before(use.First) {
		t.Errorf("use = %+v, want the one session that was open", use)
	}
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("the open session outlived the revocation")
	}
	if _, err := pgx.Connect(t.Context(), fields["url"]); err == nil {
		t.Error("the login outlived the revocation")
	}
	if roleExists(t, fields["username"]) {
		t.Error("the role outlived the revocation")
	}
}

func TestRevokeDropsWhatTheRoleOwnsInOtherDatabases(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	p, fields := issue(t, b, "orders")
	admin := server.Admin(t, "elsewhere")
	if _, err := admin.Exec(t.Context(), "CREATE TABLE t_"+fields["username"][len(fields["username"])-8:]+" (); ALTER TABLE t_"+fields["username"][len(fields["username"])-8:]+" OWNER TO \""+fields["username"]+"\""); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Revoke(t.Context(), p.Handle); err != nil {
		t.Fatal(err)
	}
	if roleExists(t, fields["username"]) {
		t.Error("the role outlived the revocation")
	}
}

func TestWhatOthersDependOnGoesToAnHeirWithoutRightsOrKeepsTheRole(t *testing.T) {
	t.Parallel()
	for heir, want := range map[string]string{
		"vouch_heir": "",
		"":           "depends on",                              // nobody gets it
		"vouchd":     "heir vouchd is not a role without login", // its functions would run as the daemon's user
		"nobody":     "heir nobody is not a role without login",
	} {
		t.Run("heir "+heir, func(t *testing.T) {
			t.Parallel()
			more := ""
			if heir != "" {
				more = "      heir: " + heir + "\n"
			}
			b := open(t, definition(more))
			p, fields := issue(t, b, "orders")
			conn, err := pgx.Connect(t.Context(), fields["url"])
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			name := "sales.seen_" + fields["username"][len(fields["username"])-8:]
			if _, err := conn.Exec(t.Context(), "CREATE TABLE "+name+" AS SELECT 7 AS n; CREATE FUNCTION "+name+"_as() RETURNS name LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user'"); err != nil {
				t.Fatal(err)
			}
			admin := server.Admin(t, "warehouse")
			if _, err := admin.Exec(t.Context(), "CREATE VIEW "+name+"_view AS SELECT n, "+name+"_as() FROM "+name); err != nil {
				t.Fatal(err)
			}
			_, err = b.Revoke(t.Context(), p.Handle)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			if roleExists(t, fields["username"]) != (want != "") {
				t.Errorf("the role is there: %v", want == "")
			}
			if _, err := pgx.Connect(t.Context(), fields["url"]); err == nil {
				t.Error("the login outlived the revocation")
			}
			owner := heir
			if want != "" {
				owner = fields["username"]
			}
			var n int
			var as string
			if err := admin.QueryRow(t.Context(), "SELECT * FROM "+name+"_view").Scan(&n, &as); err != nil || n != 7 || as != owner {
				t.Errorf("the view reads %d as %s, %v", n, as, err)
			}
		})
	}
}

func TestGrantOfSomebodyElseIsNamedAndTheLoginEndsRegardless(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	p, fields := issue(t, b, "orders")
	admin := server.Admin(t, "warehouse")
	table := "public.theirs_" + fields["username"][len(fields["username"])-8:]
	if _, err := admin.Exec(t.Context(), "CREATE TABLE "+table+" (); GRANT SELECT ON "+table+" TO "+fields["username"]); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Revoke(t.Context(), p.Handle); err == nil || !strings.Contains(err.Error(), "privileges for table "+table) {
		t.Errorf("got %v, want what keeps the role", err)
	}
	if _, err := pgx.Connect(t.Context(), fields["url"]); err == nil {
		t.Error("the login outlived the revocation")
	}
	if _, err := admin.Exec(t.Context(), "REVOKE ALL ON "+table+" FROM "+fields["username"]); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Revoke(t.Context(), p.Handle); err != nil || roleExists(t, fields["username"]) {
		t.Errorf("once it is taken back: %v", err)
	}
}

func TestReaderThatIdlesHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	p, fields := issue(t, b, "orders")
	conn, err := pgx.Connect(t.Context(), fields["url"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	table := "sales.read_" + fields["username"][len(fields["username"])-8:]
	if _, err := conn.Exec(t.Context(), "CREATE TABLE "+table+" (); GRANT SELECT ON "+table+" TO PUBLIC"); err != nil {
		t.Fatal(err)
	}
	reader := server.Admin(t, "warehouse")
	if _, err := reader.Exec(t.Context(), "BEGIN; SELECT * FROM "+table); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := b.Revoke(t.Context(), p.Handle); !errors.Is(err, credential.ErrUpstream) {
		t.Errorf("while it reads: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("everybody else waited for %v", took)
	}
	if _, err := reader.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Revoke(t.Context(), p.Handle); err != nil || roleExists(t, fields["username"]) {
		t.Errorf("once it has read: %v", err)
	}
}

func TestRevokeAndRecoverCanBeRepeated(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	p, fields := issue(t, b, "orders")
	for range 2 {
		if _, err := b.Revoke(t.Context(), p.Handle); err != nil {
			t.Fatal(err)
		}
		if err := b.Recover(t.Context(), p.Handle); err != nil {
			t.Fatal(err)
		}
	}
	if roleExists(t, fields["username"]) {
		t.Error("the role is still there")
	}
}

// Each step of a revocation may have been the last before the daemon died.
func TestRevokeGoesOnFromEveryStep(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	admin := server.Admin(t, "warehouse")
	for _, done := range []string{
		`ALTER ROLE %[1]s NOLOGIN`,
		`ALTER ROLE %[1]s NOLOGIN; GRANT %[1]s TO vouchd`,
		`ALTER ROLE %[1]s NOLOGIN; GRANT %[1]s TO vouchd; DROP OWNED BY %[1]s`,
		`DROP OWNED BY %[1]s; DROP ROLE %[1]s`,
	} {
		p, fields := issue(t, b, "orders")
		if _, err := admin.Exec(t.Context(), fmt.Sprintf(done, fields["username"])); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Revoke(t.Context(), p.Handle); err != nil {
			t.Errorf("after %s: %v", done, err)
		}
		if roleExists(t, fields["username"]) {
			t.Errorf("after %s: the role is still there", done)
		}
	}
}

// It runs alone: whoever else revokes waits half a second for the table at most.
func TestRightsThatSomebodyElseChangesAtTheTimeAreGrantedNonetheless(t *testing.T) {
	b := open(t, definition(""))
	r := request(map[string]string{"table": "orders"})
	p, err := b.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	other := server.Admin(t, "warehouse") // who knows nothing of our lock
	if _, err := other.Exec(t.Context(), "BEGIN; GRANT SELECT ON sales.orders TO readonly"); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := b.Issue(context.Background(), r, p)
		answered <- err
	}()
	waitFor(t, func() bool {
		var n int
		err := server.Admin(t, "postgres").QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'transactionid'", p.Handle.Name).Scan(&n)
		return err == nil && n == 1
	})
	if _, err := other.Exec(t.Context(), "COMMIT"); err != nil { // fails whoever waited for it
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if _, err := b.Revoke(t.Context(), p.Handle); err != nil {
		t.Error(err)
	}
}

// The daemon that died had sent the statement, and the server had not got to it
// when the next daemon looked.
func TestRecoverOutrunsARequestThatIsStillOnItsWay(t *testing.T) {
	t.Parallel()
	died := open(t, definition(""))
	r := request(map[string]string{"table": "orders"})
	p, err := died.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	// Holding the lock that roles are made under keeps the statement from
	// being carried out.
	blocker := server.Admin(t, "warehouse")
	if _, err := blocker.Exec(t.Context(), "SELECT pg_advisory_lock(1987013480, 1)"); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := died.Issue(context.Background(), r, p)
		answered <- err
	}()
	waitFor(t, func() bool {
		var n int
		err := server.Admin(t, "postgres").QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'", p.Handle.Name).Scan(&n)
		return err == nil && n == 1
	})
	next := open(t, definition(""))
	if err := next.Recover(t.Context(), p.Handle); err != nil {
		t.Fatal(err)
	}
	if _, err := blocker.Exec(t.Context(), "SELECT pg_advisory_unlock(1987013480, 1)"); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err == nil {
		t.Error("the request was carried out after it had been recovered")
	}
	if roleExists(t, p.Handle.Name) {
		t.Error("an orphan role came after recovery")
	}
}

func TestRenewMovesTheEnd(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	p, fields := issue(t, b, "orders")
	if notAfter, err := b.Renew(t.Context(), p.Handle, time.Hour); err != nil || !notAfter.IsZero() {
		t.Fatalf("Renew = %v, %v; the server does not end sessions by itself", notAfter, err)
	}
	var until time.Time
	if err := server.Admin(t, "postgres").QueryRow(t.Context(), "SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", fields["username"]).Scan(&until); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(until); left < 59*time.Minute || left > 61*time.Minute {
		t.Errorf("the role is valid for %v more, want an hour", left)
	}
	if _, err := b.Revoke(t.Context(), p.Handle); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Renew(t.Context(), p.Handle, time.Hour); err == nil || !strings.Contains(err.Error(), credential.ErrRefused.Error()) {
		t.Errorf("renewing a role that is gone: %v", err)
	}
}

// A hundred at once change the rights on one table.
func TestConcurrentLeasesDoNotDisturbEachOther(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	errs := make(chan error)
	const n = 40
	for range n {
		go func() {
			r := request(map[string]string{"table": "orders"})
			p, err := b.Plan(t.Context(), r)
			if err == nil {
				_, err = b.Issue(t.Context(), r, p)
			}
			if err == nil {
				_, err = b.Revoke(t.Context(), p.Handle)
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestCallerChosenValuesAreQuoted(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	p, fields := issue(t, b, `odd"name`)
	conn, err := pgx.Connect(t.Context(), fields["url"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `SELECT * FROM sales."odd""name"`); err != nil {
		t.Error(err)
	}
	if _, err := b.Revoke(t.Context(), p.Handle); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{strings.Repeat("x", 64), "a\x00b"} {
		r := request(map[string]string{"table": bad})
		p, err := b.Plan(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Issue(t.Context(), r, p); err == nil {
			t.Errorf("%q was put into a statement", bad)
		}
	}
}

func TestServerNeverSeesThePassword(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	p, fields := issue(t, b, "orders")
	if _, err := b.Revoke(t.Context(), p.Handle); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(server.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), fields["username"]) {
		t.Fatal("the server logs no statements, so this shows nothing")
	}
	if strings.Contains(string(log), fields["password"]) {
		t.Error("the server's log has the password")
	}
}

func TestHandleOfAnotherRoleIsRefused(t *testing.T) {
	t.Parallel()
	b := open(t, definition(""))
	for _, data := range []string{`{"role":"postgres"}`, `{"role":""}`, `{`, ``} {
		h := credential.Handle{Name: "x", Data: secret.Of([]byte(data))}
		if _, err := b.Revoke(t.Context(), h); err == nil {
			t.Errorf("revoked %s", data)
		}
		if err := b.Recover(t.Context(), h); err == nil {
			t.Errorf("recovered %s", data)
		}
	}
}

func waitFor(t testing.TB, condition func() bool) {
	t.Helper()
	late := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("waited for 20s")
		}
	}
}
