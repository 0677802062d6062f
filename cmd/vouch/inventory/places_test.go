package inventory

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

func TestHomesAreThoseThatArePeoplesOrServices(t *testing.T) {
	t.Parallel()
	passwd := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(passwd, []byte("root:x:0:0:root:/root:/bin/sh\nbin:x:2:2:bin:/bin:/x\nnobody:x:9:9::/nonexistent:/x\na:x:1:1::/:/x\npg:x:3:3::/var/lib/postgresql/:/x\nbroken\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := homes(passwd), []string{"/root", "/var/lib/postgresql", "/home/ann"}; !slices.Equal(got, want) {
		t.Errorf("homes are %q, want %q", got, want)
	}
}

func TestSinceTakesDaysDurationsAndDates(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 26, 10, 0, 0, 0, time.Local)
	for text, want := range map[string]time.Time{
		"90d": now.AddDate(0, 0, -90), "24h": now.Add(-24 * time.Hour), "2026-11-20": time.Date(2026, 11, 20, 0, 0, 0, 0, time.Local),
		"2026-11-20T10:00:00Z": time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC),
	} {
		if got, ok := instant(text, now); !ok || !got.Equal(want) {
			t.Errorf("%s is %v, want %v", text, got, want)
		}
	}
	for _, text := range []string{"d", "-1d", "-24h", "0h", "today.json", "99999999d"} {
		if _, ok := instant(text, now); ok {
			t.Errorf("%q is a time", text)
		}
	}
}

func TestKeyOfAUserIsInTheirStateDirectory(t *testing.T) {
	state := t.TempDir()
	t.Setenv("XDG_STATE_HOME", state)
	o := &cli.Options{Config: filepath.Join(state, "none.yaml")}
	got, err := defaultKey(o)
	if want := filepath.Join(state, "vouch", "inventory.key"); err != nil || got != want && got != "/var/lib/vouchd/inventory.key" {
		t.Errorf("it is %s, %v, want %s", got, err, want)
	}
}
