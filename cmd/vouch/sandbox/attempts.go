package sandbox

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// An Attempt is one to reach what the command does not reach.
type Attempt struct {
	Kind   string // "tcp", "udp", "icmp", "dns", "socket" or "other"
	Target string // an address, with its port where it has one; the name of an address family; or what is left of a refused name
	PID    int    // of the host; 0 where it is not known
	Count  int    // how many there were of this kind, target and process since the last report
}

// Bounds of what is reported.
const (
	attemptsQueued = 64
	attemptsASec   = 20
	attemptsKnown  = 1024            // kinds, targets and processes that are told apart
	sameAgain      = 1 * time.Second // how often the same is reported
	relayed1       = uint16(443)     // ports that the relay serves and reports itself
	relayed2       = uint16(80)
)

// attempts reports what was attempted, within bounds.
type attempts struct {
	out     chan Attempt
	leftOut atomic.Uint64

	mu     sync.Mutex // guards the fields below
	seen   map[Attempt]*seen
	left   float64 // reports that may be made now
	filled time.Time
	closed bool
}

// seen is when an attempt was reported, and how many of the same have not been since.
type seen struct {
	at    time.Time
	since int
}

func newAttempts() *attempts {
	return &attempts{out: make(chan Attempt, attemptsQueued), seen: make(map[Attempt]*seen), left: attemptsASec, filled: time.Now()}
}

// add reports an attempt, unless the same was reported within a second or there are too many.
func (a *attempts) add(one Attempt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	now := time.Now()
	count := one.Count
	one.Count = 0
	s := a.seen[one]
	if s != nil && now.Sub(s.at) < sameAgain {
		s.since += count
		a.leftOut.Add(uint64(count))
		return
	}
	a.left = min(attemptsASec, a.left+attemptsASec*now.Sub(a.filled).Seconds())
	a.filled = now
	if a.left < 1 || len(a.out) == cap(a.out) {
		a.leftOut.Add(uint64(count))
		return
	}
	a.left--
	if s == nil {
		a.forget(now)
		s = &seen{}
		a.seen[one] = s
	}
	a.leftOut.Add(-uint64(s.since)) // reported now
	one.Count = count + s.since
	s.at, s.since = now, 0
	a.out <- one // add alone sends, and there is room
}

// close ends the reports.
func (a *attempts) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	close(a.out)
}

// forget makes room for another attempt to be known.
func (a *attempts) forget(now time.Time) {
	if len(a.seen) < attemptsKnown {
		return
	}
	for key, s := range a.seen {
		if now.Sub(s.at) >= sameAgain {
			delete(a.seen, key)
		}
	}
	if len(a.seen) >= attemptsKnown {
		clear(a.seen)
	}
}

// packets reports what a packet socket of [openPackets] sees, until its reading has a deadline:
// then what it has seen already.
func (a *attempts) packets(f *os.File) {
	b := make([]byte, packetLen)
	see := func(n int) {
		if one, ok := packetAttempt(b[:n]); ok {
			a.add(one)
		}
	}
	for {
		n, err := f.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return
		}
		see(n)
	}
	c, err := f.SyscallConn()
	if err != nil {
		return
	}
	c.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), b) // does not block
			if err != nil || n == 0 {
				return
			}
			see(n)
		}
	})
}

// packetAttempt returns what a packet attempts. Those to ports that are listened on are not
// attempts: who accepts there says what becomes of them.
func packetAttempt(b []byte) (Attempt, bool) {
	if len(b) < 20 {
		return Attempt{}, false
	}
	var to netip.Addr
	var protocol byte
	var rest []byte
	switch b[0] >> 4 {
	case 4:
		to, protocol = netip.AddrFrom4([4]byte(b[ip4To:])), b[ip4Protocol]
		rest = b[min(len(b), 4*int(b[0]&0xf)):]
	case 6:
		if len(b) < ip6Len {
			return Attempt{}, false
		}
		to, protocol, rest = netip.AddrFrom16([16]byte(b[ip6To:])), b[ip6Next], b[ip6Len:]
	default:
		return Attempt{}, false
	}
	one := Attempt{Target: to.String(), Count: 1}
	switch protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		if len(rest) < 4 {
			return Attempt{}, false
		}
		one.Kind = "udp"
		port := binary.BigEndian.Uint16(rest[2:])
		if protocol == unix.IPPROTO_TCP {
			one.Kind = "tcp"
			if port == relayed1 || port == relayed2 {
				return Attempt{}, false
			}
		}
		one.Target = netip.AddrPortFrom(to, port).String()
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		one.Kind = "icmp"
	default:
		one.Kind, one.Target = "other", "protocol "+strconv.Itoa(int(protocol))+" to "+one.Target
	}
	return one, true
}
