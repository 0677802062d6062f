package programs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process"
)

// The messages between vouch run and the daemon, one to a packet.
type (
	request struct { // the first from the caller, with three descriptors
		Program   string   `json:"program"`
		Arguments []string `json:"arguments,omitempty"`
		// Environment is what the caller offers, NAME=value. What the
		// definition does not let through is left out.
		Environment []string `json:"environment,omitempty"`
	}
	passed struct { // all others from the caller
		Signal int32 `json:"signal"`
	}
	reply struct { // one, at the end
		Error    string `json:"error,omitempty"`
		Status   int    `json:"status"`
		Signaled bool   `json:"signaled,omitempty"` // Status is a signal
	}
)

// Listen returns a listener for [Server.Serve]: the one that systemd has passed,
// else, if that is nil, one made at the path, with mode 0666: the kernel says
// who calls. A socket that a crashed daemon left is replaced.
func Listen(passed *net.UnixListener, path string) (*net.UnixListener, error) {
	if passed != nil {
		return adopt(passed, path)
	}
	if conn, err := net.Dial("unixpacket", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("socket %s: another daemon answers on it; stop that one first", path)
	} else if errors.Is(err, unix.ECONNREFUSED) {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return passCredentials(raw)
	}}
	l, err := config.Listen(context.Background(), "unixpacket", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// adopt prepares a socket that systemd has opened.
func adopt(l *net.UnixListener, path string) (*net.UnixListener, error) {
	raw, err := l.SyscallConn()
	if err == nil {
		err = passCredentials(raw)
	}
	if a := l.Addr(); err == nil && (a.Network() != "unixpacket" || a.String() != path) {
		err = fmt.Errorf("systemd passes a socket of type %s at %s, but programs_socket is %s; set ListenSequentialPacket= in the socket unit to that path", a.Network(), a, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func passCredentials(raw syscall.RawConn) error {
	var optErr error
	err := raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	})
	return errors.Join(err, optErr)
}

// receive receives one message and the descriptors with it, which the caller closes even after
// an error. The sender must be the peer.
func receive(conn *net.UnixConn, peer *process.Peer, into any) ([]*os.File, error) {
	b := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(3*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	var sender *unix.Ucred
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "passed"))
			}
		} else if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			sender = cred
		}
	}
	switch {
	case n == 0:
		return files, net.ErrClosed
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0, len(files) > 3:
		return files, fmt.Errorf("the request exceeds %d bytes or 3 descriptors", maxMessage)
	case sender == nil || int(sender.Pid) != peer.PID():
		return files, errors.New("the request is not from the process that connected")
	}
	if err := json.Unmarshal(b[:n], into); err != nil {
		return files, fmt.Errorf("the request is malformed: %w", err)
	}
	return files, nil
}

func send(conn *net.UnixConn, message any) {
	b, err := json.Marshal(message)
	if err != nil {
		return // of strings and numbers, which there is always a way to write
	}
	conn.SetWriteDeadline(time.Now().Add(requestTimeout))
	conn.Write(b) // the caller may have gone
}
