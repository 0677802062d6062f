package process

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrPeerGone means that the peer exited before its attestation was complete.
// Nothing learned about it may be used.
var ErrPeerGone = errors.New("the process has exited")

// A Peer is one process, pinned: however its PID is reused, a Peer never means
// another process. Its methods are safe for concurrent use.
type Peer struct {
	pid      int
	uid, gid uint32
	done     chan struct{}

	mu      sync.RWMutex // guards the fields below; held while the pidfd is used
	pidfd   int          // -1 once closed
	watched uint64       // key in exits, 0 while not watched
	start   uint64       // time in ticks since boot, 0 until it was read
}

// startOf returns when the process was started, which is read once. The caller
// sees afterwards whether it lives.
func (p *Peer) startOf(dir procDir, buf *buffer) (uint64, error) {
	p.mu.RLock()
	start := p.start
	p.mu.RUnlock()
	if start != 0 {
		return start, nil
	}
	st, err := dir.stat(buf)
	if err != nil {
		return 0, err
	}
	if err := p.Alive(); err != nil { // else the PID might be another's by now
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.start = st.start
	return st.start, nil
}

// PeerOf pins the process that connected conn: the one that called connect(2),
// even if others hold the socket by now. It returns [ErrPeerGone] if that
// process has been reaped already. The caller closes the Peer.
//
// Linux 6.5 and later name the process by pidfd (SO_PEERPIDFD). Before that,
// the socket knows its PID only, and a PID can be reused between connect(2)
// and PeerOf. A process that was started after the call, or that runs under
// another user than the one that connected, is then refused; what is left is a
// reuse within the moment between the two calls by a program of the same user,
// which cannot answer on the connection (see the package's documentation).
func PeerOf(conn *net.UnixConn) (*Peer, error) {
	before := sinceBoot()
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("identifying the peer of a connection: %w", err)
	}
	var cred *unix.Ucred
	var pidfd int
	var credErr, pidfdErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		pidfd, pidfdErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	})
	if err = errors.Join(err, credErr); err != nil {
		return nil, fmt.Errorf("identifying the peer of a connection: %w", err)
	}
	switch {
	case errors.Is(pidfdErr, unix.ENOPROTOOPT): // before Linux 6.5
		return pinByPID(cred, before)
	case errors.Is(pidfdErr, unix.ESRCH), errors.Is(pidfdErr, unix.EINVAL): // reaped
		return nil, ErrPeerGone
	case pidfdErr != nil:
		return nil, fmt.Errorf("pinning the peer of a connection: %w", pidfdErr)
	}
	return newPeer(pidfd, cred)
}

// pinByPID pins the process that has the PID of cred now, and refuses it where
// it cannot be the one that connected before the given time since boot.
func pinByPID(cred *unix.Ucred, before time.Duration) (*Peer, error) {
	pidfd, err := unix.PidfdOpen(int(cred.Pid), 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrPeerGone
	}
	if err != nil {
		return nil, fmt.Errorf("pinning process %d: %w", cred.Pid, err)
	}
	p, err := newPeer(pidfd, cred)
	if err != nil {
		return nil, err
	}
	if err := p.connectedBefore(before); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// connectedBefore returns an error unless the pinned process was already
// there, as the user that connected, at the given time since boot. Start times
// are counted in ticks, so that a process of the same tick passes.
func (p *Peer) connectedBefore(t time.Duration) error {
	dir, err := openDir(p.pid)
	if err != nil {
		return p.explain("start time", err)
	}
	defer dir.close()
	var b buffer
	st, err := dir.stat(&b)
	if err != nil {
		return p.explain("start time", err)
	}
	status, err := dir.status(&b)
	if err != nil {
		return p.explain("user", err)
	}
	if err := p.Alive(); err != nil {
		return err
	}
	if st.start > ticks(t) {
		return &Error{p.pid, "start time", errors.New("the process started after the connection was made: its PID was reused")}
	}
	if status.uid != p.uid {
		return &Error{p.pid, "user", fmt.Errorf("user %d connected and user %d has its PID: reused, or changed too early for this kernel to tell (Linux 6.5 can)", p.uid, status.uid)}
	}
	return nil
}

// Pin pins the process that has the PID now, for callers who know by other
// means that it is the one they want. Its UID and GID are not known and 0.
func Pin(pid int) (*Peer, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("pinning process %d: no such PID", pid)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrPeerGone
	}
	if err != nil { // EINVAL, ENOENT: a thread, not a process
		return nil, fmt.Errorf("pinning process %d: %w", pid, err)
	}
	return newPeer(pidfd, &unix.Ucred{Pid: int32(pid)})
}

