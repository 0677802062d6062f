package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func TestAClearedTPMIsSaidAndResetStartsOverDeletingNothing(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(h *host){
		"cleared":  func(h *host) { h.TPM.Clear() },
		"replaced": func(h *host) { h.TPM = tpmtest.StartManufactured(t); h.Configure("") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
			h.Start()
			if _, stderr, code := h.Vouch("node", "reset"); code != 1 || !strings.Contains(stderr, "stop the daemon first") {
				t.Errorf("reset while the daemon runs exits %d: %s", code, stderr)
			}
			first, err := h.Fetch()
			must(t, err)
			h.Stop()
			before := files(t, h.Path("state"))

			change(h)
			h.Launch()
			if err := h.Wait(); err == nil {
				t.Fatal("the daemon started with another TPM's keys")
			}
			if said := h.Stderr.String(); !strings.Contains(said, "vouch node reset") {
				t.Errorf("the daemon says %s", said)
			}
			if after := files(t, h.Path("state")); strings.Join(after, "\n") != strings.Join(before, "\n") {
				t.Errorf("the refused start changed the state from %q to %q", before, after)
			}

			out := h.OK("node", "reset")
			moved, err := filepath.Glob(h.Path("state/before-reset-*"))
			must(t, err)
			if len(moved) != 1 || !strings.Contains(out, moved[0]) {
				t.Fatalf("reset moved to %q and says %s", moved, out)
			}
			if after := files(t, moved[0]); strings.Join(after, "\n") != strings.Join(before, "\n") {
				t.Errorf("reset kept %q of %q", after, before)
			}
			h.Start()
			if again, err := h.Fetch(); err != nil || again != first {
				t.Errorf("after the reset: %q, %v", again, err)
			}
			h.Stop()
			h.VerifyLog()
			h.OK("log", "verify", filepath.Join(moved[0], "log"))
			h.OK("node", "reset")
			if out := h.OK("node", "reset"); !strings.Contains(out, "is already empty") {
				t.Errorf("a second reset says %s", out)
			}
		})
	}
}

// files lists what lies below a directory, former states left out.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.HasPrefix(e.Name(), "before-reset-") && path != dir {
			return filepath.SkipDir
		}
		if err == nil && !e.IsDir() {
			names = append(names, strings.TrimPrefix(path, dir))
		}
		return err
	}))
	return names
}

func TestBoundKeysWorkInApprovedBootStatesAlone(t *testing.T) {
	t.Parallel()
	d := daemontest.NewDesk(t)
	d.Found("--tpm", tpmtest.Start(t).Address)
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Start()
	d.ApproveBoot(h.Host, h.Host, "good.json")
	good := h.Path("good.json")
	h.Write("root.pem", d.Read("authority/root.pem"))
	if _, stderr, code := h.Vouch("node", "reseal", good); code != 1 || !strings.Contains(stderr, "nothing is bound") {
		t.Errorf("adding a state for keys that are not bound exits %d: %s", code, stderr)
	}
	h.Stop()
	h.OK("node", "reset")
	h.OK("node", "reseal", good, "--bind-to", h.Path("root.pem"))
	h.Start()
	if st, err := h.Admin().Status(t.Context()); err != nil || !st.Node.Bound {
		t.Errorf("the daemon does not say that its keys are bound: %+v, %v", st.Node, err)
	}
	if _, err := h.Fetch(); err != nil {
		t.Errorf("in the approved state: %v", err)
	}

	// An update is approved before the machine boots into it.
	other := newHost(t)
	other.TPM.Extend(7, "an update")
	other.Start()
	d.ApproveBoot(h.Host, other.Host, "update.json")
	h.OK("node", "reseal", h.Path("update.json"))
	h.Stop()
	h.TPM.Restart()
	h.TPM.Extend(7, "an update")
	h.Start()
	if _, err := h.Fetch(); err != nil {
		t.Errorf("in the updated state: %v", err)
	}
	h.Stop()
	h.VerifyLog()

	h.TPM.Restart()
	h.TPM.Extend(7, "a thief's kernel")
	h.Launch()
	if err := h.Wait(); err == nil {
		t.Fatal("the daemon started in a state that nobody approved")
	}
	if said := h.Stderr.String(); !strings.Contains(said, "no approved boot state") || !strings.Contains(said, "vouch node reseal") {
		t.Errorf("the daemon says %s", said)
	}
}
