package daemon_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

func TestLogsOfAFleetAreVerifiedAtOnce(t *testing.T) {
	t.Parallel()
	d := daemontest.NewDesk(t)
	path := func(name string) string { return filepath.Join(d.Dir, name) }
	for _, dir := range []string{"logs", "machines"} {
		must(t, os.Mkdir(path(dir), 0o700))
	}
	one, two := newHost(t), newHost(t)
	two.TPM = tpmtest.StartManufactured(t)
	two.Configure("")
	for name, h := range map[string]*host{"one": one, "two": two} {
		h.Start()
		d.Ask(h.Host)
		d.Write("machines/"+name+".json", d.OK("node", "verify", "answer.json", "--kept", "kept.json", "--output", "json"))
		h.Stop()
	}
	one.OK("log", "archive", "--write", path("logs/one.tar"))
	must(t, os.CopyFS(path("logs/two/log"), os.DirFS(two.Path("state/log"))))

	out := d.OK("log", "verify", "logs", "--node", "machines")
	for _, want := range []string{
		`(?m)^HOLDS +logs/one\.tar +machine of machines/one\.json +the log holds`,
		`(?m)^HOLDS +logs/two/log +machine of machines/two\.json +the log holds`,
		`2 logs: 0 failed, 0 could not be read, 0 with warnings, 2 without\n$`,
	} {
		if !matches(want, out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	must(t, os.Mkdir(path("links"), 0o700))
	must(t, os.Symlink(path("logs/two"), path("links/two")))
	must(t, os.Symlink(path("logs/one.tar"), path("links/one.tar")))
	if out := d.OK("log", "verify", "links"); !strings.Contains(out, "2 logs: 0 failed") {
		t.Errorf("by links:\n%s", out)
	}
	if out := d.OK("log", "verify", "logs/two/log", "logs/one.tar"); strings.Count(out, "machine not known to you") != 2 {
		t.Errorf("without evidence:\n%s", out)
	}

	// One is of a machine that nobody challenged, one is damaged, one is no log.
	must(t, os.Remove(path("machines/two.json")))
	must(t, os.CopyFS(path("logs/bad/log"), os.DirFS(one.Path("state/log"))))
	damage(t, path("logs/bad/log"))
	d.Write("logs/packed.tar.gz", "not a tar file")
	out, _, code := d.Vouch("log", "verify", "logs", "--node", "machines")
	if code != 1 || !matches(`(?m)\AFAILED +logs/bad/log .*\nFAILED +logs/two/log .*not among those of --node.*\nUNREAD +logs/packed\.tar\.gz .*\nHOLDS +logs/one\.tar`, out) {
		t.Errorf("exits %d:\n%s", code, out)
	}
	out, _, code = d.Vouch("log", "verify", "logs", "--node", "machines", "--output", "json")
	var f struct {
		OK   bool `json:"ok"`
		Logs []struct {
			Log, Error string
			OK         bool   `json:"ok"`
			Known      bool   `json:"machine_known"`
			Evidence   string `json:"evidence_file"`
			Size       uint64
		}
	}
	must(t, json.Unmarshal([]byte(out), &f))
	if code != 1 || f.OK || len(f.Logs) != 4 || f.Logs[0].OK || f.Logs[2].Error == "" || !f.Logs[3].OK || !f.Logs[3].Known || f.Logs[3].Evidence != "machines/one.json" || f.Logs[3].Size == 0 {
		t.Errorf("exits %d: %+v", code, f)
	}
	if _, stderr, code := d.Vouch("log", "verify", "logs", "--counter", "5"); code != 2 || !strings.Contains(stderr, "--counter is about one log") {
		t.Errorf("a counter for many logs: exits %d: %s", code, stderr)
	}
}

// damage changes a byte of the log's first record.
func damage(t *testing.T, log string) {
	t.Helper()
	segments, err := filepath.Glob(log + "/wal/*")
	must(t, err)
	data, err := os.ReadFile(segments[0])
	must(t, err)
	changed := regexp.MustCompile(`daemon\.start`).ReplaceAll(data, []byte("daemon.stark"))
	must(t, os.WriteFile(segments[0], changed, 0o600))
}
