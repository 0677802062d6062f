package sandbox

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probe tries things, each an attack with its argument, and writes what came of it. It does
// not return.
func probe(what []string) {
	runtime.LockOSThread()
	for _, w := range what {
		name, arg, _ := strings.Cut(w, "=")
		try, ok := probes[name]
		if !ok {
			fmt.Printf("%s: unknown\n", w)
			continue
		}
		came := "succeeded"
		if err := try(arg); err != nil {
			came = err.Error()
			if errno, ok := err.(syscall.Errno); ok {
				came = unix.ErrnoName(errno)
			}
		}
		fmt.Printf("%s: %s\n", w, came)
	}
	syscall.Exit(0)
}

// found is what a probe has found, where that is no error.
type found string

func (f found) Error() string { return string(f) }

var probes = map[string]func(arg string) error{
	"tcp": func(to string) error {
		c, err := net.DialTimeout("tcp", to, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		return found("connected")
	},
	"hold": func(to string) error {
		c, err := net.Dial("tcp", to)
		if err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1)) // until the other end closes it
		return err
	},
	"udp": func(to string) error {
		c, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("out")); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = c.Read(make([]byte, 10))
		return err
	},
	"socket": func(arg string) error {
		numbers := strings.Split(arg, ",")
		var n [3]int
		for i, s := range numbers {
			n[i], _ = strconv.Atoi(s)
		}
		_, err := unix.Socket(n[0], n[1], n[2])
		return err
	},
	"pair": func(arg string) error {
		kind, _ := strconv.Atoi(arg)
		_, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
		return err
	},
	"unix": func(path string) error {
		_, err := net.Dial("unix", path)
		return err
	},
	"ring": func(string) error {
		_, _, errno := unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&[256]byte{})), 0)
		return errno
	},
	"int80": func(string) error {
		// mov eax, 20 (getpid); int 0x80; cdqe; ret
		page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err
		}
		copy(page, []byte{0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0x48, 0x98, 0xc3})
		code := &page[0]
		call := &code
		if n := (*(*func() int)(unsafe.Pointer(&call)))(); n < 0 {
			return syscall.Errno(-n)
		}
		return nil
	},
	"x32": func(string) error {
		_, _, errno := unix.RawSyscall(x32|unix.SYS_GETPID, 0, 0, 0)
		if errno == 0 {
			return nil
		}
		return errno
	},
	"kill": func(arg string) error {
		pid, _ := strconv.Atoi(arg)
		return unix.Kill(pid, unix.SIGKILL)
	},
	"ptrace": func(arg string) error {
		pid, _ := strconv.Atoi(arg)
		return unix.PtraceAttach(pid)
	},
	"read": func(path string) error {
		b, err := os.ReadFile(path)
		if err != nil {
			return err.(*os.PathError).Err
		}
		return found(strconv.Quote(string(b[:min(len(b), 200)])))
	},
	"list": func(path string) error {
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return found(strings.Join(names, " "))
	},
	"write": func(path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err.(*os.PathError).Err
		}
		return f.Close()
	},
	"descriptors": func(string) error {
		var open []string
		for fd := range 100 {
			to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			if err != nil || strings.HasPrefix(to, "anon_inode:[event") || strings.HasPrefix(to, "/sys/fs/cgroup/") {
				continue // the runtime's own
			}
			open = append(open, strconv.Itoa(fd))
		}
		return found(strings.Join(open, " "))
	},
	"setns": func(path string) error {
		fd, err := unix.Open(path, unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		return unix.Setns(fd, 0)
	},
	"unshare": func(arg string) error {
		flags, _ := strconv.Atoi(arg)
		return unix.Unshare(flags)
	},
	"clone": func(arg string) error {
		flags, _ := strconv.Atoi(arg)
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(flags)|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		switch {
		case errno != 0:
			return errno
		case pid == 0:
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		return nil
	},
	"clone3": func(string) error {
		_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0)
		return errno
	},
	"umount": func(path string) error { return unix.Unmount(path, unix.MNT_DETACH) },
	"mount":  func(path string) error { return unix.Mount("tmpfs", path, "tmpfs", 0, "") },
	"listener": func(string) error {
		// A filter of its own that has another process decide about every socket.
		program := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF}}
		p := unix.SockFprog{Len: 1, Filter: &program[0]}
		_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&p)))
		return errno
	},
	"keys": func(string) error {
		_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
		return err
	},
	"type": func(string) error {
		return unix.IoctlSetPointerInt(0, unix.TIOCSTI, 'x')
	},
	"interrupt": func(string) error {
		caught := make(chan os.Signal, 1)
		signal.Notify(caught, syscall.SIGINT)
		fmt.Println("ready")
		<-caught
		return found("caught")
	},
	"capabilities": func(string) error {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err
		}
		var lines []string
		for line := range bytes.Lines(b) {
			if s := string(line); strings.HasPrefix(s, "Cap") || strings.HasPrefix(s, "NoNewPrivs") {
				lines = append(lines, strings.Join(strings.Fields(s), ""))
			}
		}
		slices.Sort(lines)
		return found(strings.Join(lines, " "))
	},
}
