package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// runNetwork is the first stage: it prepares the namespaces that it was started in, passes the
// listeners out, and goes on as process 1.
func runNetwork(r request) error {
	if err := mapUser(r); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	n, err := makeNetwork()
	if err != nil {
		return err
	}
	names, files, err := n.files()
	n.close()
	if err != nil {
		return err
	}
	if err := makeMounts(r); err != nil {
		return err
	}
	if err := dropPrivileges(); err != nil {
		return err
	}
	// It survives the next program, as this thread does.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	if err := send(message{Files: names}, fds...); err != nil {
		return fmt.Errorf("passing descriptors: %w", err)
	}
	closeAll(files)
	return next(stageInit)
}

// mapUser has the user be itself in the user namespace that this process was started in.
func mapUser(r request) error {
	for _, m := range []struct{ file, text string }{
		{"setgroups", "deny"}, {"uid_map", fmt.Sprintf("%d %d 1", r.UID, r.UID)}, {"gid_map", fmt.Sprintf("%d %d 1", r.GID, r.GID)},
	} {
		if err := os.WriteFile("/proc/self/"+m.file, []byte(m.text), 0); err != nil {
			return fmt.Errorf("mapping the user into the namespace: %w", err)
		}
	}
	return nil
}

// caught are signals that must not end process 1: a terminal sends them to it too. They are
// not ignored, since the command would ignore them as well. It does ignore what vouch was
// started with ignored, as under nohup.
var caught = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
	syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGCONT, syscall.SIGWINCH, syscall.SIGPIPE,
}

// runInit is process 1. It starts the command when it is told to, passes signals on, reaps
// whatever ends, and ends with the command or with vouch. The kernel kills what is left then.
func runInit() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	for _, s := range caught {
		if !signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	if err := awaitRelease(); err != nil {
		return err
	}
	command, err := syscall.ForkExec(self, []string{"vouch", stageName, stageCommand}, &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{0, 1, 2, controlFD, requestFD},
		Sys:   &syscall.SysProcAttr{Setpgid: !hasTerminal()},
	})
	if err != nil {
		return fmt.Errorf("starting the command: %w", err)
	}
	go func() {
		for {
			m, err := hear()
			if err != nil {
				syscall.Exit(1) // vouch has gone
			}
			if m.Signal != 0 {
				syscall.Kill(command, syscall.Signal(m.Signal))
			}
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("waiting for the command: %w", err)
		case pid == command:
			send(message{Status: &status})
			syscall.Exit(0)
		}
	}
}

// hasTerminal reports whether there is a controlling terminal. Where there is one, the command
// stays in vouch's process group, which the terminal and the shell know. Elsewhere it gets one
// of its own, and so cannot signal what vouch was started with.
func hasTerminal() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// awaitRelease waits until the command is to go.
func awaitRelease() error {
	for {
		m, err := hear()
		if err != nil {
			return errors.New("vouch ended before the command was started")
		}
		if m.Go {
			return nil
		}
	}
}

// runCommand is the last stage, which becomes the command.
func runCommand() error {
	var r request
	if err := readRequest(&r); err != nil {
		return err
	}
	unix.CloseOnExec(controlFD)
	unix.CloseOnExec(requestFD)
	path, err := lookPath(r.Command[0], r.Env)
	if err != nil {
		return err
	}
	if err := dropPrivileges(); err != nil {
		return err
	}
	if err := restrict(r.Limited, append(r.Write, "/tmp", "/var/tmp", "/dev"), foreignProc()); err != nil {
		return err
	}
	notify, err := filterSystemCalls()
	if err != nil {
		return err
	}
	if notify >= 0 {
		if err := send(message{Files: []string{fileNotify}}, notify); err != nil {
			return fmt.Errorf("passing a descriptor: %w", err)
		}
		unix.Close(notify)
	}
	return &exec.Error{Name: r.Command[0], Err: syscall.Exec(path, r.Command, r.Env)}
}

// lookPath finds a program in the PATH of an environment.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var path string
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			path = value // the last of a name counts
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			continue // the current directory, by accident
		}
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && unix.Access(file, unix.X_OK) == nil {
			return file, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// foreignProc reports whether /proc is that of other processes too.
func foreignProc() bool {
	me, err := os.Readlink("/proc/self")
	return err != nil || me != strconv.Itoa(os.Getpid())
}

// securityBits keep programs of root, and those with capabilities in their file, from getting
// any (capabilities(7)): SECBIT_NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, and their locks.
const securityBits = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<6 | 1<<7

// dropPrivileges takes every capability from this thread, and the ways to get one.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up privileges: %w", err)
	}
	for c := uintptr(0); ; c++ {
		if set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break // there are no more
		} else if set == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("giving up capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, securityBits, 0, 0, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("giving up privileges: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("giving up capabilities: %w", err)
	}
	return noCapabilities()
}

// noCapabilities returns an error unless this thread has none and could get none by
// executing a program as root.
func noCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if _, _, errno := unix.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&have[0])), 0); errno != 0 {
		return errno
	}
	if have != [2]unix.CapUserData{} {
		return errors.New("capabilities are left that could not be given up")
	}
	if bits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0); os.Geteuid() == 0 && (err != nil || bits&1 == 0) {
		return errors.New("root would get capabilities again; give the unit a User=")
	}
	return nil
}
