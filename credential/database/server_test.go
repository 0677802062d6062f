package database_test

import (
	"context"
	"flag"
	"testing"

	"github.com/vouchd/vouchd/credential/postgres/pgtest"
)

var pieces = flag.Int("pieces", 3, "of how many pieces the texts are that a server is asked to read")

// TestServerReadsWhatIsAllowedAsItWasJudged: a real server, with strings read either way,
// does nothing but SELECT of every text of a few pieces that lexers stumble over, with a
// DELETE somewhere between them.
func TestServerReadsWhatIsAllowedAsItWasJudged(t *testing.T) {
	t.Parallel()
	s, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	c := s.Admin(t, "postgres").PgConn()
	ctx := context.Background()
	if err := c.Exec(ctx, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)").Close(); err != nil {
		t.Fatal(err)
	}
	core := []string{"'", `\`, `"`, "$$", "$a$", "/*", "*/", "--", "E'", "U&'", "1", "\n"}
	d := judge(t, false, "SELECT")
	asked, run := 0, 0
	ask := func(sql string) {
		if d.Judge(sql) != nil {
			return
		}
		for _, setting := range []string{"on", "off"} {
			asked++
			if err := c.Exec(ctx, "ROLLBACK; BEGIN; SET LOCAL standard_conforming_strings = "+setting).Close(); err != nil {
				t.Fatal(err)
			}
			results := c.Exec(ctx, sql)
			for results.NextResult() {
				tag, err := results.ResultReader().Close()
				if err == nil && !tag.Select() && tag.String() != "" {
					t.Fatalf("with standard_conforming_strings %s, the server makes %s of %q", setting, tag, sql)
				}
				if err == nil {
					run++
				}
			}
			results.Close() // most are no SQL
		}
	}
	var compose func(text string, left int, has bool)
	compose = func(text string, left int, has bool) {
		if has {
			ask(text)
		}
		if left == 0 {
			return
		}
		if !has {
			for _, payload := range []string{"; DELETE FROM t;", "DELETE FROM t"} {
				compose(text+payload, left, true)
			}
		}
		for _, p := range core {
			compose(text+p, left-1, has)
		}
	}
	for _, first := range []string{"SELECT ", "", "WITH a AS (SELECT 1) "} {
		compose(first, *pieces, false)
	}
	t.Logf("of %d texts that are allowed, %d ran", asked, run)
	if run == 0 {
		t.Error("nothing was SQL")
	}
}
