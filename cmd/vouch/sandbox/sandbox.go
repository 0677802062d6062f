// Package sandbox runs a command that reaches nothing on the network but this process.
//
// The command has a network namespace of its own, in which every address ends: what it
// connects to, it connects to listeners that this process accepts on. It has process, mount
// and IPC namespaces as well, private /run, /tmp and /dev, and no privilege. A seccomp filter
// refuses sockets of every family but IP and netlink, so no Unix socket of the host, wherever
// it lies, can be reached. No privilege is needed for it, but that the kernel lets users
// create namespaces; [Check] says why it does not.
//
// Three programs lead to the command, all of them this one under a hidden name ([IsStage]):
// the first prepares the namespaces and passes the listeners out, the second stays as their
// process 1, and the third gives up what is left of privileges and executes the command.
//
// Files stay out of reach of all this: what the user may read, the command may read, and it
// may write what [Options].Write leaves to it.
package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options are what is to run, and with what.
type Options struct {
	Command []string // looked up in PATH of the environment
	Dir     string   // where it starts; "" for the current directory
	Bundle  []byte   // PEM: the roots that the command is to trust, instead of the system's; nil leaves those
	Store   []byte   // the same for Java; nil for none
	Write   []string // if not nil, the only directories that may be written, beside /tmp, /var/tmp and /dev

	Stdin, Stdout, Stderr *os.File // nil for those of this process
}

// A Sandbox is a network that a command is alone in, and the command.
//
// The caller closes what it accepts; Close closes the listeners and files.
type Sandbox struct {
	Proxy     *net.TCPListener // on a port of 127.0.0.1
	TLS       []net.Listener   // on port 443 of every address; a connection's local address is the one dialed
	HTTP      []net.Listener   // on port 80, likewise
	Databases []net.Listener   // on ports 5432 and 6379, likewise
	DNS       net.PacketConn   // on 127.0.0.1:53
	DNSTCP    net.Listener
	Diag      *os.File // a NETLINK_SOCK_DIAG socket, which knows the sockets of this network

	attempts *attempts
	packets  *os.File
	control  *net.UnixConn
	request  *os.File
	asked    request
	process  *os.Process // process 1 of the namespaces; or, without those, the command
	direct   bool        // it is the command
	work     sync.WaitGroup
	closing  sync.Once
	ended    chan struct{} // closed when the process has ended, and status and err are set
	status   syscall.WaitStatus
	err      error
	silent   chan struct{}       // closed when the stages say nothing more, and said is set
	said     *syscall.WaitStatus // how the command ended, by process 1
}

// BundlePath is where the command finds Options.Bundle, if it was given, and StorePath where
// it finds Options.Store.
const (
	BundlePath = "/run/vouch/ca.pem"
	StorePath  = "/run/vouch/ca.p12"
)

// A request is what the stages are to do. It is in a file without a name, which they inherit.
type request struct {
	UID, GID int
	Dir      string
	Bundle   []byte
	Store    []byte
	Write    []string
	Limited  bool // Write holds
	Command  []string
	Env      []string
}

// namespaces are those that the command has to itself.
const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// prepares is what the first stage may do, in its namespaces.
var prepares = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE, unix.CAP_SETPCAP}

// Start makes the namespaces and the listeners in them. The command waits for
// [Sandbox.Release]. It ends, with all that it has started, if this process does. Ctx is for
// the start alone.
//
// In a unit that systemd has given a network of its own (PrivateNetwork=yes), and with it the
// ambient capabilities CAP_NET_ADMIN, CAP_NET_RAW and CAP_NET_BIND_SERVICE, that network is
// used, and the command keeps the unit's other namespaces. Where there is no Landlock, it gets
// a user namespace.
func Start(ctx context.Context, o Options) (*Sandbox, error) {
	if prepared() {
		return here(o)
	}
	s, err := start(ctx, o)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSPC) {
		return nil, fmt.Errorf("%w; see vouch doctor", err)
	}
	return s, err
}

