package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
)

func TestBrokenEntriesLeaveTheLastGoodOnesInForce(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Start()
	id, err := h.Fetch()
	must(t, err)

	h.Write("entries.d/a.yaml", "entries:\n  - spiffe_id: spiffe://example.org/agent/0\n    selector: [unix:uid:0]\n")
	eventually(t, "status names the broken file", func() bool {
		p := h.Problems()
		return len(p) == 1 && strings.Contains(p[0], "a.yaml:3") && strings.Contains(p[0], "selectors")
	})
	if again, err := h.Fetch(); err != nil || again != id {
		t.Errorf("with broken entries on disk: %q, %v, want %q still", again, err, id)
	}
	if _, stderr, code := h.Vouch("doctor"); code != 1 {
		t.Errorf("vouch doctor exits %d and says %s, want 1", code, stderr)
	}

	h.Write("entries.d/a.yaml", strings.ReplaceAll(daemontest.EntriesFor(1), "agent/0", "agent/mended"))
	eventually(t, "the mended file is in force", func() bool {
		id, err := h.Fetch()
		return err == nil && id == "spiffe://example.org/agent/mended"
	})
	if p := h.Problems(); len(p) != 0 {
		t.Errorf("problems after mending: %q", p)
	}
	h.Stop()
	h.VerifyLog()
}

func TestBrokenFileHoldsBackItselfAloneAndWhoIsRefusedHearsOfIt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	entry := func(path string, uid int) string {
		return fmt.Sprintf("entries:\n  - {spiffe_id: spiffe://example.org/%s, selectors: [unix:uid:%d]}\n", path, uid)
	}
	h.Write("entries.d/a.yaml", entry("other", os.Getuid()+1))
	h.Write("entries.d/b.yaml", entry("stays", os.Getuid()+2))
	h.Start()

	h.Write("entries.d/b.yaml", strings.Replace(entry("new", os.Getuid()), "selectors", "selector", 1))
	eventually(t, "status names the broken file and what is in force", func() bool {
		p := h.Problems()
		return len(p) == 1 && matches(`b\.yaml is not in force, and what it held before still is:\n.*b\.yaml:2.*selector`, p[0])
	})
	_, err := h.Fetch()
	if err == nil || !strings.Contains(err.Error(), "no identity issued; there are newer entries with an error in them") {
		t.Errorf("who has no identity is told %v", err)
	}
	eventually(t, "the refusal's record says which", func() bool {
		for _, r := range daemontest.RecordsYet(h.Host, string(audit.EventX509SVID), audit.Denied) {
			return matches(`no entry matches: newer entries are not in force: .*b\.yaml:2`, r.Reason)
		}
		return false
	})
	if out, _, _ := h.Vouch("entry", "explain", fmt.Sprint(os.Getpid())); !matches(`newer entries are not in force:\n.*b\.yaml:2`, out) {
		t.Errorf("entry explain says %s", out)
	}

	h.Write("entries.d/c.yaml", entry("late", os.Getuid()))
	eventually(t, "another file's change is in force", func() bool {
		id, err := h.Fetch()
		return err == nil && id == "spiffe://example.org/late"
	})
	entries, err := h.Admin().Entries(t.Context())
	must(t, err)
	if len(entries) != 3 || entries[1].SPIFFEID != "spiffe://example.org/stays" {
		t.Errorf("in force: %+v", entries)
	}
	h.Stop()
	h.VerifyLog()
}

func TestDaemonStartsWithBrokenEntriesAndServesNobodyUntilTheyAreMended(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", "entries: [")
	h.Start()
	if id, err := h.Fetch(); err == nil {
		t.Errorf("handed out %s", id)
	}
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	eventually(t, "the mended file is in force", func() bool { _, err := h.Fetch(); return err == nil })
}

func TestDaemonWithoutTPMSaysHowToGetOne(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Launch("tpm=unix:" + h.Path("no-tpm"))
	if err := h.Wait(); err == nil {
		t.Fatal("it started without a TPM")
	}
	said := h.Stderr.String()
	for _, want := range []string{"no-tpm", "swtpm"} {
		if !strings.Contains(said, want) {
			t.Errorf("it said %s, without %q", said, want)
		}
	}
}

func TestSourceGoesOnAcrossARestart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Start()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	source, err := spiffe.NewX509Source(ctx, spiffe.WithClientOptions(spiffe.WithAddr("unix://"+h.Path("agent.sock"))))
	must(t, err)
	defer source.Close()
	h.Stop()
	if _, err := source.GetX509SVID(); err != nil {
		t.Errorf("the source forgot its SVID while the daemon was away: %v", err)
	}
	h.Start()
	must(t, source.WaitUntilUpdated(ctx))
}

