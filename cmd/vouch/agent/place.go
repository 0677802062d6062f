package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/state"
	"github.com/vouchd/vouchd/systemd"
)

// A place is a file that holds a secret for another program, and is replaced as
// a whole by the next.
type place struct {
	path                string
	modeText            string
	owner, group        string
	follow              bool
	signalName, command string
	pid                 int

	mode     fs.FileMode
	uid, gid int // -1: whose the file is by itself
	signal   syscall.Signal
	pinned   *process.Peer // that gets the signal; nil: none
	reader   *os.Process   // the same
	wrote    os.FileInfo   // nil before the first
}

// flags are those of a file; pathFlag is what that of its path is called.
func (p *place) flags(cmd *cobra.Command, pathFlag string) {
	f := cmd.Flags()
	f.StringVar(&p.path, pathFlag, "", "keep the value in this `file`, which is replaced as a whole")
	f.StringVar(&p.modeText, "mode", "0600", "`mode` of the file")
	f.StringVar(&p.owner, "owner", "", "`user` that the file belongs to")
	f.StringVar(&p.group, "group", "", "`group` that the file belongs to")
	f.BoolVar(&p.follow, "follow", false, "go on, put the next value into the file before the last expires, and remove the file at the end")
	f.StringVar(&p.signalName, "signal", "", "send this `signal`, such as HUP, after a value has taken the place of another; with --pid")
	f.IntVar(&p.pid, "pid", 0, "the `process` that gets the signal; --follow ends when it does")
	f.StringVar(&p.command, "exec", "", "run this `command` with sh, for a minute at most, after a value has taken the place of another")
	cmd.MarkFlagFilename(pathFlag)
}

// placeFlags are those that mean nothing without a path.
var placeFlags = []string{"mode", "owner", "group", "follow", "signal", "pid", "exec"}

// prepare checks what can be checked before there is a value. The caller closes
// the place.
func (p *place) prepare() (err error) {
	if p.path, err = filepath.Abs(p.path); err != nil {
		return err
	}
	mode, err := strconv.ParseUint(p.modeText, 8, 32)
	if err != nil || mode&^0o755 != 0 || mode&0o400 == 0 {
		return cli.Usagef("--mode %q: want one like 0640, in which the owner alone may write and may read", p.modeText)
	}
	p.mode = fs.FileMode(mode)
	if p.uid, err = lookup(p.owner, "owner", func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	}); err != nil {
		return err
	}
	if p.gid, err = lookup(p.group, "group", func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	}); err != nil {
		return err
	}
	if err := checkDirectory(filepath.Dir(p.path)); err != nil {
		return err
	}
	return p.prepareSignal()
}

// lookup returns the number of an owner or group, given as a name or a number;
// -1 for none.
func lookup(name, flag string, by func(name string) (string, error)) (int, error) {
	if name == "" {
		return -1, nil
	}
	number := name
	if _, err := strconv.ParseUint(name, 10, 31); err != nil {
		if number, err = by(name); err != nil {
			return -1, cli.Usagef("--%s %q: %w", flag, name, err)
		}
	}
	return strconv.Atoi(number)
}

// checkDirectory refuses a directory in which others could put another file in
// the place of the secret, for the program that reads it to trust, or another
// directory in the place of this one or those above.
func checkDirectory(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("keeping a secret in a file: %w", err)
	}
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("keeping a secret in a file: %w", err)
		}
		if mode := info.Mode(); mode.Perm()&0o022 != 0 && mode&os.ModeSticky == 0 {
			return fmt.Errorf("keeping a secret in %s: mode %04o lets others replace files there; run: chmod go-w %s", dir, mode.Perm(), dir)
		}
		if dir == "/" {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

func (p *place) prepareSignal() (err error) {
	if (p.signalName != "") != (p.pid != 0) {
		return cli.Usagef("--signal goes with --pid")
	}
	if p.signalName == "" {
		return nil
	}
	p.signal = unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(p.signalName), "SIG"))
	if p.signal == 0 {
		return cli.Usagef("--signal %q: want the name of one, such as HUP", p.signalName)
	}
	if p.pinned, err = process.Pin(p.pid); err != nil {
		return fmt.Errorf("--pid: %w", err)
	}
	// Both hold a pidfd, of one process if that still lives.
	if p.reader, err = os.FindProcess(p.pid); err == nil {
		err = p.pinned.Alive()
	}
	if err != nil {
		return fmt.Errorf("--pid: %w", err)
	}
	return nil
}

// gone returns a channel that is closed when the process that is signalled
// exits; nil where there is none.
func (p *place) gone() <-chan struct{} {
	if p.pinned == nil {
		return nil
	}
	return p.pinned.Done()
}

// put replaces the file, and tells whoever reads it if there was one before.
func (p *place) put(ctx context.Context, data []byte) error {
	_, err := os.Lstat(p.path)
	replaced := err == nil
	if p.wrote, err = state.ReplaceFile(p.path, data, state.Ownership{Mode: p.mode, UID: p.uid, GID: p.gid}); err != nil {
		return fmt.Errorf("writing %s: %w", p.path, err)
	}
	if !replaced {
		return nil
	}
	err = p.tell(ctx)
	if err != nil && p.follow {
		fmt.Fprintf(os.Stderr, "vouch: %v\n", err) // the file is fresh all the same
		return nil
	}
	return err
}

// tellTimeout bounds the command that tells a program of a new value.
const tellTimeout = time.Minute

// tell sends the signal and runs the command.
func (p *place) tell(ctx context.Context) error {
	if p.reader != nil {
		if err := p.reader.Signal(p.signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("sending %s to process %d: %w", unix.SignalName(p.signal), p.pid, err)
		}
	}
	if p.command == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", p.command)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running %q: %w", p.command, err)
	}
	return nil
}

// ready tells systemd, where it waits for that, that the first value is there.
func (p *place) ready() error { return systemd.Ready("Keeps " + p.path) }

// close removes the file if it was to be kept fresh and is the one written last.
// It may be called more than once.
func (p *place) close() {
	if p.pinned != nil {
		p.pinned.Close()
	}
	if !p.follow || p.wrote == nil {
		return
	}
	if now, err := os.Lstat(p.path); err == nil && os.SameFile(now, p.wrote) {
		os.Remove(p.path)
	}
}
