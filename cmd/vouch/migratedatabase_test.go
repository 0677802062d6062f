package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
)

// TestMigratedDatabaseURLIsLoggedInByTheDaemon: the program has a URL without a password.
func TestMigratedDatabaseURLIsLoggedInByTheDaemon(t *testing.T) {
	t.Parallel()
	server, err := leasetest.Database()
	must(t, err)
	admin := server.Admin(t, "postgres")
	t.Cleanup(func() { admin.Exec(context.Background(), "DROP OWNED BY migrated; DROP ROLE migrated") })
	_, err = admin.Exec(t.Context(), "CREATE ROLE migrated LOGIN PASSWORD 'canary/4'; GRANT SELECT ON tides TO migrated")
	must(t, err)
	before := fmt.Sprintf("DATABASE_URL=postgres://migrated:canary%%2F4@localhost:%d/postgres?sslmode=require\nREPORTS_URL=postgres://migrated:canary%%2F4@localhost:%[1]d/postgres\nPORT=80\n", server.Port)
	h, file := newMigratingHost(t, before)
	h.Configure("proxy_socket: " + h.Path("proxy.sock") + "\n")
	h.Start()
	out := h.OK("migrate", "env", file, "--credential-prefix", "app")
	if got := read(t, file); got != "DATABASE_URL=vouch:app-database-url\nREPORTS_URL=vouch:app-reports-url\nPORT=80\n" {
		t.Errorf("the file is\n%s\nand it says\n%s", got, out)
	}
	definitions := read(t, h.Path("credentials.d/app.yaml.disabled"))
	if strings.Contains(definitions, "canary") || strings.Count(definitions, "protocol: postgres") != 2 {
		t.Errorf("definitions are\n%s", definitions)
	}
	definitions = strings.ReplaceAll(definitions, "      protocol: postgres\n", "      protocol: postgres\n      ca_file: "+server.CAFile+"\n")
	h.Write("credentials.d/app.yaml", definitions)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/app\", selectors: [\"unix:uid:%d\"], credentials: [app-database-url, app-reports-url]}\n", os.Getuid()))
	h.OK("check")
	eventually(t, "the sockets are there", func() bool {
		_, err := os.Stat(h.Path("pg/app-reports-url/.s.PGSQL.5432"))
		return err == nil
	})
	script := `psql -X -A -t "$DATABASE_URL" -c "SELECT height, current_user FROM tides"; psql -X -A -t "$REPORTS_URL" -c "SELECT height FROM tides"; env`
	out = h.OK("exec", "--env-file", file, "--", "sh", "-c", script)
	if !strings.HasPrefix(out, "7|migrated\n7\n") || strings.Contains(out, "canary") || !matches(`(?m)^DATABASE_URL=postgresql://vouch[a-z2-7]{32}@/postgres\?host=`+h.Path("pg/app-database-url")+"$", out) {
		t.Errorf("the program has\n%s", out)
	}

	// A database that is defined already needs no sealed URL, and no vouch exec.
	h.Write("app.env", before)
	out = h.OK("migrate", "env", file, "--credential-prefix", "app", "--database", "DATABASE_URL=app-database-url", "--database", "REPORTS_URL=app-reports-url")
	url := "postgresql:///postgres?host=" + h.Path("pg/app-database-url")
	if got := read(t, file); !strings.HasPrefix(got, "DATABASE_URL="+url+"\nREPORTS_URL=postgresql:///postgres?host=") || !strings.Contains(out, "DATABASE_URL names the socket of app-database-url") {
		t.Errorf("the file is\n%s\nand it says\n%s", got, out)
	}
	if out := h.OK("migrate", "env", file, "--credential-prefix", "app", "--database", "DATABASE_URL=app-database-url", "--keep", "REPORTS_URL"); !strings.Contains(out, "DATABASE_URL kept as is: the URL of a database's socket") {
		t.Errorf("once more it says\n%s", out)
	}
	for args, want := range map[string]string{"DATABASE_URL": "want VARIABLE=CREDENTIAL", "DATABASE_URL=other": "no credential other with a database block"} {
		if _, stderr, code := h.Vouch("migrate", "env", file, "--credential-prefix", "app", "--database", args); code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("--database %s: %s", args, stderr)
		}
	}
}
