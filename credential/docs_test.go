package credential_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/brokers"
	"github.com/vouchd/vouchd/identity"
)

// every is all the brokers there are.
var every = brokers.All(brokers.Deps{})

func TestExamplesOfTheDocumentsLoad(t *testing.T) {
	t.Parallel()
	var text []byte
	for _, name := range []string{"credentials.md", "brokers.md", "databases.md"} {
		b, err := os.ReadFile("../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, b...)
	}
	used, defined := make(map[string]bool), make(map[string]bool)
	for _, block := range regexp.MustCompile("(?s)```yaml\n# (credentials.d/[a-z]+.yaml)\n(.*?)```").FindAllSubmatch(text, -1) {
		for _, d := range loads(t, string(block[1]), block[2]) {
			used[d.Broker], defined[d.Name] = true, true
		}
	}
	if len(used) != len(every) {
		t.Errorf("examples of %v, want one of each broker", used)
	}
	for _, e := range entries(t, text) {
		for _, name := range e.Credentials {
			if !defined[name] {
				t.Errorf("the example of %s grants %s, which no example defines", e.ID, name)
			}
		}
	}
}

// entries returns those of the documents' example.
func entries(t *testing.T, text []byte) []identity.Entry {
	t.Helper()
	block := regexp.MustCompile("(?s)```yaml\n# entries.d/[a-z]+.yaml\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatal("no example of entries")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.yaml"), block[1], 0o600); err != nil {
		t.Fatal(err)
	}
	es, err := identity.LoadEntries(dir, spiffeid.RequireTrustDomainFromString("example.org"), identity.Limits{MaxX509TTL: 2 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return es.All()
}

func TestExamplesOfThePackageLoad(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../packaging/etc/credentials.d/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, path := range files {
		if !strings.HasSuffix(path, ".yaml.disabled") {
			t.Errorf("%s is in force where it is installed", path)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		loads(t, path, text)
	}
}

func loads(t *testing.T, name string, text []byte) []*credential.Definition {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	defs, err := credential.LoadDefinitions(dir, every, true)
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
	return defs.All()
}
