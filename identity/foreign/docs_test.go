package foreign

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vouchd/vouchd/config"
)

// The table says of every key that there is, in the same order, and of nothing else; and the
// examples are in order.
func TestFleetDocumentTellsEveryKeyAndItsExamplesLoad(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n### All keys of federation.d\n")
	if !ok {
		t.Fatal("the page has no table of keys")
	}
	section, _, _ = strings.Cut(section, "\n### ")
	var documented, known []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|[^|]+\\| ([^|]+) \\|").FindAllStringSubmatch(section, -1) {
		documented = append(documented, row[1])
		if required := row[2] == "required"; required != (row[1] == "trust_domain") {
			t.Errorf("%s is said to be %s", row[1], row[2])
		}
	}
	for _, k := range config.Keys(document{}) {
		known = append(known, strings.TrimPrefix(k.Name, "federation[]."))
	}
	if diff := cmp.Diff(known, documented); diff != "" {
		t.Errorf("keys: -program +document:\n%s", diff)
	}
	examples := regexp.MustCompile("(?s)```yaml\n(federation:.*?)```").FindAllSubmatch(text, -1)
	for _, e := range examples {
		if _, err := Parse([]config.File{{Path: "fleet.md", Data: e[1]}}, own); err != nil {
			t.Errorf("an example of the page: %v", err)
		}
	}
	if len(examples) == 0 {
		t.Error("the page has no example")
	}
}