// PinStarted pins the process that has the PID now, if it was started at that
// time ([Peer.StartTime]), for callers who were told by one that has the process
// pinned, and what user connected to it. It returns [ErrPeerGone] if the PID is
// another process's by now.
func PinStarted(pid int, start uint64, uid, gid uint32) (*Peer, error) {
	p, err := Pin(pid)
	if err != nil {
		return nil, err
	}
	p.uid, p.gid = uid, gid
	if now, err := p.StartTime(); err != nil || now != start {
		p.Close()
		return nil, cmp.Or(err, ErrPeerGone)
	}
	return p, nil
}

// newPeer takes over the pidfd, also if it returns an error.
func newPeer(pidfd int, cred *unix.Ucred) (*Peer, error) {
	if cred.Pid <= 0 { // of a PID namespace that is not below the daemon's
		unix.Close(pidfd)
		return nil, errors.New("identifying the peer of a connection: it has no PID in the daemon's PID namespace; run the daemon in the host's")
	}
	return &Peer{
		pid:   int(cred.Pid),
		uid:   cred.Uid,
		gid:   cred.Gid,
		pidfd: pidfd,
		done:  make(chan struct{}),
	}, nil
}

// PID returns the process ID in the daemon's PID namespace.
func (p *Peer) PID() int { return p.pid }

// UID returns the effective user ID at the time of connecting, which may have
// changed since. It is for counting and limiting, not for deciding.
func (p *Peer) UID() uint32 { return p.uid }

// GID returns the effective group ID at the time of connecting.
func (p *Peer) GID() uint32 { return p.gid }

// StartTime returns when the pinned process was started, in ticks since boot,
// as [Attested] has it. It is how a process that was pinned in an earlier run
// of the daemon is known again.
func (p *Peer) StartTime() (uint64, error) {
	dir, err := openDir(p.pid)
	if err != nil {
		return 0, p.explain("start time", err)
	}
	defer dir.close()
	var b buffer
	st, err := dir.stat(&b)
	if err != nil {
		return 0, p.explain("start time", err)
	}
	return st.start, p.Alive()
}

// Alive returns [ErrPeerGone] once the process has exited, reaped or not, and
// after Close.
func (p *Peer) Alive() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.pidfd < 0 {
		return ErrPeerGone
	}
	// Signal 0 would still reach a zombie.
	fds := [1]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds[:], 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("asking whether process %d lives: %w", p.pid, err)
		case n != 0:
			return ErrPeerGone
		default:
			return nil
		}
	}
}

// Done returns a channel that is closed within milliseconds of the process's
// exit. It stays open if the Peer is closed first.
func (p *Peer) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd >= 0 && p.watched == 0 {
		p.watched = exits.watch(p)
	}
	return p.done
}

// Close releases the pin. It may be called more than once.
func (p *Peer) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return nil
	}
	if p.watched != 0 {
		exits.forget(p)
	}
	err := unix.Close(p.pidfd)
	p.pidfd = -1
	return err
}

// explain returns ErrPeerGone if the process has exited, which is then why a
// fact could not be read, and otherwise an *Error about the fact.
func (p *Peer) explain(fact string, err error) error {
	if alive := p.Alive(); alive != nil {
		return alive
	}
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("%w (is /proc mounted with hidepid=, and the daemon without CAP_SYS_PTRACE?)", err)
	}
	return &Error{PID: p.pid, Fact: fact, Err: err}
}

// sinceBoot returns CLOCK_BOOTTIME, which start times of processes are in.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error()) // Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}

// ticks converts to the unit of start times in /proc, USER_HZ, which is 100 on
// every architecture that Go runs on.
func ticks(d time.Duration) uint64 { return uint64(d / (10 * time.Millisecond)) }
