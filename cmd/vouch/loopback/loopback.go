// Package loopback serves a program and what it starts on a loopback port, and nobody
// else on the machine.
//
// A port of 127.0.0.1 is open to every user. For each connection the kernel is asked which
// socket is at its other end (sock_diag(7)) and /proc which processes have that: one at
// least, and all of them descendants of this one. It proves who has the socket when the
// connection is made. A process of the tree may pass it to another, as it may pass on
// whatever it reads.
package loopback

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Relay passes connections on to a Unix socket.
type Relay struct {
	listener *net.TCPListener
	to       string
	report   func(error) // of a connection that is refused
	finder   Finder
	work     sync.WaitGroup
}

// Listen returns a relay to the socket at a path, which serves nobody yet. Processes whose
// parent exits become children of this one from now on, so that they stay in the tree.
func Listen(to string, report func(error)) (*Relay, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("adopting orphans: %w", err)
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	return &Relay{listener: l, to: to, report: report}, nil
}

// URL returns where the relay is called.
func (r *Relay) URL() string { return "http://" + r.listener.Addr().String() }

// maxConns bounds the connections that are open at a time; the rest wait.
const maxConns = 2048

// Serve passes connections on until the context ends.
func (r *Relay) Serve(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { r.listener.Close() })()
	defer r.work.Wait()
	turns := make(chan struct{}, maxConns)
	for ctx.Err() == nil {
		turns <- struct{}{}
		c, err := r.listener.AcceptTCP()
		if err != nil {
			<-turns
			if ctx.Err() == nil {
				r.report(fmt.Errorf("accepting a connection: %w", err))
				time.Sleep(100 * time.Millisecond) // descriptors may come free
			}
			continue
		}
		r.work.Go(func() {
			defer func() { <-turns }()
			defer c.Close()
			if err := r.pass(ctx, c); err != nil {
				r.report(err)
			}
		})
	}
}

// pass passes one connection on.
func (r *Relay) pass(ctx context.Context, c *net.TCPConn) error {
	if err := r.check(c); err != nil {
		return err
	}
	up, err := new(net.Dialer).DialContext(ctx, "unix", r.to)
	if err != nil {
		return err
	}
	defer up.Close()
	defer context.AfterFunc(ctx, func() { c.Close(); up.Close() })()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(up, c) // an error ends the connection, whichever side it is of
		up.(*net.UnixConn).CloseWrite()
	}()
	io.Copy(c, up)
	c.CloseWrite()
	up.Close()
	c.CloseRead()
	<-done
	return nil
}

// check returns an error unless the processes at the other end of a loopback connection
// all descend from this one.
func (r *Relay) check(c *net.TCPConn) error {
	there := c.RemoteAddr()
	uid, owners, err := r.finder.Find(c)
	if err != nil {
		return fmt.Errorf("a connection from %s: %w", there, err)
	}
	if uid != uint32(os.Geteuid()) {
		return fmt.Errorf("a connection from %s is one of user %d", there, uid)
	}
	if len(owners) == 0 {
		return fmt.Errorf("a connection from %s is of no process that can be seen", there)
	}
	for _, pid := range owners {
		if !descends(pid) {
			return fmt.Errorf("a connection from %s is of process %d, which the command has not started", there, pid)
		}
	}
	return nil
}

// A Finder finds who has the other end of a TCP connection on this machine. The zero value
// is ready, and safe for concurrent use.
type Finder struct {
	// Diag is a NETLINK_SOCK_DIAG socket of the network namespace that the connections are in;
	// nil for this process's. The caller closes it.
	Diag *os.File

	asking   sync.Mutex // held while Diag is asked
	sequence uint32     // of the last request to Diag; guarded by asking
	owners   owners
}

// Find returns the user of the socket at a connection's other end, and the processes that
// have it. There may be none: it was closed, or they are another user's.
func (f *Finder) Find(c net.Conn) (uid uint32, pids []int, err error) {
	here, err1 := netip.ParseAddrPort(c.LocalAddr().String())
	there, err2 := netip.ParseAddrPort(c.RemoteAddr().String())
	if err := errors.Join(err1, err2); err != nil {
		return 0, nil, err
	}
	uid, inode, err := f.socket(there, here)
	if err != nil {
		return 0, nil, err
	}
	pids, err = f.owners.of(inode)
	return uid, pids, err
}

// socket returns the user and the inode of the TCP socket from one address to another.
func (f *Finder) socket(from, to netip.AddrPort) (uid, inode uint32, err error) {
	if f.Diag != nil {
		f.asking.Lock()
		defer f.asking.Unlock()
		f.sequence++
		return socketOf(int(f.Diag.Fd()), f.sequence, from, to)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, 0, fmt.Errorf("asking the kernel for a socket: %w", err)
	}
	defer unix.Close(fd)
	return socketOf(fd, 1, from, to)
}

