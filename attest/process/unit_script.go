package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process/file"
	"github.com/vouchd/vouchd/systemd"
)

// script establishes what the interpreter runs, for the unit's main process
// only: others may be whatever that one has started.
func (e *unitEvidence) script(ctx context.Context) error {
	s := e.unit.Service
	if s.MainPID != e.peer.pid {
		return nil
	}
	switch {
	case s.Type != "simple" && s.Type != "exec" && s.Type != "notify" && s.Type != "notify-reload" && s.Type != "dbus" && s.Type != "idle" && s.Type != "oneshot":
		return fmt.Errorf("a service of type %s may choose its main process; use another type", s.Type)
	case s.NotifyAccess != "none" && s.NotifyAccess != "main":
		return fmt.Errorf("with NotifyAccess=%s every process of the unit may choose its main process; use main", s.NotifyAccess)
	case s.RootDirectory != "" || s.RootImage != "":
		return errors.New("the unit has a root directory of its own")
	case s.PAMName != "":
		return errors.New("with PAMName= the user may set variables that change what an interpreter runs")
	case len(s.ExecStart) != 1:
		return fmt.Errorf("the unit has %d commands in ExecStart", len(s.ExecStart))
	}
	script, interpreter, err := e.findScript(s)
	if err != nil || script == "" {
		return err
	}
	sum, err := e.file(ctx, script, file.NotBy(e.facts.status.uids[:]...))
	if err != nil {
		return err
	}
	if err := e.sameInside(script); err != nil {
		return err
	}
	e.out.script, e.out.scriptSHA256 = script, sum
	e.out.roots = []string{filepath.Dir(script)}
	venv := filepath.Dir(filepath.Dir(interpreter))
	if _, err := os.Lstat(filepath.Join(venv, "pyvenv.cfg")); err == nil {
		e.out.roots = append(e.out.roots, venv)
	}
	return nil
}

// findScript returns the script in ExecStart and the path of the interpreter
// that runs it, or "" where the program is no interpreter.
func (e *unitEvidence) findScript(s *systemd.Service) (script, interpreter string, err error) {
	c := s.ExecStart[0]
	if !e.unit.Loaded.Before(e.started) {
		if err := e.startedWith(c.Args); err != nil {
			return "", "", err
		}
	}
	if len(c.Args) == 0 || !plainPath(c.Path) || strings.Contains(c.Path, "$") {
		return "", "", errors.New("ExecStart names no program")
	}
	head, err := readHead(c.Path)
	if err != nil {
		return "", "", err
	}
	if program, arg, ok := shebang(head); ok {
		interpreter, err := interpreterOf(program, arg)
		if err != nil {
			return "", "", err
		}
		return c.Path, interpreter, e.runs(interpreter)
	}
	if err := e.runs(c.Path); err != nil {
		return "", "", err
	}
	if _, ok := optionsOf(c.Path); !ok {
		return "", "", nil
	}
	script, err = scriptIn(c.Path, c.Args)
	if err != nil {
		return "", "", err
	}
	if !filepath.IsAbs(script) {
		if !filepath.IsAbs(s.WorkingDirectory) {
			return "", "", fmt.Errorf("script %s is relative to a directory that the unit does not set; use an absolute path", script)
		}
		script = filepath.Join(s.WorkingDirectory, script)
	}
	if !plainPath(script) {
		return "", "", fmt.Errorf("script %q has a path with dots as parts; write it without them", script)
	}
	return script, c.Path, nil
}

// startedWith returns an error unless the process shows the arguments as its
// own. systemd has read its units anew since the process was started, so that
// ExecStart may be a later one. A process can show any arguments, but one that
// was not told to does not know which.
func (e *unitEvidence) startedWith(args []string) error {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	b, err := e.dir.read("cmdline", buf)
	if err != nil {
		return err
	}
	if string(b) != strings.Join(args, "\x00")+"\x00" {
		return errors.New("systemd has read its units anew since the process was started, and the process does not show the arguments of ExecStart: restart the unit")
	}
	return nil
}

// runs returns an error unless the process runs the program at the path.
func (e *unitEvidence) runs(path string) error {
	id, err := file.IDOf(unix.AT_FDCWD, path, 0)
	if err != nil {
		return fmt.Errorf("program %s: %w", path, err)
	}
	if id != e.facts.program {
		return fmt.Errorf("the process does not run %s, which its unit starts", path)
	}
	return nil
}

// sameInside returns an error unless the process, in its mount namespace, finds
// the same file at the path.
func (e *unitEvidence) sameInside(path string) error {
	root, err := unix.Openat(int(e.dir), "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("root directory of the process: %w", err)
	}
	defer unix.Close(root)
	fd, err := file.OpenIn(root, path)
	if err != nil {
		return fmt.Errorf("%s as the process sees it: %w", path, err)
	}
	defer unix.Close(fd)
	inside, err := file.IDOf(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	outside, err := file.IDOf(unix.AT_FDCWD, path, 0)
	if err != nil {
		return err
	}
	if inside != outside {
		return fmt.Errorf("the process sees another file at %s than the daemon", path)
	}
	return nil
}

func readHead(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("program %s: %w", path, err)
	}
	defer unix.Close(fd)
	head := make([]byte, maxShebang)
	n, err := unix.Read(fd, head)
	if err != nil {
		return nil, fmt.Errorf("program %s: %w", path, err)
	}
	return head[:n], nil
}

// interpreterOf returns the program that a script's first line leads to, also
// through env(1) and the path that systemd gives to services.
func interpreterOf(program, arg string) (string, error) {
	if filepath.Base(program) != "env" {
		if _, ok := optionsOf(program); !ok {
			return "", fmt.Errorf("%s is no interpreter that is known", program)
		}
		if arg != "" {
			if _, err := scriptIn(program, []string{program, arg, "script"}); err != nil {
				return "", err
			}
		}
		return program, nil
	}
	if _, ok := optionsOf(arg); !ok || strings.ContainsAny(arg, " \t=/") {
		return "", fmt.Errorf("env %q starts no interpreter that is known", arg)
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		path := filepath.Join(dir, arg)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("env finds no %s on the path that systemd sets", arg)
}
