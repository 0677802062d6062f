package credential_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vouchd/vouchd/credential"
)

var update = flag.Bool("update", false, "write what the tests get into their golden files")

// Each file of testdata/refused is a directory of definitions and, as "want",
// the whole message about it.
func TestLoadDefinitionsRefuses(t *testing.T) {
	t.Parallel()
	cases, err := filepath.Glob("testdata/refused/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			if err := txtar.Write(archive, root); err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join(root, "want"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = credential.LoadDefinitions(filepath.Join(root, "credentials.d"), every, true)
			got := strings.ReplaceAll(fmt.Sprintln(err), root+"/", "")
			if *update {
				for i := range archive.Files {
					if archive.Files[i].Name == "want" {
						archive.Files[i].Data = []byte(got)
					}
				}
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestDefinitionHoldsWhatIsWrittenAndDefaultsForTheRest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := `
credentials:
  - name: full
    description: Read sales.
    broker: postgres
    ttl: 2m
    max_ttl: 1h
    renewable: true
    bind: unit
    limits:
      rate: 5/30s
      concurrent: 2
      hours: [mon-fri 08:00-18:00, "sat,sun 10:00-24:00 Europe/Berlin"]
    parameters:
      - {name: table, one_of: [orders, customers], default: orders}
      - {name: ticket, pattern: "[A-Z]+-[0-9]+"}
    postgres: &
  - name: plain
    broker: postgres
    postgres: &
`
	text = strings.ReplaceAll(text, "&", `{host: db.internal, database: d, user: u, grants: ["GRANT a TO {{role}}"]}`)
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	defs, err := credential.LoadDefinitions(dir, every, true)
	if err != nil {
		t.Fatal(err)
	}
	full, ok := defs.Get("full")
	if !ok || full.TTL != 2*time.Minute || full.MaxTTL != time.Hour || !full.Renewable || full.Bind != credential.BindUnit ||
		full.Limits.Rate.String() != "5/30s" || full.Limits.Concurrent != 2 || len(full.Limits.Hours) != 2 ||
		len(full.Parameters) != 2 || full.Pos.Line != 3 || full.Description != "Read sales." {
		t.Errorf("full = %+v", full)
	}
	if want := (credential.Traits{Upstream: "postgres://db.internal:5432/d", Revocation: credential.Hard, Renews: true}); full.Traits != want {
		t.Errorf("traits %+v, want %+v", full.Traits, want)
	}
	plain, ok := defs.Get("plain")
	if !ok || plain.TTL != 5*time.Minute || plain.MaxTTL != plain.TTL || plain.Renewable || plain.Bind != credential.BindProcess ||
		plain.Limits.Rate.N == 0 || plain.Limits.Concurrent == 0 || len(plain.Limits.Hours) != 0 {
		t.Errorf("plain = %+v", plain)
	}
	if all := defs.All(); len(all) != 2 || all[0] != full || all[1] != plain {
		t.Errorf("All = %v", all)
	}
}

func TestMissingDirectoryDefinesNothing(t *testing.T) {
	t.Parallel()
	defs, err := credential.LoadDefinitions(filepath.Join(t.TempDir(), "credentials.d"), every, true)
	if err != nil || len(defs.All()) != 0 {
		t.Errorf("%v, %v", defs.All(), err)
	}
	var none *credential.Definitions
	if _, ok := none.Get("x"); ok || len(none.All()) != 0 {
		t.Error("no definitions define something")
	}
}

func TestDigestTellsDefinitionsApart(t *testing.T) {
	t.Parallel()
	digest := func(comment string) [32]byte {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("#"+comment), 0o600); err != nil {
			t.Fatal(err)
		}
		defs, err := credential.LoadDefinitions(dir, every, true)
		if err != nil {
			t.Fatal(err)
		}
		return defs.Digest()
	}
	one, same, other := digest("a"), digest("a"), digest("b")
	if one != same || one == other {
		t.Error("the digest does not follow the files")
	}
}
