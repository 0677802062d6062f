package migrate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential/dotenv"
)

// Somebody edits the file while its secrets are being sealed.
func TestFileThatChangedMeanwhileIsLeftAsItIs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), ".env")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(){
		"edited":   func() { write("A_KEY=newer\n") },
		"replaced": func() { os.Rename(path, path+".old"); write("A_KEY=old\n") },
	} {
		write("A_KEY=old\n")
		before, info, err := readEnvFile(path)
		if err != nil {
			t.Fatal(err)
		}
		file, err := dotenv.Parse(before)
		if err != nil {
			t.Fatal(err)
		}
		m := migration{proxyLater: true, path: path, prefix: "app"}
		view, err := m.plan(file)
		if err != nil {
			t.Fatal(err)
		}
		change()
		now, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.replace(file, before, info, view); err == nil || !strings.Contains(err.Error(), "run this again") {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || string(after) != string(now) {
			t.Errorf("%s: the file is %q, %v", name, after, err)
		}
	}
}
