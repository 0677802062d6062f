package sandbox

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A notification is struct seccomp_notif (seccomp_unotify(2)).
type notification struct {
	id    uint64
	pid   uint32 // as this process sees it
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// A response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

// answer refuses the sockets that the filter asks about, until the command has ended. It
// decides nothing, since a process could change a call's arguments meanwhile: whatever the
// filter asks about is refused.
func answer(listener *os.File, ended <-chan struct{}, report func(Attempt)) {
	defer listener.Close()
	fd := int(listener.Fd())
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	const tick = 500 // milliseconds: kernels before 5.8 do not say that nobody is left
	for {
		n, err := unix.Poll(ready, tick)
		select {
		case <-ended:
			return
		default:
		}
		switch {
		case err == unix.EINTR, err == nil && n == 0:
			continue
		case err != nil, ready[0].Revents&unix.POLLIN == 0:
			return
		}
		var call notification
		if errno := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&call)); errno != 0 {
			continue // the process has been killed
		}
		refusal := response{id: call.id, err: -int32(unix.EAFNOSUPPORT)}
		ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&refusal))
		target := familyName(uint32(call.args[0]))
		if call.nr == unix.SYS_SOCKETPAIR {
			target += " pair"
		}
		report(Attempt{Kind: "socket", Target: target, PID: int(call.pid), Count: 1})
	}
}

func ioctl(fd int, request uint, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
	return errno
}

// families are names of address families that somebody may try.
var families = map[uint32]string{
	unix.AF_UNIX: "AF_UNIX", unix.AF_NETLINK: "AF_NETLINK", unix.AF_PACKET: "AF_PACKET", unix.AF_VSOCK: "AF_VSOCK",
	unix.AF_ALG: "AF_ALG", unix.AF_BLUETOOTH: "AF_BLUETOOTH", unix.AF_CAN: "AF_CAN", unix.AF_TIPC: "AF_TIPC", unix.AF_XDP: "AF_XDP",
	unix.AF_RDS: "AF_RDS", unix.AF_KEY: "AF_KEY", unix.AF_RXRPC: "AF_RXRPC", unix.AF_SMC: "AF_SMC", unix.AF_QIPCRTR: "AF_QIPCRTR",
}

func familyName(n uint32) string {
	if name, ok := families[n]; ok {
		return name
	}
	return fmt.Sprintf("address family %d", n)
}

// openPackets returns a packet socket on lo that tells of what is sent to addresses other
// than of the loopback: first packets of TCP, echo requests, and all others.
func openPackets() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // of no protocol yet
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	program, err := assemble(firstPackets)
	if err != nil {
		return fd, err
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fd, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 256<<10); err != nil {
		return fd, err
	}
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: loopbackIndex})
}

// Offsets into headers (RFC 791, RFC 8200, RFC 9293).
const (
	packetLen   = 96 // of a packet, what is read of it
	ip4Fragment = 6
	ip4Protocol = 9
	ip4To       = 16
	ip6Next     = 6
	ip6To       = 24
	ip6Len      = 40
	tcpFlags    = 13
	tcpSYN      = 0x02
	tcpACK      = 0x10
	echo4       = 8
	echo6       = 128
)

// ofPacket is a load from behind an IPv4 header, whose length is in X.
func ofPacket(offset uint32) op {
	return op{code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, k: offset}
}

// skfType is by which a filter reads a packet's type (SKF_AD_OFF + SKF_AD_PKTTYPE).
const skfType = 0xfffff000 + 4

// firstPackets sees each packet twice: as it leaves, and as it arrives.
var firstPackets = []op{
	loadByte(skfType),
	equal(unix.PACKET_OUTGOING, "", "drop"),
	loadByte(0),
	and(0xf0),
	equal(0x40, "ip4", ""),
	equal(0x60, "ip6", "drop"),

	loadByte(ip4To).at("ip4"),
	equal(127, "drop", ""),
	loadHalf(ip4Fragment),
	jumpIf(unix.BPF_JSET, 0x1fff, "drop", ""), // not the first part
	{code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, k: 0},
	loadByte(ip4Protocol),
	equal(unix.IPPROTO_TCP, "tcp4", ""),
	equal(unix.IPPROTO_ICMP, "", "keep"),
	ofPacket(0),
	equal(echo4, "keep", "drop"),
	ofPacket(tcpFlags).at("tcp4"),
	and(tcpSYN | tcpACK),
	equal(tcpSYN, "keep", "drop"),

	load(ip6To).at("ip6"),
	equal(0, "", "other6"),
	load(ip6To + 4),
	equal(0, "", "other6"),
	load(ip6To + 8),
	equal(0, "", "other6"),
	load(ip6To + 12),
	equal(1, "drop", ""),
	loadByte(ip6Next).at("other6"),
	equal(unix.IPPROTO_TCP, "tcp6", ""),
	equal(unix.IPPROTO_ICMPV6, "", "keep"),
	loadByte(ip6Len),
	equal(echo6, "keep", "drop"),
	loadByte(ip6Len + tcpFlags).at("tcp6"),
	and(tcpSYN | tcpACK),
	equal(tcpSYN, "keep", "drop"),

	ret(packetLen).at("keep"),
	ret(0).at("drop"),
}
