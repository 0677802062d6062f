package inventory

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/inventory/inventorytest"
	"github.com/vouchd/vouchd/inventory/scan"
)

// vouch runs the command line.
func vouch(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var o cli.Options
	root := &cobra.Command{Use: "vouch", SilenceUsage: true, SilenceErrors: true}
	o.Flags(root)
	root.AddCommand(Commands(&o)...)
	var out, errs bytes.Buffer
	code = cli.Execute(context.Background(), root, args, &out, &errs)
	return out.String(), errs.String(), code
}

func TestEveryPlantedSecretIsFoundOnceAndNoneIsShown(t *testing.T) {
	t.Parallel()
	g := inventorytest.Plant(t)
	key := filepath.Join(t.TempDir(), "state", "key")
	run := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := vouch(t, append([]string{"inventory", "--history", "--key", key}, append(args, g.Root)...)...)
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		g.HoldsNothing(stdout + stderr)
		return stdout
	}
	var result scan.Result
	if err := json.Unmarshal([]byte(run("--output", "json")), &result); err != nil {
		t.Fatal(err)
	}
	got, kinds, prints, total := make(map[string]int), make(map[string]bool), make(map[string]bool), 0
	for _, f := range result.Findings {
		if f.Leased {
			continue
		}
		path := f.Path
		if f.Kind == "history" {
			path, _, _ = strings.Cut(strings.TrimPrefix(path, "git:"), "@")
		}
		got[f.Kind+" "+path]++
		kinds[f.Kind] = true
		total++
		if prints[f.Fingerprint] {
			t.Errorf("%s %s is found twice", f.Path, f.Item)
		}
		prints[f.Fingerprint] = true
		if f.Replace == "" || f.Access == "" || len(f.Readers) == 0 || f.Modified.IsZero() || !f.Static() {
			t.Errorf("%s %s: not all is told: %+v", f.Path, f.Item, f)
		}
	}
	for _, place := range slices.Sorted(maps.Keys(g.Want)) {
		if got[place] != g.Want[place] {
			t.Errorf("%s: %d secrets found, want %d", place, got[place], g.Want[place])
		}
		delete(got, place)
	}
	for place, n := range got {
		t.Errorf("%s: %d found that are none", place, n)
	}
	if total < 40 || len(kinds) < 20 {
		t.Errorf("%d secrets of %d kinds, want 40 of 20 at least", total, len(kinds))
	}
	text := run()
	if want := fmt.Sprintf("%d secrets in %d places: %d static; 7 places are leased from vouchd\n", total, total, total); !strings.HasPrefix(text, want) {
		t.Errorf("text begins with %.100q, want %q", text, want)
	}
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "/") && len([]rune(strings.TrimRight(line, "\n"))) > 80 {
			t.Errorf("a line of more than 80 columns: %q", line)
		}
	}
	if rows := strings.Count(run("--output", "csv"), "\n"); rows != len(result.Findings)+1 {
		t.Errorf("CSV has %d rows, want %d", rows, len(result.Findings)+1)
	}
}
