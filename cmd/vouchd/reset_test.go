package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func TestAClearedTPMIsSaidAndResetStartsOverDeletingNothing(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(h *host){
		"cleared":  func(h *host) { h.tpm.Clear() },
		"replaced": func(h *host) { h.tpm = tpmtest.StartManufactured(t); h.configure("") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.write("entries.d/a.yaml", entriesFor(1))
			h.start()
			if _, stderr, code := h.vouch("node", "reset"); code != 1 || !strings.Contains(stderr, "stop the daemon first") {
				t.Errorf("reset while the daemon runs exits %d: %s", code, stderr)
			}
			first, err := h.fetch()
			must(t, err)
			h.stop()
			before := files(t, h.path("state"))

			change(h)
			h.launch()
			if err := h.wait(); err == nil {
				t.Fatal("the daemon started with another TPM's keys")
			}
			if said := h.stderr.String(); !strings.Contains(said, "vouch node reset") {
				t.Errorf("the daemon says %s", said)
			}
			if after := files(t, h.path("state")); strings.Join(after, "\n") != strings.Join(before, "\n") {
				t.Errorf("the refused start changed the state from %q to %q", before, after)
			}

			out := h.ok("node", "reset")
			moved, err := filepath.Glob(h.path("state/before-reset-*"))
			must(t, err)
			if len(moved) != 1 || !strings.Contains(out, moved[0]) {
				t.Fatalf("reset moved to %q and says %s", moved, out)
			}
			if after := files(t, moved[0]); strings.Join(after, "\n") != strings.Join(before, "\n") {
				t.Errorf("reset kept %q of %q", after, before)
			}
			h.start()
			if again, err := h.fetch(); err != nil || again != first {
				t.Errorf("after the reset: %q, %v", again, err)
			}
			h.stop()
			h.verifyLog()
			h.ok("log", "verify", filepath.Join(moved[0], "log"))
			h.ok("node", "reset")
			if out := h.ok("node", "reset"); !strings.Contains(out, "is empty already") {
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

// approveBoot has the authority approve the state that of is in, and gives h the
// approval.
func (d *desk) approveBoot(h, of *host, file string) {
	d.ask(of)
	d.write("policy.yaml", d.ok("node", "policy", "learn", "evidence.json"))
	d.write("result.json", d.ok("node", "appraise", "evidence.json", "--policy", "policy.yaml", "--any-nonce",
		"--kept", "kept.json", "--answer", "answer.json", "--output", "json"))
	d.ok("authority", "approve-boot", "result.json", "--pcr", "0,7", "--write", file, "--dir", "authority", "--passphrase-file", "passphrase")
	h.write(file, d.read(file))
}

func TestBoundKeysWorkInApprovedBootStatesAlone(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.found("--tpm", tpmtest.Start(t).Address)
	h := newHost(t)
	h.write("entries.d/a.yaml", entriesFor(1))
	h.start()
	d.approveBoot(h, h, "good.json")
	good := h.path("good.json")
	h.write("root.pem", d.read("authority/root.pem"))
	if _, stderr, code := h.vouch("node", "reseal", good); code != 1 || !strings.Contains(stderr, "nothing is bound") {
		t.Errorf("adding a state for keys that are not bound exits %d: %s", code, stderr)
	}
	h.stop()
	h.ok("node", "reset")
	h.ok("node", "reseal", good, "--bind-to", h.path("root.pem"))
	h.start()
	if st, err := h.admin().Status(t.Context()); err != nil || !st.Node.Bound {
		t.Errorf("the daemon does not say that its keys are bound: %+v, %v", st.Node, err)
	}
	if _, err := h.fetch(); err != nil {
		t.Errorf("in the approved state: %v", err)
	}

	// An update is approved before the machine boots into it.
	other := newHost(t)
	other.tpm.Extend(7, "an update")
	other.start()
	d.approveBoot(h, other, "update.json")
	h.ok("node", "reseal", h.path("update.json"))
	h.stop()
	h.tpm.Restart()
	h.tpm.Extend(7, "an update")
	h.start()
	if _, err := h.fetch(); err != nil {
		t.Errorf("in the updated state: %v", err)
	}
	h.stop()
	h.verifyLog()

	h.tpm.Restart()
	h.tpm.Extend(7, "a thief's kernel")
	h.launch()
	if err := h.wait(); err == nil {
		t.Fatal("the daemon started in a state that nobody approved")
	}
	if said := h.stderr.String(); !strings.Contains(said, "no approved boot state") || !strings.Contains(said, "vouch node reseal") {
		t.Errorf("the daemon says %s", said)
	}
}
