package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/brokers"
	"github.com/vouchd/vouchd/identity"
)

// enabled is the package's configuration with every example in force.
func enabled(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"entries.d", "credentials.d"} {
		files, err := filepath.Glob("../../packaging/etc/" + sub + "/*.yaml.disabled")
		if err != nil || len(files) == 0 {
			t.Fatalf("no examples in %s: %v", sub, err)
		}
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			to := filepath.Join(dir, sub, strings.TrimSuffix(filepath.Base(file), ".disabled"))
			if sub == "entries.d" && filepath.Base(to) == "example.yaml" {
				continue // it has an entry of the same identity, to begin with
			}
			if err := os.WriteFile(to, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "vouchd.yaml"), []byte("trust_domain: example.org\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestShippedExamplesPassTheCheck(t *testing.T) {
	t.Parallel()
	var out, errOut bytes.Buffer
	if code := cli.Execute(t.Context(), newRoot(), []string{"check", enabled(t)}, &out, &errOut); code != 0 || !strings.Contains(out.String(), "4 entries, 5 credentials") {
		t.Errorf("vouch check exits %d: %s%s", code, &out, &errOut)
	}
}

func TestEachExampleAgentHasItsOwnScopeAlone(t *testing.T) {
	t.Parallel()
	dir := enabled(t)
	es, err := identity.LoadEntries(filepath.Join(dir, "entries.d"), spiffeid.RequireTrustDomainFromString("example.org"), identity.Limits{MaxX509TTL: 24 * 3600e9, AnyOwner: true})
	if err != nil {
		t.Fatal(err)
	}
	defs, err := credential.LoadDefinitions(filepath.Join(dir, "credentials.d"), brokers.All(brokers.Deps{}), true)
	if err != nil {
		t.Fatal(err)
	}
	matrix := map[string][]string{
		"/agent/research": {"openai-research", "warehouse-readonly"},
		"/agent/crm":      {"crm-sync"},
		"/agent/code":     {"sandbox"},
		"/agent/mail":     {"mail-drafts"},
	}
	for _, e := range es.All() {
		if want := matrix[e.ID.Path()]; !slices.Equal(e.Credentials, want) {
			t.Errorf("%s may lease %q, want %q", e.ID, e.Credentials, want)
		}
	}
	for name, refused := range map[string]string{"crm-sync": "billing", "sandbox": "../other", "warehouse-readonly": "billing"} {
		d, ok := defs.Get(name)
		if !ok {
			t.Fatalf("%s is not defined", name)
		}
		for _, p := range d.Parameters {
			if slices.Contains(p.OneOf, refused) || p.Pattern != nil && p.Pattern.MatchString(refused) {
				t.Errorf("%s lets the caller choose %q", name, refused)
			}
		}
	}
}
