package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helperAccount attests a process and prints what it found out.
func helperAccount(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	p, err := Pin(pid)
	if err != nil {
		return err
	}
	defer p.Close()
	a := NewAttester(Options{})
	for deadline := time.Now().Add(10 * time.Second); ; {
		at, err := a.Attest(context.Background(), p)
		if errors.Is(err, ErrChanged) && time.Now().Before(deadline) {
			continue // it has not finished its exec
		}
		if err != nil {
			return err
		}
		if err := a.Unchanged(p, at); err != nil {
			return fmt.Errorf("looking again: %w", err)
		}
		for _, gap := range at.Gaps {
			fmt.Fprintln(os.Stderr, gap)
		}
		return json.NewEncoder(os.Stdout).Encode(map[string]string{"path": at.Path, "sha256": at.SHA256})
	}
}

// The packaged daemon is no root: of what /proc shows of others it has what
// CAP_SYS_PTRACE opens, and no file that only its owner may read.
func TestADaemonWithTheCapabilityOfItsUnitAloneAttestsProcessesOfOthers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("an account of its own takes root to be made")
	}
	self, err := os.Executable()
	must(t, err)
	binary, err := os.ReadFile(self)
	must(t, err)
	daemon := openTempDir(t) + "/daemon"
	must(t, os.WriteFile(daemon, binary, 0o755))
	for _, as := range []*syscall.Credential{nil, {Uid: 65533, Gid: 65533}} {
		sleep := exec.CommandContext(t.Context(), "sleep", "60")
		sleep.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		must(t, sleep.Start())
		t.Cleanup(func() { sleep.Process.Kill(); sleep.Wait() })

		cmd := exec.CommandContext(t.Context(), daemon, "helper:account", strconv.Itoa(sleep.Process.Pid))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: nobody, AmbientCaps: []uintptr{unix.CAP_SYS_PTRACE}}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		var found struct{ Path, SHA256 string }
		if err == nil {
			err = json.Unmarshal(out, &found)
		}
		if err != nil || stderr.Len() > 0 {
			t.Fatalf("a process of %+v: %v: %s", as, err, &stderr)
		}
		if !strings.HasSuffix(found.Path, "/sleep") || len(found.SHA256) != 64 {
			t.Errorf("a process of %+v: found %+v", as, found)
		}
	}
}
