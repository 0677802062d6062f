package gate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/workloadapi/gate/wire"
)

// maxSocketPath is what fits into sockaddr_un with its terminating zero.
const maxSocketPath = 107

// ListenAt returns a listener whose connections name the sender of each message. mode
// says who may connect; the socket's directory is created with mode 0755 if it is
// missing. A socket left behind by a crashed daemon is replaced. A socket on which
// a process answers, one that belongs to another user, and anything that is not a
// socket, is an error and is left alone. Closing the listener removes the socket.
func ListenAt(path string, mode fs.FileMode) (*net.UnixListener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket path %s has %d bytes, but Linux allows at most %d; choose a shorter one", path, len(path), maxSocketPath)
	}
	if err := prepareDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return wire.PassCredentials(raw)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err // names operation and path
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// adopt prepares a listener that systemd opened, as ListenAt does its own.
// Closing it leaves the socket to systemd.
func adopt(l *net.UnixListener) error {
	l.SetUnlinkOnClose(false)
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	return wire.PassCredentials(raw)
}

// prepareDir makes the directory where it is missing. Who may write to it may
// put another socket in the daemon's place.
func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if mode := info.Mode(); mode.Perm()&0o022 != 0 && mode&fs.ModeSticky == 0 {
		return fmt.Errorf("others may write to directory %s (mode %04o); use chmod go-w", dir, mode.Perm())
	}
	return nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("there is a %s of that name; move it away", describe(info.Mode()))
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return fmt.Errorf("a socket of that name belongs to user %d; remove it", owner)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	switch {
	case err == nil:
		conn.Close()
		return errors.New("another daemon answers on it; stop that one first")
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	default: // EAGAIN: a daemon that lives but does not accept
		return fmt.Errorf("another daemon may be using it: %w", err)
	}
}

func describe(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symbolic link"
	default:
		return "special file"
	}
}
