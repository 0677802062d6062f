package auditor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/audit/analyst"
)

func TestReportTakesWhatAnInventoryHasFound(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "inventory.json")
	for text, want := range map[string]int{
		`{"time": "2026-11-26T10:00:00Z", "findings": [
			{"kind": "env", "path": "/a\u001b[2J", "item": "A", "places": 1, "access": "everyone", "readers": ["everyone"], "modified": "2026-10-01T00:00:00Z"},
			{"kind": "env", "path": "/b", "item": "B", "places": 1, "access": "owner", "modified": "2026-10-01T00:00:00Z"},
			{"kind": "env", "path": "/c", "item": "C", "leased": true, "modified": "2020-10-01T00:00:00Z"},
			{"kind": "env", "path": "/d", "item": "D", "places": 1, "expires": "2027-10-01T00:00:00Z", "modified": "2020-10-01T00:00:00Z"}]}`: 1,
		`{"time": "2026-11-26T10:00:00Z", "findings": []}`: 0,
		`{"findings": []}`: -1,
		`[]`:               -1,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		u := new(analyst.Usage)
		err := addInventory(new(cobra.Command), u, file)
		if got := len(u.Static); want >= 0 && (err != nil || got != want) || want < 0 && err == nil {
			t.Errorf("%.60s: %d secrets, %v; want %d", text, got, err, want)
		}
		if len(u.Static) > 0 && strings.Contains(u.Static[0].Path, "\x1b") {
			t.Error("a terminal would obey a path")
		}
	}
}
