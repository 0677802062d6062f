package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

// once starts the daemon, has it issue something, and stops it.
func (h *host) once() {
	h.T.Helper()
	h.Start()
	_, err := h.Fetch()
	must(h.T, err)
	h.Stop()
}

// copyOf keeps a copy of a directory as it is.
func copyOf(t *testing.T, dir string) (kept string) {
	t.Helper()
	kept = filepath.Join(t.TempDir(), "copy")
	must(t, os.CopyFS(kept, os.DirFS(dir)))
	return kept
}

func putBack(t *testing.T, kept, dir string) {
	t.Helper()
	must(t, os.RemoveAll(dir))
	must(t, os.CopyFS(dir, os.DirFS(kept)))
	must(t, os.Chmod(dir, 0o700))
}

func TestALogThatIsGoneOrOlderIsRefusedAndTheWayOutIsRecorded(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(t *testing.T, h *host)
		said   string
	}{
		"the log removed": {func(t *testing.T, h *host) {
			h.once()
			must(t, os.RemoveAll(h.Path("state/log")))
		}, "the attestation log is missing"},
		"the log and what is known of it removed": {func(t *testing.T, h *host) {
			h.once()
			must(t, os.RemoveAll(h.Path("state/log")))
			must(t, os.Remove(h.Path("state/log-mark")))
		}, "it has no anchor, and the TPM made"},
		"an older log in its place": {func(t *testing.T, h *host) {
			h.once()
			kept := copyOf(t, h.Path("state/log"))
			h.once()
			putBack(t, kept, h.Path("state/log"))
		}, "this is an older state of the attestation log"},
		"the whole state of before in its place": {func(t *testing.T, h *host) {
			h.once()
			kept := copyOf(t, h.Path("state"))
			h.once()
			putBack(t, kept, h.Path("state"))
		}, "of the TPM's counter, which stands at"},
		"the key of a former version, whose log is removed": {func(t *testing.T, h *host) {
			h.once()
			must(t, os.RemoveAll(h.Path("state/log")))
			must(t, os.Remove(h.Path("state/log-mark")))
			must(t, os.Remove(h.Path("state/log-born")))
		}, "the attestation log is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
			tt.change(t, h)
			for range 2 { // the refusal changes nothing
				h.Launch()
				if err := h.Wait(); err == nil {
					t.Fatal("the daemon started")
				}
				if said := h.Stderr.String(); !strings.Contains(said, tt.said) || !strings.Contains(said, "vouch log restart --reason") {
					t.Fatalf("the daemon says %s, want %q", said, tt.said)
				}
			}
			if _, stderr, code := h.Vouch("log", "restart"); code == 0 || !strings.Contains(stderr, "--reason") {
				t.Errorf("without a reason it exits %d: %s", code, stderr)
			}
			h.OK("log", "restart", "--reason", "disk replaced")
			h.Start()
			if _, stderr, code := h.Vouch("log", "restart", "--reason", "x"); code == 0 || !strings.Contains(stderr, "stop the daemon first") {
				t.Errorf("while the daemon runs it exits %d: %s", code, stderr)
			}
			_, err := h.Fetch()
			must(t, err)
			restarts := h.Records(string(audit.EventRestart), audit.Success)
			if len(restarts) != 1 || restarts[0].Reason != "disk replaced" || restarts[0].Log.Key == "" {
				t.Errorf("the restart is recorded as %+v", restarts)
			}
			h.Stop()
			h.VerifyLog()
			if out := h.OK("log", "verify"); !strings.Contains(out, "log-restarted") || !strings.Contains(out, "disk replaced") {
				t.Errorf("verify says %s", out)
			}
			h.once()
			h.VerifyLog()
		})
	}
}

// TestARestartKeepsTheOldLogBesideTheNewOne, which has another key: whoever knows
// the old one is told.
func TestARestartKeepsTheOldLogBesideTheNewOne(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Start()
	key := daemontest.LogKey(h.Host)
	h.Stop()
	before := h.OK("log", "show")
	h.OK("log", "restart", "--reason", "test")
	h.once()
	ended, err := filepath.Glob(h.Path("state/log-ended-*"))
	must(t, err)
	if len(ended) != 1 {
		t.Fatalf("the log that has ended is in %q", ended)
	}
	h.OK("log", "verify", ended[0])
	if after := h.OK("log", "show", ended[0]); after != before {
		t.Error("the log that has ended has changed")
	}
	if out, _, code := h.Vouch("log", "verify", "--key", key); code == 0 || !strings.Contains(out, "wrong-key") {
		t.Errorf("the new log held against the old key exits %d: %s", code, out)
	}
	if r := h.Records(string(audit.EventRestart), audit.Success)[0]; r.Log.Key != key || r.Log.Size == 0 {
		t.Errorf("the restart tells of %+v, want key %s", r.Log, key)
	}
}
