package database_test

import (
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential/database"
)

func judge(t testing.TB, readOnly bool, statements ...string) *database.Definition {
	t.Helper()
	d := &database.Definition{Protocol: database.Postgres, Upstream: "postgres://localhost/x", ReadOnly: readOnly, Statements: statements}
	if err := d.Compile(); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestStatementsAreJudgedByTheirCommand(t *testing.T) {
	selects := judge(t, false, "SELECT")
	for _, sql := range []string{
		"SELECT 1", "select 1;", " ( SELECT 1 ) UNION (SELECT 2)", "/* DELETE */ SELECT 1", "-- DROP\nSELECT 1", "/* a /* b */ DELETE */ SELECT 1",
		"VALUES (1)", "TABLE t", "WITH a AS (SELECT 1) SELECT * FROM a", "SELECT 'DELETE FROM t; DROP TABLE t'", `SELECT "delete" FROM "update"`,
		"SELECT $$ ; DROP TABLE t $$", "SELECT $a$ $$ ; DROP $a$", "SELECT E'it\\'s'", "SELECT 1 -- ; DROP", "SELECT * FROM t FOR UPDATE", "SELECT * FROM t FOR NO KEY UPDATE OF t",
		"", ";", " ; ; -- nothing", "BEGIN", "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE", "COMMIT", "ROLLBACK TO SAVEPOINT a", "END", "START TRANSACTION", "SAVEPOINT a", "RELEASE a",
		"DECLARE c CURSOR FOR SELECT 1", "FETCH 10 FROM c", "CLOSE c", "DEALLOCATE ALL", "DISCARD ALL", "RESET ALL",
		"SET extra_float_digits = 3", "SET SESSION statement_timeout TO '1s'", "SET TIME ZONE 'UTC'", "SET client_encoding TO 'UTF8'", "SET NAMES 'utf8'",
		"SET standard_conforming_strings = on", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT a FROM b WHERE c = $1", "SELECT 1::int4 || 'a\\b'",
	} {
		if err := selects.Judge(sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, sql := range []string{
		"INSERT INTO t VALUES (1)", "(INSERT INTO t VALUES (1))", "DELETE FROM t", "UPDATE t SET a = 1", "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE", "DROP TABLE t", "TRUNCATE t",
		"SELECT 1; DROP TABLE t", "SELECT 1;;DELETE FROM t", ";DROP TABLE t", "/**/;/**/DROP TABLE t",
		"WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a", "WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", "WITH a AS MATERIALIZED (UPDATE t SET a = 1 RETURNING 1) TABLE a",
		"WITH RECURSIVE t AS (SELECT 1) CYCLE a SET b USING key UPDATE x SET y = 1", "WITH RECURSIVE t AS (SELECT 1) CYCLE a SET no USING key UPDATE x SET y = 1",
		"EXPLAIN SELECT 1", "EXPLAIN ANALYZE DELETE FROM t", "SELECT * INTO t2 FROM t", "WITH a AS (SELECT 1) SELECT * INTO x FROM a",
		"COPY t TO STDOUT", "COPY t FROM STDIN", "COPY t TO PROGRAM 'sh'", "COPY (SELECT 1) TO '/tmp/x'", "COPY (DELETE FROM t RETURNING 1) TO STDOUT",
		"DO $$ BEGIN DELETE FROM t; END $$", "CALL p()", "PREPARE p AS DELETE FROM t", "EXECUTE p", "SHOW all", "LISTEN a", "NOTIFY a",
		"SET ROLE postgres", "SET SESSION AUTHORIZATION postgres", "SET LOCAL ROLE x", `SET "role" = 'x'`, "SET search_path = x", "SET standard_conforming_strings = off",
		"SET client_encoding = 'SJIS'", "SET NAMES 'GBK'", "SELECT set_config('role', 'x', false)", `SELECT "set_config"('role', 'x', false)`, `SELECT pg_catalog . "Set_Config"('a', 'b', false)`,
		`SELECT U&"s\0065t_config"('a', 'b', false)`, `SELECT u&"x"`, "PREPARE TRANSACTION 'x'", "COMMIT PREPARED 'x'", "ROLLBACK PREPARED 'x'",
		`SELECT '\'; DROP TABLE t; --'`, `SELECT 'a\'' , '; DELETE FROM t --'`, "SELECT E'a'\n'b\\'; DELETE FROM t; --'", "SELECT 'a", `SELECT "a`, "SELECT $a$ b", "/* SELECT 1", "SELECT 1 /* /* */",
		"SELECT 1\x00; DROP TABLE t", "1", "'SELECT'", `"SELECT" 1`, "$1", "ſELECT 1", "LOCK t", "GRANT SELECT ON t TO x", "ALTER SYSTEM SET a = 1", "VACUUM", "LOAD 'x'", "CHECKPOINT", "REASSIGN OWNED BY a TO b",
		"SELECT 1$$;DROP TABLE t;$$", // a number and a string in dollar quotes: no; but nothing follows
	} {
		if sql == "SELECT 1$$;DROP TABLE t;$$" {
			if err := selects.Judge(sql); err != nil { // one statement, which the server refuses
				t.Errorf("%s: %v", sql, err)
			}
			continue
		}
		if err := selects.Judge(sql); err == nil {
			t.Errorf("%q is allowed", sql)
		}
	}
	if err := selects.Judge(strings.Repeat("(", 1<<19) + "SELECT 1"); err != nil {
		t.Error(err) // the server's own limit is its matter
	}
	if err := selects.Judge("SELECT '" + strings.Repeat("a", database.MaxJudged) + "'"); err == nil {
		t.Error("a statement that is too long is allowed")
	}
	if err := judge(t, false, "SELECT", "PREPARE", "EXPLAIN").Judge(strings.Repeat("EXPLAIN ", 1000) + "SELECT 1"); err == nil {
		t.Error("what is nested a thousand times is allowed")
	}
}

func TestStatementsThatAreListedAreAllowed(t *testing.T) {
	for _, tt := range []struct {
		statements string
		sql        string
		allowed    bool
	}{
		{"SELECT,EXPLAIN", "EXPLAIN (ANALYZE, BUFFERS) SELECT 1", true},
		{"SELECT,EXPLAIN", "EXPLAIN (SELECT 1)", true},
		{"SELECT,EXPLAIN", "EXPLAIN ((SELECT 1))", true},
		{"SELECT,EXPLAIN", "EXPLAIN VERBOSE SELECT 1", true},
		{"SELECT,EXPLAIN", "EXPLAIN ANALYZE DELETE FROM t", false},
		{"SELECT,EXPLAIN", "EXPLAIN (ANALYZE) DELETE FROM t", false},
		{"SELECT,EXPLAIN", "EXPLAIN (ANALYZE) (DELETE FROM t)", false},
		{"SELECT,EXPLAIN", "EXPLAIN ANALYZE CREATE TABLE a AS SELECT 1", false},
		{"SELECT,EXPLAIN", "EXPLAIN ANALYZE EXECUTE p", false},
		{"SELECT,INSERT", "INSERT INTO t SELECT 1 ON CONFLICT DO NOTHING", true},
		{"SELECT,INSERT", "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 1", false},
		{"SELECT,INSERT", "WITH a AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM a", true},
		{"SELECT,INSERT", "WITH a AS (INSERT INTO t VALUES (1) RETURNING *) DELETE FROM t", false},
		{"INSERT", "INSERT INTO t VALUES (1)", true},
		{"MERGE,INSERT", "MERGE INTO t USING s ON true WHEN NOT MATCHED THEN INSERT VALUES (1)", true},
		{"MERGE", "MERGE INTO t USING s ON true WHEN NOT MATCHED THEN INSERT VALUES (1)", false},
		{"SELECT,COPY TO", "COPY t (a, b) TO STDOUT WITH (FORMAT csv)", true},
		{"SELECT,COPY TO", "COPY (SELECT * FROM t) TO STDOUT", true},
		{"SELECT,COPY TO", "COPY (SELECT 1) TO PROGRAM 'sh'", false},
		{"SELECT,COPY TO", "COPY t TO '/etc/passwd'", false},
		{"SELECT,COPY TO", "COPY t FROM STDIN", false},
		{"SELECT,COPY TO", "COPY (WITH a AS (DELETE FROM t RETURNING 1) SELECT 1) TO STDOUT", false},
		{"COPY TO", "COPY (SELECT 1) TO STDOUT", false},
		{"COPY FROM", "COPY t FROM STDIN", true},
		{"COPY FROM", "COPY t FROM PROGRAM 'curl x'", false},
		{"SELECT,PREPARE,EXECUTE", "PREPARE p (int) AS SELECT $1", true},
		{"SELECT,PREPARE,EXECUTE", "PREPARE p AS DELETE FROM t", false},
		{"SELECT,PREPARE,EXECUTE", "EXECUTE p (1)", true},
		{"SET", "SET search_path = a, b", true},
		{"SET", "SET ROLE x", false},
		{"SET", "SET standard_conforming_strings TO off", false},
		{"SELECT,SET", "SELECT set_config('work_mem', '1MB', false)", true},
		{"SELECT,UPDATE", "UPDATE pg_settings SET setting = 'off' WHERE name = 'x'", false},
		{"SELECT,UPDATE", "UPDATE t SET a = 1", true},
		{"CREATE", "CREATE TABLE t (a int REFERENCES u ON DELETE CASCADE)", true},
		{"CREATE", "CREATE RULE r AS ON INSERT TO t DO INSTEAD DELETE FROM t", false},
		{"GRANT", "GRANT INSERT, DELETE ON t TO x", true},
		{"DO", "DO $$ BEGIN END $$", true},
	} {
		d := judge(t, false, strings.Split(tt.statements, ",")...)
		if err := d.Judge(tt.sql); (err == nil) != tt.allowed {
			t.Errorf("with %s, %s: %v", tt.statements, tt.sql, err)
		}
	}
}

func TestReadOnlyConnectionsStaySo(t *testing.T) {
	d := judge(t, true)
	for _, sql := range []string{"SELECT 1", "SHOW ALL", "COPY t TO STDOUT", "SET search_path = a", "BEGIN READ ONLY", "EXPLAIN ANALYZE SELECT 1", "SET TRANSACTION READ ONLY"} {
		if err := d.Judge(sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, sql := range []string{
		"BEGIN READ WRITE", "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ/**/WRITE", "SET TRANSACTION READ WRITE", "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
		"SET default_transaction_read_only = off", "SET LOCAL transaction_read_only TO off", `SET "transaction_read_only" = 'off'`, "SET SESSION Default_Transaction_Read_Only TO DEFAULT",
		"SELECT set_config('transaction_read_only', 'off', false)", "DO $$ BEGIN END $$", "INSERT INTO t VALUES (1)", "CREATE TEMP TABLE t (a int)", "UPDATE pg_settings SET setting = 'off'", "CALL p()",
	} {
		if err := d.Judge(sql); err == nil {
			t.Errorf("%q is allowed", sql)
		}
	}
	bad := &database.Definition{Protocol: database.Postgres, Upstream: "postgres://localhost/x", ReadOnly: true, Statements: []string{"INSERT"}}
	if err := bad.Compile(); err == nil {
		t.Error("read_only and INSERT go together")
	}
}

// FuzzJudge: whatever is judged, the judge ends, and it says the same of the text with its
// white space and comments at the ends changed.
func FuzzJudge(f *testing.F) {
	for _, s := range []string{"SELECT 1", "SELECT '\\'", "COPY (SELECT $$ $$) TO STDOUT", "EXPLAIN (ANALYZE) SELECT U&'x'", "SET a = /* b", "PREPARE a (b) AS SELECT $1", `SELECT "a""b" -- c`, "(((", "e'\\"} {
		f.Add(s)
	}
	d := judge(f, false, "SELECT", "COPY TO", "EXPLAIN", "PREPARE", "SET")
	f.Fuzz(func(t *testing.T, sql string) {
		err := d.Judge(sql)
		if len(sql) > 1<<16 {
			return
		}
		if again := d.Judge("/* x */ " + sql); (err == nil) != (again == nil) {
			t.Errorf("%q: %v, and with a comment before it: %v", sql, err, again)
		}
		if err == nil && d.Judge(sql+"\n; DROP TABLE t") == nil && strings.TrimSpace(sql) != "" {
			t.Errorf("%q may be followed by another", sql)
		}
	})
}
