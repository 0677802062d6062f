//go:build clients

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/databasetest"
)

// TestProxyClientsOfDatabases: drivers of other languages connect without a password, with
// statements judged and without.
func TestProxyClientsOfDatabases(t *testing.T) {
	h := databasetest.New(t)
	h.Start()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = h.Dir
		cmd.Env = append(os.Environ(), "SOCKET="+h.Socket("tides"), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s %s: %v", name, strings.Join(args, " "), err)
		}
		return string(out)
	}
	vouch := daemontest.Program(t, "vouch")
	h.Write("package.json", `{"type":"module","dependencies":{"pg":"8.16.3"}}`)
	run("npm", "install", "--no-fund", "--no-audit", "--silent")
	h.Write("query.js", `
import pg from "pg"
const c = new pg.Client(process.env.DATABASE_URL ? process.env.DATABASE_URL : {host: process.env.SOCKET, database: "postgres"})
await c.connect()
const one = await c.query("SELECT height + $1::int AS h FROM tides", [1])
const named = await c.query({name: "n", text: "SELECT $1::text AS t", values: ["x"]})
const many = await c.query("SELECT generate_series(1, 20000)")
let refused = "nothing"
try { await c.query("DROP TABLE tides") } catch (e) { refused = e.code }
console.log("node-postgres reads", one.rows[0].h, named.rows[0].t, many.rowCount, refused)
await c.end()
`)
	h.Write("query.py", `
import os, psycopg2
c = psycopg2.connect(host=os.environ["SOCKET"], dbname="postgres", user="anybody")
with c, c.cursor() as q:
    q.execute("SELECT height + %s FROM tides", (1,))
    h = q.fetchone()[0]
with c, c.cursor("portal") as q: # a cursor on the server
    q.itersize = 1000
    q.execute("SELECT generate_series(1, 20000)")
    n = sum(1 for _ in q)
refused = "nothing"
try:
    with c, c.cursor() as q: q.execute("DROP TABLE tides")
except psycopg2.Error as e: refused = e.pgcode
print("psycopg2 reads", h, n, refused)
`)
	query, err := os.ReadFile("testdata/Query.java")
	must(t, err)
	h.Write("Query.java", string(query))
	run("javac", "Query.java")
	check := func(judged string) {
		t.Helper()
		for _, tt := range []struct{ want, out string }{
			{"node-postgres reads 8 x 20000 42501\n", run("node", "query.js")},
			{"node-postgres reads 8 x 20000 42501\n", run(vouch, "exec", "--proxy", "tides", "--", "node", "query.js")},
			{"psycopg2 reads 8 20000 42501\n", run("/usr/bin/python3", "query.py")},
			{"JDBC reads 1000 rows\n", run("java", "-cp", "/usr/share/java/postgresql.jar:.", "Query", h.Socket("tides")+"/.s.PGSQL.5432")},
		} {
			if tt.out != tt.want {
				t.Errorf("%s: %s, want %s", judged, tt.out, tt.want)
			}
		}
	}
	check("unjudged") // the login may not drop either
	h.Define("statements: [SELECT]")
	daemontest.Eventually(t, "statements are judged", func() bool {
		out, _ := h.Psql("SHOW server_version;\n")
		return strings.Contains(out, "SHOW is not among")
	})
	check("judged")
}