func TestTPMThatDiesLeavesWhatIsValidServed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Start()
	h.TPM.Kill()
	for range 3 {
		if _, err := h.Fetch(); err != nil {
			t.Errorf("with the TPM gone: %v", err)
		}
	}
	h.TPM.Restart()
	h.Stop()
	h.VerifyLog()
}

// TestFullDiskRefusesAndRecovers puts the state on a small file system of its
// own.
func TestFullDiskRefusesAndRecovers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	h := newHost(t)
	must(t, os.Mkdir(h.Path("state"), 0o700))
	if err := syscall.Mount("tmpfs", h.Path("state"), "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(h.Path("state"), syscall.MNT_DETACH) })
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Start()
	_, err := h.Fetch()
	must(t, err)

	fill := fillDisk(t, h.Path("state/ballast"))
	eventually(t, "the daemon refuses for want of a record", func() bool {
		_, err := h.Fetch()
		return err != nil && strings.Contains(err.Error(), "attestation log")
	})
	if p := h.Problems(); len(p) == 0 || !strings.Contains(strings.Join(p, "\n"), "log") {
		t.Errorf("problems with a full disk: %q", p)
	}
	must(t, os.Remove(fill))
	eventually(t, "the daemon serves again", func() bool { _, err := h.Fetch(); return err == nil })
	h.Stop()
	h.VerifyLog()
}

// TestFullLogStartsRefusesAndServesOnceItHasRoom has a log that is as large as it
// may be, and too young to lose anything.
func TestFullLogStartsRefusesAndServesOnceItHasRoom(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.Start()
	h.Stop()
	ballast, err := os.Create(h.Path("state/log/tile/ballast.tmp")) // counts, and is none of the log's
	must(t, err)
	must(t, ballast.Truncate(63<<20))
	must(t, ballast.Close())
	for range 2 {
		h.Start("log.max_mib=64", "log.keep_for=1h")
		eventually(t, "the daemon refuses for want of room", func() bool {
			_, err := h.Fetch()
			return err != nil && strings.Contains(err.Error(), "attestation log")
		})
		if p := strings.Join(h.Problems(), "\n"); !strings.Contains(p, "it is as large as it may be; raise log.max_mib, or archive the log and lower log.keep_for, which is 1h0m0s") {
			t.Errorf("problems with a full log: %q", p)
		}
		h.Stop()
		h.VerifyLog()
	}
	must(t, os.Truncate(h.Path("state/log/tile/ballast.tmp"), 56<<20))
	h.Start("log.max_mib=64", "log.keep_for=1h")
	eventually(t, "status says that it will be full", func() bool {
		return strings.Contains(strings.Join(h.Problems(), "\n"), "none of its records is older than log.keep_for")
	})
	_, err = h.Fetch()
	must(t, err)
	h.Stop()
	h.Start("log.max_mib=128")
	eventually(t, "the daemon serves again", func() bool { _, err := h.Fetch(); return err == nil })
	if p := h.Problems(); len(p) > 0 {
		t.Errorf("problems with room: %q", p)
	}
	h.Stop()
	h.VerifyLog()
}

func fillDisk(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for {
			if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	return name
}

func TestLogIsHandedOnAndGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	lines := func() (n int) {
		data, err := os.ReadFile(h.Path("state/ocsf.jsonl"))
		if err != nil {
			return 0
		}
		for line := range strings.Lines(string(data)) {
			if !json.Valid([]byte(line)) {
				t.Fatalf("a line is not JSON: %s", line)
			}
			n++
		}
		return n
	}
	h.Start("log.ocsf=true")
	_, err := h.Fetch()
	must(t, err)
	records := func() int {
		st, err := h.Admin().Status(t.Context())
		must(t, err)
		return int(st.Log.Records)
	}
	eventually(t, "every record is handed on", func() bool { return lines() == records() })
	h.Stop()
	stopped := lines()
	h.Start("log.ocsf=true")
	eventually(t, "every record is handed on, once", func() bool { return lines() == records() })
	if lines() <= stopped {
		t.Errorf("%d lines before and %d after the restart", stopped, lines())
	}
}
