package daemon_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

// TestOnADiskThatTakesNothingTheDaemonStartsAndSaysSo, and serves by itself once the
// disk does.
func TestOnADiskThatTakesNothingTheDaemonStartsAndSaysSo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	must(t, os.Mkdir(h.Path("state"), 0o700))
	must(t, unix.Mount("tmpfs", h.Path("state"), "tmpfs", 0, "size=4m,mode=0700"))
	t.Cleanup(func() {
		eventually(t, "the disk is unmounted", func() bool { return unix.Unmount(h.Path("state"), 0) == nil })
	})
	h.once()
	remount := func(flags uintptr) {
		t.Helper()
		must(t, unix.Mount("", h.Path("state"), "", unix.MS_REMOUNT|flags, ""))
	}
	remount(unix.MS_RDONLY) // unlike a full one, it has no room in what is there
	h.Launch()
	h.Stderr.Wait(t, "waiting for space")
	eventually(t, "status says what it waits for", func() bool {
		st, err := h.Admin().Status(t.Context())
		return err == nil && len(st.Problems) == 1 && strings.Contains(st.Problems[0], "read-only file system") && st.TPM.Address != ""
	})
	if out, _, code := h.Vouch("status"); code != 1 || !strings.Contains(out, "nothing is issued") {
		t.Errorf("vouch status exits %d: %s", code, out)
	}
	if _, stderr, code := h.Vouch("entry", "list"); code != 1 || !strings.Contains(stderr, "vouch status says why") {
		t.Errorf("vouch entry list exits %d: %s", code, stderr)
	}
	if _, err := h.Fetch(); status.Code(err) != codes.Unavailable {
		t.Errorf("a caller hears %v, want %s", err, codes.Unavailable)
	}
	h.Stop() // while it waits
	h.Launch()
	h.Stderr.Wait(t, "waiting for space")
	remount(0)
	h.Stderr.Wait(t, "msg=serving")
	if _, err := h.Fetch(); err != nil {
		t.Error(err)
	}
	h.Stop()
	h.VerifyLog()
}
