// Package deliver keeps a value fresh in files that another program reads, and
// tells that program when there is a new one.
//
// A file is replaced atomically, with its owner and mode, so a reader sees either the
// old value or the new one. The program is notified by a signal, which goes through a
// pidfd and cannot reach another process, or by a command. When following ends, files
// are removed if they are still the ones that were written.
//
// The caller supplies the values, and revokes what they stand for.
package deliver

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

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/state"
	"github.com/vouchd/vouchd/systemd"
)

// A Place is a file that holds a secret for another program, and is replaced
// atomically by the next value.
type Place struct {
	Path         string
	Mode         string // octal
	Owner, Group string // names or numbers; empty: as the file is created
	Follow       bool   // keep the file fresh, and remove it at the end
	Signal       string // its name; sent to PID after a replacement
	PID          int
	Command      string // run by sh after a replacement

	mode     fs.FileMode
	uid, gid int // -1: as the file is created
	signal   syscall.Signal
	pinned   *process.Peer // gets the signal; nil: none
	reader   *os.Process   // the same
	wrote    os.FileInfo   // nil before the first
}

// Prepare checks what can be checked before there is a value. The caller closes
// the place.
func (p *Place) Prepare() (err error) {
	if p.Path, err = filepath.Abs(p.Path); err != nil {
		return err
	}
	mode, err := strconv.ParseUint(p.Mode, 8, 32)
	if err != nil || mode&^0o755 != 0 || mode&0o400 == 0 {
		return cli.Usagef("--mode %q: want a mode such as 0640, which lets the owner read and only the owner write", p.Mode)
	}
	p.mode = fs.FileMode(mode)
	if p.uid, err = lookup(p.Owner, "owner", func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	}); err != nil {
		return err
	}
	if p.gid, err = lookup(p.Group, "group", func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	}); err != nil {
		return err
	}
	if err := checkDirectory(filepath.Dir(p.Path)); err != nil {
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

// checkDirectory refuses a directory in which others could replace the secret with
// a file of their own, which its reader would trust, or that others could replace
// itself, along with those above it.
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

func (p *Place) prepareSignal() (err error) {
	if (p.Signal != "") != (p.PID != 0) {
		return cli.Usagef("--signal and --pid must be given together")
	}
	if p.Signal == "" {
		return nil
	}
	p.signal = unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(p.Signal), "SIG"))
	if p.signal == 0 {
		return cli.Usagef("--signal %q: want a signal's name, such as HUP", p.Signal)
	}
	if p.pinned, err = process.Pin(p.PID); err != nil {
		return fmt.Errorf("--pid: %w", err)
	}
	// Both hold a pidfd, of the same process if it is still alive.
	if p.reader, err = os.FindProcess(p.PID); err == nil {
		err = p.pinned.Alive()
	}
	if err != nil {
		return fmt.Errorf("--pid: %w", err)
	}
	return nil
}

// gone returns a channel that is closed when the signalled process exits; nil if
// there is none.
func (p *Place) gone() <-chan struct{} {
	if p.pinned == nil {
		return nil
	}
	return p.pinned.Done()
}

// Put replaces the file, and notifies its reader if there was one before. That is
// certain of one that is kept fresh: an earlier run may have removed its file, and
// the reader still goes on with what was in it.
func (p *Place) Put(ctx context.Context, data []byte) error {
	_, err := os.Lstat(p.Path)
	replaced := err == nil
	if p.wrote, err = state.ReplaceFile(p.Path, data, state.Ownership{Mode: p.mode, UID: p.uid, GID: p.gid}); err != nil {
		return fmt.Errorf("writing %s: %w", p.Path, err)
	}
	if !replaced && !p.Follow {
		return nil
	}
	err = p.tell(ctx)
	if err != nil && p.Follow {
		fmt.Fprintf(os.Stderr, "vouch: %v\n", err) // the file is fresh nonetheless
		return nil
	}
	return err
}

// tellTimeout bounds the command that notifies a program of a new value.
const tellTimeout = time.Minute

// tell sends the signal and runs the command.
func (p *Place) tell(ctx context.Context) error {
	if p.reader != nil {
		if err := p.reader.Signal(p.signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("sending %s to process %d: %w", unix.SignalName(p.signal), p.PID, err)
		}
	}
	if p.Command == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", p.Command)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running %q: %w", p.Command, err)
	}
	return nil
}

// Ready tells systemd, if it waits for that, that the first value is in place.
func (p *Place) Ready() error { return systemd.Ready("Keeping " + p.Path + " fresh") }

// Close removes the file if it was being kept fresh and is still the one written
// last. It may be called more than once.
func (p *Place) Close() {
	if p.pinned != nil {
		p.pinned.Close()
	}
	if !p.Follow || p.wrote == nil {
		return
	}
	if now, err := os.Lstat(p.Path); err == nil && os.SameFile(now, p.wrote) {
		os.Remove(p.Path)
	}
}
