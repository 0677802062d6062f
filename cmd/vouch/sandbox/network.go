package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Names of the descriptors that the first stage passes out.
const (
	fileProxy    = "proxy"
	fileTLS4     = "tls4"
	fileTLS6     = "tls6"
	fileHTTP4    = "http4"
	fileHTTP6    = "http6"
	filePostgres = "postgres"
	fileRedis    = "redis"
	fileDNS      = "dns"
	fileDNSTCP   = "dnstcp"
	fileDiag     = "diag"
	filePackets  = "packets"
	fileNotify   = "notify" // of the last stage
)

// A network is what listens in the namespace.
type network struct {
	names []string
	socks []interface { // a listener, a packet connection
		File() (*os.File, error)
		Close() error
	}
	diag, packets int
}

// makeNetwork brings lo up, has every address end there, and listens.
func makeNetwork() (_ *network, err error) {
	n := &network{diag: -1, packets: -1}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if err := loopbackUp(); err != nil {
		return nil, fmt.Errorf("bringing lo up: %w", err)
	}
	if err := routeHere(unix.AF_INET); err != nil {
		return nil, fmt.Errorf("routing every IPv4 address to lo: %w", err)
	}
	v6 := true
	switch err := routeHere(unix.AF_INET6); {
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		v6 = false // the kernel has no IPv6, or it is disabled: nothing is reached by it either
	case err != nil:
		return nil, fmt.Errorf("routing every IPv6 address to lo: %w", err)
	}
	for _, l := range []struct{ name, network, address string }{
		{fileProxy, "tcp4", "127.0.0.1:0"},
		{fileTLS4, "tcp4", "0.0.0.0:443"}, {fileHTTP4, "tcp4", "0.0.0.0:80"},
		{fileTLS6, "tcp6", "[::]:443"}, {fileHTTP6, "tcp6", "[::]:80"},
		{filePostgres, "tcp4", "0.0.0.0:5432"}, {fileRedis, "tcp4", "0.0.0.0:6379"},
		{fileDNS, "udp4", "127.0.0.1:53"}, {fileDNSTCP, "tcp4", "127.0.0.1:53"},
	} {
		if l.network == "tcp6" && !v6 {
			continue
		}
		if err := n.listen(l.name, l.network, l.address); err != nil {
			return nil, err
		}
	}
	if n.diag, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG); err != nil {
		return nil, fmt.Errorf("opening a sock_diag socket: %w", err)
	}
	if n.packets, err = openPackets(); err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	return n, nil
}

func (n *network) listen(name, network, address string) error {
	if network == "udp4" {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			return err
		}
		n.socks = append(n.socks, c.(*net.UDPConn))
	} else {
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		n.socks = append(n.socks, l.(*net.TCPListener))
	}
	n.names = append(n.names, name)
	return nil
}

// files returns descriptors of all sockets, with their names. They outlive the network's own.
func (n *network) files() (names []string, files []*os.File, err error) {
	for _, s := range n.socks {
		f, err := s.File()
		if err != nil {
			closeAll(files)
			return nil, nil, err
		}
		files = append(files, f)
	}
	for _, fd := range []int{n.diag, n.packets} {
		again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(files)
			return nil, nil, err
		}
		files = append(files, os.NewFile(uintptr(again), "socket"))
	}
	return append(slices.Clone(n.names), fileDiag, filePackets), files, nil
}

func (n *network) close() {
	for _, s := range n.socks {
		s.Close()
	}
	for _, fd := range []int{n.diag, n.packets} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// loopbackIndex is the index of lo in every network namespace (LOOPBACK_IFINDEX).
const loopbackIndex = 1

// routeHere adds what ip route add local default dev lo does (rtnetlink(7)).
func routeHere(family uint8) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	native := binary.NativeEndian
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofRtMsg+unix.SizeofRtAttr+4)
	native.PutUint32(b[0:], uint32(len(b)))
	native.PutUint16(b[4:], unix.RTM_NEWROUTE)
	native.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	m := b[unix.SizeofNlMsghdr:]
	m[0], m[4], m[5], m[6], m[7] = family, unix.RT_TABLE_LOCAL, unix.RTPROT_STATIC, unix.RT_SCOPE_HOST, unix.RTN_LOCAL
	a := m[unix.SizeofRtMsg:]
	native.PutUint16(a[0:], unix.SizeofRtAttr+4)
	native.PutUint16(a[2:], unix.RTA_OIF)
	native.PutUint32(a[4:], loopbackIndex)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || native.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel's answer is not one")
	}
	if code := int32(native.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// initialNetwork is the cookie of the network namespace that the machine starts with.
const initialNetwork = 1

// alone returns an error unless nothing of this network namespace leads out of it.
func alone() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil && cookie == initialNetwork {
		return errors.New("this is the host's network; give the unit PrivateNetwork=yes")
	}
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.Index != loopbackIndex && i.Flags&net.FlagUp != 0 {
			return fmt.Errorf("this network has the interface %s; give the unit PrivateNetwork=yes", i.Name)
		}
	}
	return nil
}
