package daemon_test

import (
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/databasetest"
)

func TestAgentQueriesADatabaseWithoutAPassword(t *testing.T) {
	t.Parallel()
	h := databasetest.New(t)
	h.Start()
	c := h.Agent()
	var height int
	must(t, c.QueryRow(t.Context(), "SELECT height FROM tides").Scan(&height))
	var user string
	must(t, c.QueryRow(t.Context(), "SELECT current_user").Scan(&user))
	if height != 7 || !matches("^vouch_tides_", user) {
		t.Errorf("the agent reads %d as %s", height, user)
	}
	if out, code := h.Psql("SELECT height FROM tides;\n"); code != 0 || out != "7\n" {
		t.Errorf("psql exits %d: %s", code, out)
	}
}
