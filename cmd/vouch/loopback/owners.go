package loopback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

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
	uid, inode, err := f.otherEnd(c)
	if err != nil {
		return 0, nil, err
	}
	pids, err = f.owners.of(inode)
	return uid, pids, err
}

// User returns the user of the socket at a connection's other end.
func (f *Finder) User(c net.Conn) (uid uint32, err error) {
	uid, _, err = f.otherEnd(c)
	return uid, err
}

// otherEnd returns the user and the inode of the socket at a connection's other end.
func (f *Finder) otherEnd(c net.Conn) (uid, inode uint32, err error) {
	here, err1 := netip.ParseAddrPort(c.LocalAddr().String())
	there, err2 := netip.ParseAddrPort(c.RemoteAddr().String())
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, err
	}
	return f.socket(there, here)
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
		st, ok := statOf(pid)
		if !ok || st.parent <= 1 {
			return false
		}
		if st.parent == self {
			return true
		}
		pid = st.parent
	}
	return false
}

type stat struct {
	parent int
	start  uint64 // in ticks since boot
}

// statOf reads the fourth and the 22nd field of a process's stat (proc_pid_stat(5)).
func statOf(pid int) (st stat, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return st, false
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return st, false
	}
	var err1, err2 error
	st.parent, err1 = strconv.Atoi(fields[1])
	st.start, err2 = strconv.ParseUint(fields[19], 10, 64)
	return st, errors.Join(err1, err2) == nil
}
