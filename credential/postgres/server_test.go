package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/postgres"
	"github.com/vouchd/vouchd/credential/postgres/pgtest"
)

func TestServerIsReachedOverTLSAloneAndUnderItsName(t *testing.T) {
	t.Parallel()
	wrong := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(wrong, []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, host, caFile string
		works              bool
	}{
		{"its own authority and name", "localhost", server.CAFile, true},
		{"another name", "127.0.0.1", server.CAFile, false},
		{"a file without a certificate", "localhost", wrong, false},
		{"no such file", "localhost", wrong + "x", false},
		{"the machine's authorities", "localhost", "", false},
	} {
		text := strings.Replace(definition(""), "host: "+server.SocketDir, "host: "+tt.host, 1)
		if tt.caFile != "" {
			text = strings.Replace(text, "database: warehouse", "database: warehouse\n      ca_file: "+tt.caFile, 1)
		}
		b := open(t, text)
		r := request(map[string]string{"table": "orders"})
		p, err := b.Plan(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Issue(t.Context(), r, p)
		if tt.works != (err == nil) || err != nil && !errors.Is(err, credential.ErrUpstream) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if strings.Contains(fmt.Sprint(err), vouchdPassword) {
			t.Errorf("%s: the error has the password", tt.name)
		}
		if tt.works {
			if _, err := b.Revoke(t.Context(), p.Handle); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestServerThatRefusesTheDaemonIsNotUnavailable(t *testing.T) {
	t.Parallel()
	for name, change := range map[string][2]string{
		"an unknown user":            {"user: vouchd", "user: nobody"},
		"a grant beyond its rights":  {"GRANT SELECT ON sales.{{table}}", "GRANT SELECT ON pg_catalog.pg_authid"},
		"a grant that is no grant":   {"GRANT SELECT ON sales.{{table}}", "GRANT NONSENSE ON sales.{{table}}"},
		"a grant on what is not":     {"GRANT SELECT ON sales.{{table}}", "GRANT SELECT ON sales.nothing"},
		"a role above the daemon's ": {"GRANT SELECT ON sales.{{table}} TO", "ALTER ROLE {{role}} SUPERUSER; GRANT SELECT ON sales.{{table}} TO"},
	} {
		b := open(t, strings.Replace(definition(""), change[0], change[1], 1))
		r := request(map[string]string{"table": "orders"})
		p, err := b.Plan(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Issue(t.Context(), r, p); !errors.Is(err, credential.ErrRefused) && name != "an unknown user" || err == nil {
			t.Errorf("%s: %v", name, err)
		}
		if roleExists(t, p.Handle.Name) {
			t.Errorf("%s: a role is left though its grants were refused", name)
		}
	}
}

// holder is a real process that leases.
func holder(t *testing.T) (h credential.Holder, leave func()) {
	t.Helper()
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	exit := make(chan struct{})
	go func() {
		child.Wait()
		close(exit)
	}()
	leave = func() { child.Process.Kill(); <-exit }
	t.Cleanup(leave)
	return credential.Holder{
		ID:      spiffeid.RequireFromString("spiffe://example.org/agent"),
		Process: credential.Process{PID: child.Process.Pid, BootID: "boot"},
		Exit:    exit,
	}, leave
}

// The whole story: an agent gets a login, uses it, and exits; a second later the
// login is refused and the open session is gone.
func TestLoginEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	for _, restarted := range []bool{false, true} {
		dir := crashDir(t, "ends")
		m, err := openManager(dir, postgres.Open, records{})
		if err != nil {
			t.Fatal(err)
		}
		h, leave := holder(t)
		g, err := m.Grant(t.Context(), h, credential.Ask{Name: "ends", Granted: []string{"ends"}})
		if err != nil {
			t.Fatal(err)
		}
		fields := make(map[string]string)
		for _, f := range g.Fields {
			fields[f.Name] = string(f.Value.Reveal())
		}
		session, err := pgx.Connect(t.Context(), fields["url"])
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close(context.Background())
		if _, err := session.Exec(t.Context(), "SELECT n FROM sales.orders"); err != nil {
			t.Fatal(err)
		}
		if restarted {
			m.Close()
			leave()
			if m, err = openManager(dir, postgres.Open, records{}); err != nil {
				t.Fatal(err)
			}
		} else {
			leave()
		}
		defer m.Close()
		began := time.Now()
		waitFor(t, func() bool { return len(m.Leases()) == 0 })
		if took := time.Since(began); took > time.Second {
			t.Errorf("restarted %v: it took %v", restarted, took)
		}
		if _, err := pgx.Connect(t.Context(), fields["url"]); err == nil {
			t.Errorf("restarted %v: the login works on", restarted)
		}
		if _, err := session.Exec(t.Context(), "SELECT 1"); err == nil {
			t.Errorf("restarted %v: the open session goes on", restarted)
		}
	}
}

func TestServerThatIsDownIsAskedAgainUntilTheRoleIsGone(t *testing.T) {
	t.Parallel()
	own, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Stop()
	admin, err := own.Login(t.Context(), "postgres", own.Password, "postgres")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Exec(t.Context(), "CREATE SCHEMA sales; CREATE TABLE sales.orders (n int)"); err != nil {
		t.Fatal(err)
	}
	admin.Close(t.Context())
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(own.Password), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := crashDir(t, "down")
	path := filepath.Join(dir, "credentials.d", "a.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.NewReplacer(server.SocketDir, own.SocketDir, fmt.Sprint("port: ", server.Port), fmt.Sprint("port: ", own.Port),
		"user: vouchd", "user: postgres", "database: warehouse", "database: postgres", passwordFile, password).Replace(string(text))
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := openManager(dir, postgres.Open, records{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	h, leave := holder(t)
	g, err := m.Grant(t.Context(), h, credential.Ask{Name: "down", Granted: []string{"down"}})
	if err != nil {
		t.Fatal(err)
	}
	own.Halt()
	if _, err := m.Grant(t.Context(), h, credential.Ask{Name: "down", Granted: []string{"down"}}); !errors.Is(err, credential.ErrUpstream) {
		t.Errorf("while the server is down: %v", err)
	}
	leave()
	waitFor(t, func() bool { l := m.Leases(); return len(l) == 2 && l[0].Attempts > 0 && l[1].Attempts > 0 })
	if err := own.Restart(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return len(m.Leases()) == 0 })
	admin, err = own.Login(t.Context(), "postgres", own.Password, "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	var n int
	if err := admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_roles WHERE rolname LIKE 'vouch\_%'`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d roles are left, %v; one was %s", n, err, g.Lease.Handle)
	}
}