// Sizes and offsets of inet_diag_req_v2 and inet_diag_msg (linux/inet_diag.h).
const (
	diagByFamily   = 20 // SOCK_DIAG_BY_FAMILY
	requestLen     = 56
	messageLen     = 72
	uidOffset      = 64
	inodeOffset    = 68
	netlinkHeader  = 16
	diagTimeoutSec = 5
)

// socketOf asks a netlink socket. The sequence tells the answer from one that came late.
func socketOf(fd int, sequence uint32, from, to netip.AddrPort) (uid, inode uint32, err error) {
	b := make([]byte, netlinkHeader+requestLen)
	native := binary.NativeEndian
	native.PutUint32(b[0:], uint32(len(b)))
	native.PutUint16(b[4:], diagByFamily)
	native.PutUint16(b[6:], unix.NLM_F_REQUEST)
	native.PutUint32(b[8:], sequence)
	req := b[netlinkHeader:]
	a, z := from.Addr().Unmap().WithZone(""), to.Addr().Unmap().WithZone("")
	req[0], req[1] = unix.AF_INET, unix.IPPROTO_TCP
	if a.Is6() {
		req[0] = unix.AF_INET6
	}
	native.PutUint32(req[4:], ^uint32(0)) // in any state
	binary.BigEndian.PutUint16(req[8:], from.Port())
	binary.BigEndian.PutUint16(req[10:], to.Port())
	copy(req[12:28], a.AsSlice())
	copy(req[28:44], z.AsSlice())
	native.PutUint64(req[48:], ^uint64(0)) // without a cookie
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: diagTimeoutSec}),
		unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err != nil {
		return 0, 0, fmt.Errorf("asking the kernel for a socket: %w", err)
	}
	answer := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(fd, answer, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, 0, fmt.Errorf("asking the kernel for a socket: %w", err)
		case n >= netlinkHeader && native.Uint32(answer[8:]) != sequence:
			continue
		case n < netlinkHeader+messageLen || native.Uint16(answer[4:]) != diagByFamily:
			return 0, 0, errors.New("the kernel knows no such socket on this machine")
		}
		m := answer[netlinkHeader:]
		return native.Uint32(m[uidOffset:]), native.Uint32(m[inodeOffset:]), nil
	}
}

// owners finds who has a socket. Connections that come while it looks share the next look,
// which begins after all of them.
type owners struct {
	turn sync.Mutex // held while looking
	mu   sync.Mutex // guards the field below
	next *look      // that has not begun
}

// A look is one through all processes that this user may look at.
type look struct {
	once sync.Once
	pids map[string][]int // by what their descriptors are links to
	err  error
}

// of returns the processes that have a socket.
func (o *owners) of(inode uint32) ([]int, error) {
	want := fmt.Sprintf("socket:[%d]", inode)
	o.mu.Lock()
	l := o.next
	if l == nil {
		l = &look{pids: make(map[string][]int)}
		o.next = l
	}
	l.pids[want] = nil
	o.mu.Unlock()
	l.once.Do(func() {
		o.turn.Lock()
		defer o.turn.Unlock()
		o.mu.Lock()
		o.next = nil // who comes from here on waits for another
		o.mu.Unlock()
		l.err = l.through()
	})
	return l.pids[want], l.err
}

func (l *look) through() error {
	proc, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range proc {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fds, err := os.ReadDir("/proc/" + e.Name() + "/fd")
		if err != nil {
			continue // another user's, or gone
		}
		for _, fd := range fds {
			to, err := os.Readlink("/proc/" + e.Name() + "/fd/" + fd.Name())
			if err != nil {
				continue
			}
			if pids, wanted := l.pids[to]; wanted && !slices.Contains(pids, pid) {
				l.pids[to] = append(pids, pid)
			}
		}
	}
	return nil
}

// maxGenerations bounds how far up a process's ancestors are looked at.
const maxGenerations = 64

// descends reports whether a process is a descendant of this one.
func descends(pid int) bool {
	self := os.Getpid()
	for range maxGenerations {
		parent, ok := parentOf(pid)
		if !ok || parent <= 1 {
			return false
		}
		if parent == self {
			return true
		}
		pid = parent
	}
	return false
}

// parentOf reads the fourth field of a process's stat (proc_pid_stat(5)).
func parentOf(pid int) (int, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 2 {
		return 0, false
	}
	parent, err := strconv.Atoi(fields[1])
	return parent, err == nil
}
