package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	self      = "/proc/self/exe"
	stageName = "sandbox-init" // as which a stage is called
)

// The stages.
const (
	stageNetwork = "network" // makes the network and the mounts
	stageInit    = "init"    // is process 1 of the namespaces
	stageCommand = "command" // becomes the command
	stageDirect  = "direct"  // does so without the others, once it is told to
	stageApart   = "apart"   // does so too, in a user namespace of its own
)

// The descriptors of a stage, beside the standard streams.
const (
	controlFD = 3
	requestFD = 4
)

// IsStage reports whether this process was started as a stage of a sandbox. A program that
// uses [Start] asks this first of all, and calls [RunStage].
func IsStage(argv []string) bool { return len(argv) == 3 && argv[1] == stageName }

// RunStage does what a stage is for. It does not return.
func RunStage(argv []string) {
	runtime.LockOSThread() // privileges are a thread's, and this one executes the next stage
	err := func() error {
		var r request
		if err := readRequest(&r); err != nil {
			return fmt.Errorf("%s is started by vouch exec --sandbox alone: %w", stageName, err)
		}
		if err := closeOnExec(requestFD + 1); err != nil {
			return err
		}
		switch argv[2] {
		case stageNetwork:
			err := runNetwork(r)
			m := message{Error: err.Error()}
			errors.As(err, &m.Errno)
			send(m)
			return nil // said by who started this
		case stageInit:
			return runInit()
		case stageCommand:
			return runCommand()
		case stageApart:
			if err := mapUser(r); err != nil {
				return err
			}
			fallthrough
		case stageDirect:
			if err := awaitRelease(); err != nil {
				return err
			}
			return runCommand()
		}
		return fmt.Errorf("unknown stage %q", argv[2])
	}()
	if err == nil {
		syscall.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "vouch:", err)
	syscall.Exit(127)
}

func readRequest(r *request) error {
	info := unix.Stat_t{}
	if err := unix.Fstat(requestFD, &info); err != nil {
		return err
	}
	b := make([]byte, info.Size)
	if n, err := unix.Pread(requestFD, b, 0); err != nil || n < len(b) {
		return fmt.Errorf("reading the request: %d bytes (%w)", n, err)
	}
	return json.Unmarshal(b, r)
}

// closeOnExec keeps descriptors from the next program: whatever vouch's own caller has left open.
func closeOnExec(from int) error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= from {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// next replaces this stage by another, which inherits the control socket and the request.
func next(stage string) error {
	for _, fd := range []uintptr{controlFD, requestFD} {
		if _, err := unix.FcntlInt(fd, unix.F_SETFD, 0); err != nil {
			return err
		}
	}
	return unix.Exec(self, []string{"vouch", stageName, stage}, []string{})
}

// A message is what goes over the control socket, in either direction.
type message struct {
	Files  []string            `json:",omitempty"` // names of the descriptors beside it
	Error  string              `json:",omitempty"`
	Errno  syscall.Errno       `json:",omitempty"` // of the error, if it has one
	Status *syscall.WaitStatus `json:",omitempty"` // of the command
	Go     bool                `json:",omitempty"` // run the command
	Signal int                 `json:",omitempty"` // send this to the command
}

// A stageError is one that a stage has sent.
type stageError struct {
	text  string
	errno syscall.Errno
}

func (e *stageError) Error() string { return e.text }

func (e *stageError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// maxMessage and maxFiles bound a message.
const (
	maxMessage = 16 << 10 // bytes
	maxFiles   = 16
)

// controlPair returns a pair of connected sockets, which keep messages apart.
func controlPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("preparing the sandbox: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "control")
	f := os.NewFile(uintptr(fds[0]), "control")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("preparing the sandbox: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}

// sendTo sends from outside.
func sendTo(c *net.UnixConn, m message) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = c.Write(text)
	return err
}

// receive receives outside. The caller closes the files, also with an error.
func receive(c *net.UnixConn) (m message, files []*os.File, err error) {
	b, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.ReadMsgUnix(b, rights)
	fds, parseErr := parseRights(rights[:oobn])
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "passed"))
	}
	switch {
	case err != nil:
		return m, files, err
	case n == 0:
		return m, files, io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		return m, files, errors.New("a message of a sandbox is too long")
	case parseErr != nil:
		return m, files, parseErr
	}
	return m, files, json.Unmarshal(b[:n], &m)
}

func parseRights(b []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(b)
	for _, m := range messages {
		more, rightsErr := unix.ParseUnixRights(&m)
		fds = append(fds, more...)
		err = errors.Join(err, rightsErr)
	}
	return fds, err
}

// send sends from a stage.
func send(m message, fds ...int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(controlFD, text, rights, nil, unix.MSG_NOSIGNAL)
}

// hear receives in a stage. [io.EOF] means that vouch has gone.
func hear() (m message, err error) {
	b := make([]byte, maxMessage)
	for {
		n, _, _, _, err := unix.Recvmsg(controlFD, b, nil, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return m, err
		case n == 0:
			return m, io.EOF
		}
		return m, json.Unmarshal(b[:n], &m)
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
