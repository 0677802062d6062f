package daemontest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon"
	"github.com/vouchd/vouchd/config"
)

// A Daemon is started, in the test's process or in one of its own, and stopped.
type Daemon struct {
	T      testing.TB
	Config string // its vouchd.yaml
	Stderr *Lines // what it says, since it was started last

	// Of a daemon that is a process.
	Name string    // the host's name; empty: the test machine's
	Env  []string  // more for the daemon
	Wrap []string  // what the daemon is started by; empty: directly
	Cmd  *exec.Cmd // nil: it is not a process

	cancel context.CancelFunc // stops a daemon in this process
	ended  chan error
}

// Start runs the daemon in this process, with configuration keys overridden, as
// KEY=VALUE. It returns once the daemon serves.
func (d *Daemon) Start(overrides ...string) {
	d.T.Helper()
	d.Launch(overrides...)
	d.Stderr.Wait(d.T, "msg=serving")
}

// Launch does what Start does and does not wait.
func (d *Daemon) Launch(overrides ...string) {
	d.T.Helper()
	d.Cmd, d.Stderr = nil, NewLines()
	c, err := config.Load(d.Config, overrides...)
	must(d.T, err)
	ctx, cancel := context.WithCancel(context.Background())
	stderr, ended := d.Stderr, make(chan error, 1)
	d.cancel, d.ended = cancel, ended
	go func() {
		logger := slog.New(slog.NewTextHandler(stderr, nil))
		err := daemon.Run(ctx, daemon.Options{Config: c, Logger: logger, Proxy: serveProxy(logger)})
		if err != nil {
			fmt.Fprintln(stderr, err)
		}
		stderr.Close()
		ended <- err
	}()
	d.T.Cleanup(func() { cancel(); <-stderr.closed })
}

// StartProcess starts the daemon as the program that ships, and returns once it
// serves.
func (d *Daemon) StartProcess(args ...string) {
	d.T.Helper()
	d.LaunchProcess(args...)
	d.Stderr.Wait(d.T, "msg=serving")
}

// LaunchProcess does what StartProcess does and does not wait.
func (d *Daemon) LaunchProcess(args ...string) {
	d.T.Helper()
	d.Stderr = NewLines()
	line := append([]string{Program(d.T, "vouchd"), "--config", d.Config}, args...)
	if d.Name != "" {
		line = append([]string{"unshare", "--uts", "sh", "-c", `hostname "$0" && exec "$@"`, d.Name}, line...)
	}
	line = append(slices.Clone(d.Wrap), line...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(os.Environ(), d.Env...)
	cmd.Stderr = d.Stderr
	must(d.T, cmd.Start())
	stderr, ended := d.Stderr, make(chan error, 1)
	d.Cmd, d.ended = cmd, ended
	go func() {
		err := cmd.Wait()
		stderr.Close()
		ended <- err
	}()
	d.T.Cleanup(func() { cmd.Process.Kill(); <-stderr.closed })
}

// Wait returns how the daemon ended.
func (d *Daemon) Wait() error {
	d.T.Helper()
	select {
	case err := <-d.ended:
		return err
	case <-time.After(patience):
		d.T.Fatalf("the daemon does not end; it said:\n%s", d.Stderr)
		return nil
	}
}

// Stop ends the daemon in an orderly way.
func (d *Daemon) Stop() {
	d.T.Helper()
	if d.Cmd != nil {
		must(d.T, d.Cmd.Process.Signal(syscall.SIGTERM))
	} else {
		d.cancel()
	}
	if err := d.Wait(); err != nil {
		d.T.Fatalf("stopping: %v; it said:\n%s", err, d.Stderr)
	}
}

// Kill ends a daemon that is a process at once.
func (d *Daemon) Kill() {
	d.T.Helper()
	must(d.T, d.Cmd.Process.Kill())
	d.Wait()
}

// Resident returns the resident memory of a daemon that is a process, in bytes.
func (d *Daemon) Resident() int {
	d.T.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Cmd.Process.Pid))
	must(d.T, err)
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.Fields(kb)[0])
			must(d.T, err)
			return n << 10
		}
	}
	d.T.Fatal("status has no VmRSS")
	return 0
}