// start makes namespaces.
func start(ctx context.Context, o Options) (*Sandbox, error) {
	s, theirs, err := prepare(o)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := s.stage(stageNetwork, o, theirs)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, AmbientCaps: prepares, Pdeathsig: syscall.SIGKILL}
	if err := s.start(cmd); err != nil {
		s.Close()
		return nil, fmt.Errorf("making namespaces: %w", err)
	}
	theirs.Close()
	defer context.AfterFunc(ctx, func() { s.control.CloseRead() })()
	first, files, err := receive(s.control)
	switch {
	case err == nil && first.Error != "":
		err = &stageError{first.Error, first.Errno}
	case err == nil && len(files) != len(first.Files):
		err = errors.New("its first process passed too few descriptors")
	case err == nil:
		err = s.take(first.Files, files)
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, io.EOF):
		err = errors.New("its first process ended at once")
	}
	if err != nil {
		closeAll(files)
		s.Close()
		return nil, fmt.Errorf("preparing the sandbox: %w", err)
	}
	s.watch()
	return s, nil
}

// prepared reports whether a unit is made for a sandbox. No other process has these
// capabilities as ambient ones; root in a container has them otherwise.
func prepared() bool {
	for _, c := range []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE} {
		if set, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, c, 0, 0); err != nil || set == 0 {
			return false
		}
	}
	return true
}

// here makes the network that this process is in the command's.
func here(o Options) (*Sandbox, error) {
	if err := alone(); err != nil {
		return nil, fmt.Errorf("preparing the sandbox: %w", err)
	}
	n, err := makeNetwork()
	if err != nil {
		return nil, fmt.Errorf("preparing the sandbox: %w", err)
	}
	names, files, err := n.files()
	n.close()
	if err != nil {
		return nil, fmt.Errorf("preparing the sandbox: %w", err)
	}
	s, theirs, err := prepare(o)
	if err != nil {
		closeAll(files)
		return nil, err
	}
	defer theirs.Close()
	if err := s.take(names, files); err != nil {
		s.Close()
		return nil, fmt.Errorf("preparing the sandbox: %w", err)
	}
	for _, f := range []struct {
		path    string
		content []byte
	}{{BundlePath, o.Bundle}, {StorePath, o.Store}} {
		if f.content == nil {
			continue
		}
		if err := place(f.path, f.content); err != nil {
			s.Close()
			return nil, fmt.Errorf("preparing the sandbox: %w; the unit needs TemporaryFileSystem=%s:mode=1777", err, filepath.Dir(f.path))
		}
	}
	s.direct = true
	cmd := s.stage(stageDirect, o, theirs)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	apart := landlockVersion() < landlockRefer
	if apart {
		// What keeps the command from tracing other processes of its user is that they are in
		// the user namespace above its own.
		cmd.Args[2] = stageApart
		cmd.SysProcAttr.Cloneflags, cmd.SysProcAttr.AmbientCaps = unix.CLONE_NEWUSER, []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}
	}
	err = s.start(cmd)
	if err != nil && apart {
		err = fmt.Errorf("the kernel has no Landlock (Linux 5.19), and lets the unit make no user namespace (%w); either one is needed to keep the command from other processes of its user", err)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("preparing the sandbox: %w", err)
	}
	s.watch()
	return s, nil
}

// place puts a file into a directory that is this unit's alone.
func place(path string, content []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, content, 0o444)
}

// prepare returns a sandbox of which nothing runs yet, and the other end of its control
// socket.
func prepare(o Options) (_ *Sandbox, theirs *os.File, err error) {
	if len(o.Command) == 0 {
		return nil, nil, errors.New("preparing the sandbox: no command")
	}
	for i, f := range o.streams() {
		if err := checkStream(f); err != nil {
			return nil, nil, fmt.Errorf("standard %s: %w", [...]string{"input", "output", "error"}[i], err)
		}
	}
	if o.Write != nil && landlockVersion() == 0 {
		return nil, nil, errNoLandlock
	}
	s := &Sandbox{attempts: newAttempts(), ended: make(chan struct{}), silent: make(chan struct{})}
	s.asked = request{UID: os.Getuid(), GID: os.Getgid(), Dir: o.Dir, Bundle: o.Bundle, Store: o.Store, Limited: o.Write != nil, Command: o.Command}
	if s.asked.Dir == "" {
		if s.asked.Dir, err = os.Getwd(); err != nil {
			return nil, nil, err
		}
	}
	// What its links lead to is what is hidden or not.
	if s.asked.Dir, err = filepath.EvalSymlinks(s.asked.Dir); err != nil {
		return nil, nil, err
	}
	for _, dir := range o.Write {
		if dir, err = filepath.Abs(dir); err == nil {
			dir, err = filepath.EvalSymlinks(dir)
		}
		if err != nil {
			return nil, nil, err
		}
		s.asked.Write = append(s.asked.Write, dir)
	}
	if s.request, err = newRequest(s.asked); err != nil {
		return nil, nil, err
	}
	ours, theirs, err := controlPair()
	if err != nil {
		s.request.Close()
		return nil, nil, err
	}
	s.control = ours
	return s, theirs, nil
}

