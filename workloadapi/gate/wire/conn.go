package wire

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// writeTimeout ends the connection of a client that does not read.
	writeTimeout = 10 * time.Second
	// answerTimeout ends the wait for a client that does not answer.
	answerTimeout = 10 * time.Second
	// maxChallenges bounds the unanswered challenges of one connection.
	maxChallenges = 256
)

// A Peer is the pinned process at the other end. [process.Peer] is one.
type Peer interface {
	PID() int
	Alive() error // nil while it has not exited
}

// A Conn is a connection whose every received byte was sent by one process. It
// buffers nothing but one PING frame. Read is for one goroutine, the other methods
// are for any.
type Conn struct {
	net.Conn // the Unix connection; its own Read and Write must not be used
	raw      syscall.RawConn
	peer     Peer

	// Used by Read alone, which gRPC calls from one goroutine.
	in      inbound
	receive func(fd uintptr) bool
	message message
	oob     [32]byte // exactly one control message with one unix.Ucred

	wmu    sync.Mutex // guards the fields below; held while writing
	out    outbound
	queued []token // challenges that wait for a gap between frames

	amu     sync.Mutex // guards the field below
	waiting []waiter

	close func() error // once
	ended chan struct{}
}

// A message is the result of one recvmsg(2).
type message struct {
	buf   []byte
	n     int
	oobn  int
	flags int
	err   error
}

type waiter struct {
	token    token
	answered chan struct{}
}

// New takes over a connection from a pinned process unless it returns an error. When the
// connection has ended, by [Conn.Close] or because of what was sent, closed is called
// once, and the peer is the caller's again.
func New(u *net.UnixConn, peer Peer, closed func()) (*Conn, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	// Accepted sockets inherit it from the listener; setting it again costs
	// little and fails safely: a message that was sent without it has no sender.
	if err := PassCredentials(raw); err != nil {
		return nil, err
	}
	c := &Conn{Conn: u, raw: raw, peer: peer, in: newInbound(), ended: make(chan struct{})}
	c.receive = c.recvmsg
	c.close = sync.OnceValue(func() error {
		err := u.Close()
		close(c.ended)
		closed()
		return err
	})
	return c, nil
}

// PassCredentials has the kernel name the sender of each message to a socket.
func PassCredentials(raw syscall.RawConn) error {
	var optErr error
	err := raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	})
	if err = errors.Join(err, optErr); err != nil {
		return fmt.Errorf("asking the kernel for the senders of messages: %w", err)
	}
	return nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.close() }

// Ended returns a channel that is closed when the connection has ended.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// HTTP2 reports whether the peer speaks HTTP/2, and can be challenged. It is known once
// a byte has been read.
func (c *Conn) HTTP2() bool { return c.in.framed() }

// Read returns bytes that the pinned process sent, without its answers to
// challenges. A message from any other process, or one that brings file
// descriptors, ends the connection.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if n := c.in.take(p); n > 0 {
			return n, nil
		}
		if missing := c.in.missing(); missing != nil {
			n, err := c.recv(missing)
			if err != nil {
				return 0, err
			}
			c.in.fill(n, c.answered)
			continue
		}
		n, err := c.recv(p)
		if err != nil {
			return 0, err
		}
		if n = c.in.filter(p[:n], c.answered); n > 0 {
			return n, nil
		}
	}
}

// recv receives into p, which is not empty, and checks the sender.
func (c *Conn) recv(p []byte) (int, error) {
	c.message.buf = p
	err := c.raw.Read(c.receive)
	c.message.buf = nil
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, err // nothing was received: a server interrupts a read by it
	}
	if err == nil {
		err = c.message.err
	}
	if err == nil {
		err = c.checkSender()
	}
	if err != nil {
		c.Close()
		return 0, err
	}
	return c.message.n, nil
}

