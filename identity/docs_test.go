package identity

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
)

// The tables say of every key what the program says of it, in the same order,
// and of nothing else.
func TestConfigurationDocumentTellsEveryKeyAsItIs(t *testing.T) {
	t.Parallel()
	tables := documentTables(t)
	checkKeys(t, tables[0], config.Keys(config.Config{}))
	entryKeys := config.Keys(document{})
	for i := range entryKeys {
		entryKeys[i].Name = strings.TrimPrefix(entryKeys[i].Name, "entries[].")
	}
	checkKeys(t, tables[1], entryKeys)
}

func checkKeys(t *testing.T, rows [][]string, keys []config.Key) {
	t.Helper()
	var documented, known []string
	for _, row := range rows {
		documented = append(documented, strings.Trim(row[0], "`"))
	}
	for _, k := range keys {
		known = append(known, k.Name)
	}
	if diff := cmp.Diff(known, documented); diff != "" {
		t.Fatalf("keys: -program +document:\n%s", diff)
	}
	for i, k := range keys {
		meaning, byDefault, allowed := rows[i][1], rows[i][2], rows[i][3]
		if meaning == "" || byDefault == "" || allowed == "" {
			t.Errorf("%s: an empty cell", k.Name)
		}
		if k.Required != (byDefault == "required") {
			t.Errorf("%s: document says default %s, required is %t", k.Name, byDefault, k.Required)
		}
		if k.Default != "" && !strings.HasPrefix(byDefault, "`"+k.Default+"`") {
			t.Errorf("%s: document says default %s, program %s", k.Name, byDefault, k.Default)
		}
		if ends := fmt.Sprintf("`%s` to `%s`", k.Min, k.Max); k.Min != "" && !strings.HasPrefix(allowed, ends) {
			t.Errorf("%s: document allows %s, program %s", k.Name, allowed, ends)
		}
		if words := "`" + strings.Join(k.OneOf, "`, `") + "`"; len(k.OneOf) > 0 && allowed != words {
			t.Errorf("%s: document allows %s, program %s", k.Name, allowed, words)
		}
	}
}

// documentTables returns the cells of each table, without its head.
func documentTables(t *testing.T) [][][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var tables [][][]string
	for line := range strings.Lines(string(text)) {
		switch cells := strings.Split(strings.TrimSpace(line), " | "); {
		case strings.HasPrefix(line, "|---"):
			tables = append(tables, nil)
		case strings.HasPrefix(line, "| `"):
			cells[0] = strings.TrimPrefix(cells[0], "| ")
			cells[len(cells)-1] = strings.TrimSuffix(cells[len(cells)-1], " |")
			last := len(tables) - 1
			tables[last] = append(tables[last], cells)
		}
	}
	if len(tables) != 2 {
		t.Fatalf("%d tables, want those of vouchd.yaml and of an entry", len(tables))
	}
	return tables
}

func TestExamplesOfTheDocumentLoad(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, block := range regexp.MustCompile("(?s)```yaml\n# ([a-z./]+)\n(.*?)```").FindAllSubmatch(text, -1) {
		name := string(block[1])
		seen[name] = true
		dir := write(t, map[string]string{"x.yaml": string(block[2])})
		var err error
		if name == "vouchd.yaml" {
			_, err = config.Load(dir + "/x.yaml")
		} else {
			_, err = LoadEntries(dir, td, limits)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !seen["vouchd.yaml"] || !seen["entries.d/research.yaml"] {
		t.Errorf("found only %v", seen)
	}
}

func TestPackagedSettingsAreTheDefaultsWrittenOut(t *testing.T) {
	t.Parallel()
	packaged, err := os.ReadFile("../packaging/etc/vouchd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	load := func(text []byte) config.Config {
		c, err := config.Load(write(t, map[string]string{"vouchd.yaml": string(text)}) + "/vouchd.yaml")
		if err != nil {
			t.Fatal(err)
		}
		return *c
	}
	// A default is a comment that has no space after its sign.
	written := regexp.MustCompile(`(?m)^#([^ \n]|  +)`).ReplaceAll(packaged, []byte("$1"))
	for _, k := range config.Keys(config.Config{}) {
		if name := k.Name[strings.LastIndexByte(k.Name, '.')+1:]; !bytes.Contains(written, []byte(name+": ")) {
			t.Errorf("%s is not in the packaged file", k.Name)
		}
	}
	same := cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b })
	uncommented := load(written)
	uncommented.Log.Witnesses = nil // an example: there is no default
	v := &uncommented.Authority.Vault
	*v = config.Vault{Mount: v.Mount, Auth: v.Auth, TTL: v.TTL} // the others are examples too
	uncommented.Authority.SPIRE.Server, uncommented.Authority.SPIRE.MaxStale = "", 0
	if diff := cmp.Diff(load(packaged), uncommented, same); diff != "" {
		t.Errorf("-defaults +as written in the packaged file:\n%s", diff)
	}
}

func TestPackagedEntriesLoadOnceEnabled(t *testing.T) {
	t.Parallel()
	example, err := os.ReadFile("../packaging/etc/entries.d/example.yaml.disabled")
	if err != nil {
		t.Fatal(err)
	}
	es, err := LoadEntries(write(t, map[string]string{"example.yaml": string(example)}), td, limits)
	if err != nil || es.Len() == 0 {
		t.Errorf("%d entries, error %v", es.Len(), err)
	}
	packaged, err := LoadEntries("../packaging/etc/entries.d", td, Limits{MaxX509TTL: limits.MaxX509TTL, AnyOwner: true})
	if err != nil || packaged.Len() != 0 {
		t.Errorf("a fresh installation grants %d identities, error %v", packaged.Len(), err)
	}
}