func (o Options) streams() [3]*os.File {
	files := [3]*os.File{o.Stdin, o.Stdout, o.Stderr}
	for i, own := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if files[i] == nil {
			files[i] = own
		}
	}
	return files
}

// checkStream refuses a standard stream that leads out of the sandbox: a directory, or a
// socket that can be sent to elsewhere than its other end.
func checkStream(f *os.File) error {
	info, err := f.Stat()
	switch {
	case errors.Is(err, unix.EBADF):
		return errors.New("it is closed; open /dev/null for it")
	case err != nil:
		return err
	case info.IsDir():
		return errors.New("it is a directory, by which the command could open what is hidden from it")
	case info.Mode().Type() != os.ModeSocket:
		return nil
	}
	fd := int(f.Fd())
	domain, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	kind, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	_, err3 := unix.Getpeername(fd)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	if domain != unix.AF_UNIX || kind != unix.SOCK_STREAM && kind != unix.SOCK_SEQPACKET {
		return errors.New("it is a socket of a network, or one without a fixed peer; use a pipe")
	}
	return nil
}

// stage is this program as one of the stages.
func (s *Sandbox) stage(name string, o Options, control *os.File) *exec.Cmd {
	streams := o.streams()
	return &exec.Cmd{
		Path: self, Args: []string{"vouch", stageName, name}, Env: []string{},
		Stdin: streams[0], Stdout: streams[1], Stderr: streams[2],
		ExtraFiles: []*os.File{control, s.request},
	}
}

// start starts the first stage, and has a goroutine wait for it. That one's thread is the
// child's parent, at whose end the kernel kills the child.
func (s *Sandbox) start(cmd *exec.Cmd) error {
	restore := restoreTerminal()
	started := make(chan error)
	s.work.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err != nil {
			restore()
			s.err = err
			close(s.ended)
			started <- err
			return
		}
		s.process = cmd.Process
		started <- nil
		err = cmd.Wait()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			s.err = err
		} else {
			s.status = cmd.ProcessState.Sys().(syscall.WaitStatus)
		}
		restore()
		close(s.ended)
	})
	return <-started
}

// take makes listeners of what was passed.
func (s *Sandbox) take(names []string, files []*os.File) (err error) {
	for i, f := range files {
		var l net.Listener
		var taken error
		switch name := names[i]; name {
		case fileDiag:
			s.Diag = f
			continue
		case filePackets:
			s.packets = f
			continue
		case fileDNS:
			s.DNS, taken = net.FilePacketConn(f)
		case fileDNSTCP:
			s.DNSTCP, taken = net.FileListener(f)
		case fileProxy:
			if l, taken = net.FileListener(f); taken == nil {
				s.Proxy = l.(*net.TCPListener)
			}
		case fileTLS4, fileTLS6:
			if l, taken = net.FileListener(f); taken == nil {
				s.TLS = append(s.TLS, l)
			}
		case fileHTTP4, fileHTTP6:
			if l, taken = net.FileListener(f); taken == nil {
				s.HTTP = append(s.HTTP, l)
			}
		case filePostgres, fileRedis:
			if l, taken = net.FileListener(f); taken == nil {
				s.Databases = append(s.Databases, l)
			}
		default:
			taken = fmt.Errorf("a descriptor of the unknown name %q", name)
		}
		f.Close()
		err = errors.Join(err, taken)
	}
	if err == nil && (s.Proxy == nil || s.DNS == nil || s.DNSTCP == nil || s.Diag == nil || s.packets == nil || len(s.TLS) == 0 || len(s.HTTP) == 0 || len(s.Databases) == 0) {
		err = errors.New("a descriptor is missing")
	}
	return err
}

