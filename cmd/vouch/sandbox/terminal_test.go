package sandbox

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A screen is the user's side of a terminal.
type screen struct {
	*os.File
	cmd  *exec.Cmd
	seen bytes.Buffer
}

// onTerminal starts a command in a sandbox on a terminal of its own.
func onTerminal(t *testing.T, command ...string) *screen {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	must(t, err)
	user := os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { user.Close() })
	must(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	must(t, err)
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer tty.Close()
	dir := directory(t)
	s := &screen{File: user, cmd: exec.Command(filepath.Join(dir, "probe"), append([]string{"drive"}, command...)...)}
	s.cmd.Dir, s.cmd.Env = dir, environment
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = tty, tty, tty
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	must(t, s.cmd.Start())
	t.Cleanup(func() { s.cmd.Process.Kill(); s.cmd.Wait() })
	return s
}

// await reads until the text is there.
func (s *screen) await(t *testing.T, text string) {
	t.Helper()
	b := make([]byte, 1024)
	s.SetReadDeadline(time.Now().Add(limit))
	for {
		if i := bytes.Index(s.seen.Bytes(), []byte(text)); i >= 0 {
			s.seen.Next(i + len(text))
			return
		}
		n, err := s.Read(b)
		if err != nil {
			t.Fatalf("no %q in %q: %v", text, s.seen.String(), err)
		}
		s.seen.Write(b[:n])
	}
}

// say types.
func (s *screen) say(t *testing.T, keys string) {
	t.Helper()
	_, err := s.WriteString(keys)
	must(t, err)
}

func (s *screen) ends(t *testing.T, code int) {
	t.Helper()
	defer time.AfterFunc(limit, func() { s.cmd.Process.Kill() }).Stop()
	s.cmd.Wait()
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("it ended with %d, want %d: %q", got, code, s.seen.String())
	}
}

func TestAnInteractiveShellHasItsTerminalAndJobs(t *testing.T) {
	t.Parallel()
	s := onTerminal(t, "bash", "--norc", "--noediting", "-i")
	s.say(t, "PS1=next$((1+1))\n")
	s.await(t, "next2")
	for _, key := range []string{"\x03", "\x1a"} { // control-C and control-Z
		s.say(t, "sh -c 'echo up$((40+2)); exec sleep 600'\n")
		s.await(t, "up42\r\n")
		s.say(t, key)
		s.await(t, "next2")
	}
	s.say(t, "exit 7\n")
	s.await(t, "There are stopped jobs.")
	s.say(t, "exit 7\n")
	s.ends(t, 7)
}

func TestControlCReachesTheCommandAndNotVouch(t *testing.T) {
	t.Parallel()
	s := onTerminal(t, "./probe", "probe", "interrupt")
	s.await(t, "ready\r\n")
	s.say(t, "\x03")
	s.await(t, "interrupt: caught")
	s.ends(t, 0)
}

func TestNothingIsTypedIntoTheTerminal(t *testing.T) {
	t.Parallel()
	s := onTerminal(t, "./probe", "probe", "type")
	s.await(t, "type: EPERM")
	s.ends(t, 0)
}

// TestTheCommandDoesNotOutliveVouch also kills what it has started.
func TestTheCommandDoesNotOutliveVouch(t *testing.T) {
	t.Parallel()
	dir := directory(t)
	cmd := exec.Command(filepath.Join(dir, "probe"), "drive", "sh", "-c", "sleep 600 & echo started; sleep 600")
	cmd.Dir, cmd.Env = dir, environment
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "started" {
	}
	must(t, cmd.Process.Kill())
	for lines.Scan() { // until nobody has the pipe
		t.Error(lines.Text())
	}
	cmd.Wait()
}

// TestSignalsToVouchsGroupAreNotTheCommandsToSend: by group 0 it could reach who shares its group.
func TestSignalsToVouchsGroupAreNotTheCommandsToSend(t *testing.T) {
	t.Parallel()
	dir := directory(t)
	cmd := exec.Command(filepath.Join(dir, "probe"), "drive", "sh", "-c", "trap '' TERM; kill -TERM 0; exit 6")
	cmd.Dir, cmd.Env = dir, environment
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // without a terminal
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 6 {
		t.Errorf("%v: %s", err, out)
	}
	if landlockVersion() < landlockScopes {
		return
	}
	s := onTerminal(t, "sh", "-c", "trap '' TERM; kill -TERM 0; exit 6")
	s.ends(t, 6)
	if strings.Contains(s.seen.String(), "terminated") {
		t.Error(s.seen.String())
	}
}