// recvmsg reads one message; the kernel never joins messages of different
// senders into one.
func (c *Conn) recvmsg(fd uintptr) bool {
	m := &c.message
	for {
		m.n, m.oobn, m.flags, _, m.err = unix.Recvmsg(int(fd), m.buf, c.oob[:], unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(m.err, unix.EINTR) {
			return !errors.Is(m.err, unix.EAGAIN)
		}
	}
}

func (c *Conn) checkSender() error {
	m := &c.message
	if m.n == 0 {
		return io.EOF
	}
	if m.flags&unix.MSG_CTRUNC != 0 {
		return fmt.Errorf("process %d sent more than data, such as file descriptors", c.peer.PID())
	}
	h, data, rest, err := unix.ParseOneSocketControlMessage(c.oob[:m.oobn])
	if err != nil || len(rest) != 0 || h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_CREDENTIALS || len(data) < unix.SizeofUcred {
		return fmt.Errorf("a message on the connection of process %d has no sender", c.peer.PID())
	}
	// The user is left aside: the peer may change it, and a process that may
	// claim another PID may claim another user too.
	if pid := int(int32(binary.NativeEndian.Uint32(data))); pid != c.peer.PID() {
		return fmt.Errorf("process %d sent on the connection of process %d", pid, c.peer.PID())
	}
	return nil
}

// answered reports whether t answers a challenge, and ends its wait.
func (c *Conn) answered(t token) bool {
	c.amu.Lock()
	defer c.amu.Unlock()
	i := slices.IndexFunc(c.waiting, func(w waiter) bool { return w.token == t })
	if i < 0 {
		return false // gRPC's own PING
	}
	close(c.waiting[i].answered)
	c.waiting = slices.Delete(c.waiting, i, i+1)
	return true
}

// Write writes frames or parts of frames, and queued challenges in the gaps.
func (c *Conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	written := 0
	for written < len(p) {
		n := c.out.advance(p[written:], len(c.queued) > 0)
		m, err := c.send(p[written : written+n])
		written += m
		if err != nil {
			return written, err
		}
		if err := c.sendQueued(); err != nil {
			return written, err
		}
	}
	return written, nil
}

// sendQueued sends the queued challenges if a frame may be put here. The
// caller holds wmu.
func (c *Conn) sendQueued() error {
	if len(c.queued) == 0 || !c.out.gap() {
		return nil
	}
	for _, t := range c.queued {
		f := pingFrame(t)
		if _, err := c.send(f[:]); err != nil {
			return err
		}
	}
	c.queued = c.queued[:0]
	return nil
}

// send writes b whole or ends the connection, as what would follow half a
// frame means something else. The caller holds wmu.
func (c *Conn) send(b []byte) (int, error) {
	err := c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	n := 0
	if err == nil {
		n, err = c.Conn.Write(b)
	}
	if err != nil {
		c.Close()
	}
	return n, err
}

// ErrAbsent means that the process that connected did not answer a challenge:
// another one holds its socket, or it hangs.
var ErrAbsent = errors.New("the process that connected does not answer on its connection")

// Challenge puts a PING with 8 unpredictable bytes between two HTTP/2 frames
// now. The returned wait blocks until the pinned process, still alive, has
// answered it, and otherwise returns [ErrAbsent], the error of [Peer.Alive], the end of
// the connection or ctx's error. It is to be called exactly once.
//
// The two are apart because the caller can work while the answer travels. What
// the answer proves is that the process is at the connection after the
// challenge was sent: attest first, then challenge, then reply.
func (c *Conn) Challenge() (wait func(ctx context.Context) error, err error) {
	w := waiter{answered: make(chan struct{})}
	rand.Read(w.token[:]) // never fails
	if err := c.expect(w); err != nil {
		return nil, err
	}
	c.wmu.Lock()
	c.queued = append(c.queued, w.token)
	err = c.sendQueued()
	c.wmu.Unlock()
	if err != nil {
		c.forget(w.token)
		return nil, fmt.Errorf("challenging process %d: %w", c.peer.PID(), err)
	}
	return func(ctx context.Context) error { return c.wait(ctx, w) }, nil
}

func (c *Conn) wait(ctx context.Context, w waiter) error {
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	select {
	case <-w.answered:
		// Alive still, so it was this process that had the PID then.
		return c.peer.Alive()
	case <-ctx.Done():
		c.forget(w.token)
		return ctx.Err()
	case <-c.ended:
		return fmt.Errorf("challenging process %d: %w", c.peer.PID(), net.ErrClosed)
	case <-timeout.C:
		c.forget(w.token)
		return ErrAbsent
	}
}

func (c *Conn) expect(w waiter) error {
	c.amu.Lock()
	defer c.amu.Unlock()
	if len(c.waiting) >= maxChallenges {
		return fmt.Errorf("process %d has left %d challenges unanswered", c.peer.PID(), len(c.waiting))
	}
	c.waiting = append(c.waiting, w)
	return nil
}

func (c *Conn) forget(t token) {
	c.amu.Lock()
	defer c.amu.Unlock()
	c.waiting = slices.DeleteFunc(c.waiting, func(w waiter) bool { return w.token == t })
}
