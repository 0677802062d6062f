package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"golang.org/x/sys/unix"
)

// terminal returns both ends of a pseudo-terminal (pty(7)).
func terminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { user.Close() })
	must(t, unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	must(t, err)
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { program.Close() })
	return user, program
}

func TestSecretIsAskedForAtATerminalAndNotShown(t *testing.T) {
	t.Parallel()
	h := newKeepingHost(t)
	h.Start()
	user, program := terminal(t)
	cmd := exec.Command(daemontest.Program(t, "vouch"), "secret", "seal", "stripe-key")
	cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	must(t, cmd.Start())
	program.Close()
	shown := daemontest.NewLines()
	go func() { io.Copy(shown, user); shown.Close() }()
	shown.Wait(t, "Value of stripe-key: ")
	_, err := user.WriteString("sk_live_typed\n")
	must(t, err)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, shown)
	}
	shown.Wait(t, "sealed 13 bytes")
	if strings.Contains(shown.String(), "sk_live_typed") {
		t.Errorf("the terminal shows the secret: %s", shown)
	}
	if got := granted(t, h, "stripe"); string(got) != "sk_live_typed" {
		t.Errorf("the value is %q", got)
	}
}
