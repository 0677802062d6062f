package sandbox

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// auditArch is by which the kernel calls an architecture whose system calls are filtered here.
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// Offsets into struct seccomp_data (seccomp(2)); of an argument, its lower half.
const (
	nrOffset   = 0
	archOffset = 4
	argsOffset = 16
)

func argument(n uint32) op { return load(argsOffset + 8*n) }

// x32 is the bit in the numbers of the x32 calls of amd64, which has its own names for everything.
const x32 = 0x40000000

// absent are calls that programs do without, where a kernel has none of them. io_uring makes
// sockets and connects them without a system call. The flags of clone3 are behind a pointer.
var absent = []uint32{unix.SYS_CLONE3, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER}

// forbidden are calls with which a process could leave its namespaces, undo what is hidden,
// or use keys of the user's session; request_key has the host resolve names.
var forbidden = []uint32{
	unix.SYS_SETNS, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
	unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_OPEN_BY_HANDLE_AT,
}

// systemCalls is the filter. What refused returns is for sockets of other families.
func systemCalls(arch string, refused uint32) ([]unix.SockFilter, error) {
	number, ok := auditArch[arch]
	if !ok {
		return nil, fmt.Errorf("there is no filter of system calls for %s", arch)
	}
	fails := func(err unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(err) }
	p := []op{load(archOffset), equal(number, "", "absent"), load(nrOffset)}
	if arch == "amd64" {
		p = append(p, jumpIf(unix.BPF_JGE, x32, "absent", ""))
	}
	for _, nr := range absent {
		p = append(p, equal(nr, "absent", ""))
	}
	for _, nr := range forbidden {
		p = append(p, equal(nr, "forbidden", ""))
	}
	p = append(p,
		equal(unix.SYS_SOCKET, "socket", ""),
		equal(unix.SYS_SOCKETPAIR, "pair", ""),
		equal(unix.SYS_CLONE, "clone", ""),
		equal(unix.SYS_UNSHARE, "clone", ""),
		equal(unix.SYS_IOCTL, "ioctl", ""),
		equal(unix.SYS_SECCOMP, "seccomp", "allowed"),

		argument(0).at("socket"),
		equal(unix.AF_INET, "allowed", ""),
		equal(unix.AF_INET6, "allowed", ""),
		equal(unix.AF_NETLINK, "", "refused"),
		argument(2),
		equal(unix.NETLINK_ROUTE, "allowed", ""),
		equal(unix.NETLINK_SOCK_DIAG, "allowed", "refused"),

		// One end of a pair of datagram sockets can be connected again, to any path.
		argument(0).at("pair"),
		equal(unix.AF_UNIX, "", "refused"),
		argument(1),
		and(0xf), // the type without SOCK_CLOEXEC and SOCK_NONBLOCK
		equal(unix.SOCK_STREAM, "allowed", ""),
		equal(unix.SOCK_SEQPACKET, "allowed", "refused"),

		// In a user namespace of its own a process has all privileges.
		argument(0).at("clone"),
		jumpIf(unix.BPF_JSET, unix.CLONE_NEWUSER, "forbidden", "allowed"),

		// Either types into the terminal, for the shell outside to run.
		argument(1).at("ioctl"),
		equal(unix.TIOCSTI, "forbidden", ""),
		equal(unix.TIOCLINUX, "forbidden", "allowed"),

		// A later filter of the command's own, which its own listener answers with "go on",
		// would stand above the notifications of this one.
		argument(0).at("seccomp"),
		equal(unix.SECCOMP_SET_MODE_FILTER, "", "allowed"),
		argument(1),
		jumpIf(unix.BPF_JSET, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, "busy", "allowed"),

		ret(unix.SECCOMP_RET_ALLOW).at("allowed"),
		ret(refused).at("refused"),
		ret(fails(unix.EPERM)).at("forbidden"),
		ret(fails(unix.ENOSYS)).at("absent"),
		ret(fails(unix.EBUSY)).at("busy"),
	)
	return assemble(p)
}

// filterSystemCalls filters those of this thread from now on. It returns a descriptor by
// which refused sockets can be answered, or -1 where the kernel has none (before Linux 5.0)
// or somebody outside of vouch has it already: then they are refused all the same.
func filterSystemCalls() (notify int, err error) {
	notify, err = install(unix.SECCOMP_RET_USER_NOTIF, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBUSY) {
		_, err = install(unix.SECCOMP_RET_ERRNO|uint32(unix.EAFNOSUPPORT), 0)
		notify = -1
	}
	if err != nil {
		return -1, fmt.Errorf("filtering system calls: %w", err)
	}
	return notify, nil
}

func install(refused uint32, flags uintptr) (int, error) {
	program, err := systemCalls(runtime.GOARCH, refused)
	if err != nil {
		return -1, err
	}
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&p)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
