package leasetest

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

// A Following is a vouch that keeps running.
type Following struct {
	Cmd    *exec.Cmd
	Stderr *daemontest.Lines
	Waited chan error // gets how it ended
}

// Follow starts vouch on the host, and ends it with the test.
func (h *Host) Follow(args ...string) *Following {
	h.T.Helper()
	f := &Following{Cmd: exec.Command(daemontest.Program(h.T, "vouch"), args...), Stderr: daemontest.NewLines(), Waited: make(chan error, 1)}
	f.Cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"))
	f.Cmd.Stderr = f.Stderr
	f.Cmd.WaitDelay = 10 * time.Second // for what it has started and left behind
	must(h.T, f.Cmd.Start())
	go func() {
		err := f.Cmd.Wait()
		f.Stderr.Close()
		f.Waited <- err
	}()
	h.T.Cleanup(func() { f.Cmd.Process.Kill(); <-f.Stderr.Closed() })
	return f
}

// Ends waits until vouch has ended, and returns how.
func (f *Following) Ends(t *testing.T) error {
	t.Helper()
	select {
	case err := <-f.Waited:
		return err
	case <-time.After(30 * time.Second):
		t.Fatalf("vouch does not end; it said:\n%s", f.Stderr)
		return nil
	}
}