// watch reads what the stages say, and what the command attempts.
func (s *Sandbox) watch() {
	s.work.Go(func() { s.attempts.packets(s.packets) })
	s.work.Go(func() {
		defer close(s.silent)
		for {
			m, files, err := receive(s.control)
			if err != nil {
				return
			}
			if m.Status != nil {
				s.said = m.Status
			}
			if len(files) == 1 && len(m.Files) == 1 && m.Files[0] == fileNotify {
				s.work.Go(func() { answer(files[0], s.ended, s.attempts.add) })
				continue
			}
			closeAll(files)
		}
	})
}

// Attempts returns what the command tried to reach and could not. Who does not read loses
// reports, which [Sandbox.LeftOut] counts.
func (s *Sandbox) Attempts() <-chan Attempt { return s.attempts.out }

// LeftOut returns how many attempts were not reported, as there were too many.
func (s *Sandbox) LeftOut() uint64 { return s.attempts.leftOut.Load() }

// Report adds an attempt that somebody else has seen, such as the server of DNS.
func (s *Sandbox) Report(a Attempt) { s.attempts.add(a) }

// Release lets the command go, with this environment.
func (s *Sandbox) Release(env []string) error {
	s.asked.Env = env
	if err := writeRequest(s.request, s.asked); err != nil {
		return err
	}
	return sendTo(s.control, message{Go: true})
}

// PID returns the host's process ID of the sandbox's first process, of which all others descend.
func (s *Sandbox) PID() int { return s.process.Pid }

// Signal sends a signal to the command. Before it runs, and after it has ended, nothing happens.
func (s *Sandbox) Signal(sig os.Signal) error {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("%v is not a signal", sig)
	}
	if s.direct {
		err := s.process.Signal(n)
		if errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
		return err
	}
	err := sendTo(s.control, message{Signal: int(n)})
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		err = nil // it has ended
	}
	return err
}

// Wait returns how the command ended. By then all that it has started has ended as well.
// That it could not be executed is exit code 127, and said on standard error.
func (s *Sandbox) Wait() (syscall.WaitStatus, error) {
	<-s.ended
	switch {
	case s.err != nil:
		return 0, s.err
	case s.direct:
		return s.status, nil
	}
	<-s.silent
	if s.said == nil {
		return 0, fmt.Errorf("the sandbox's first process ended before its command (%v)", s.status)
	}
	return *s.said, nil
}

// Close kills what still runs, waits for its end, and closes the listeners.
func (s *Sandbox) Close() error {
	s.closing.Do(func() {
		s.control.Close() // process 1 ends when it reads that
		if s.process != nil {
			s.process.Kill()
			<-s.ended
		}
		if s.packets != nil {
			s.packets.SetReadDeadline(time.Unix(1, 0))
		}
		s.work.Wait()
		for _, l := range slices.Concat(s.TLS, s.HTTP, s.Databases) {
			l.Close()
		}
		if s.Proxy != nil {
			s.Proxy.Close()
		}
		if s.DNS != nil {
			s.DNS.Close()
		}
		if s.DNSTCP != nil {
			s.DNSTCP.Close()
		}
		for _, f := range []*os.File{s.Diag, s.packets, s.request} {
			if f != nil {
				f.Close()
			}
		}
		s.attempts.close()
	})
	return nil
}

// newRequest returns a file without a name that holds a request.
func newRequest(r request) (*os.File, error) {
	fd, err := unix.MemfdCreate("vouch-sandbox", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("preparing the sandbox: %w", err)
	}
	f := os.NewFile(uintptr(fd), "request")
	if err := writeRequest(f, r); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func writeRequest(f *os.File, r request) error {
	text, err := json.Marshal(r)
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(text, 0)
	}
	if err != nil {
		return fmt.Errorf("preparing the sandbox: %w", err)
	}
	return nil
}
