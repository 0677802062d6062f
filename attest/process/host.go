package process

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process/cgroup"
)

// A host is what the Attester knows of the machine, or container, it runs on.
type host struct {
	pidNS, ownUserNS nsID                      // the daemon's
	namespaces       [len(namespaceKinds)]nsID // of PID 1; zero where not known
	hierarchy        cgroup.Hierarchy
	systemd          bool   // systemd is PID 1
	root             string // control group that systemd's slices lie in, "" for the root
}

func thisHost() host {
	var h host
	// Where /proc cannot be read nothing equals the zero value, so that every
	// namespace is a foreign one.
	h.pidNS, _ = namespace(unix.AT_FDCWD, "/proc/self/ns/pid")
	h.ownUserNS, _ = namespace(unix.AT_FDCWD, "/proc/self/ns/user")
	// The daemon may be in a mount namespace of its own, hardened as it is.
	for i, kind := range namespaceKinds {
		h.namespaces[i], _ = namespace(unix.AT_FDCWD, "/proc/1/ns/"+kind)
	}
	h.hierarchy = cgroup.Mounted()
	h.root, h.systemd = systemdRoot(h.hierarchy)
	return h
}

// An nsID identifies a namespace.
type nsID struct{ dev, ino uint64 }

func namespace(dir int, name string) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, 0); err != nil {
		return nsID{}, err
	}
	return nsID{st.Dev, st.Ino}, nil
}

// owns returns an error unless the process's PID namespace, and each up to the
// daemon's own, belongs to the daemon's user namespace. In one that a user has
// made, that user has CAP_SYS_ADMIN and may send messages in the name of every
// process in it; who sent a message would be known no more.
func (h host) owns(dir procDir, ns nsID) error {
	if ns == h.pidNS && ns != (nsID{}) {
		return nil
	}
	fd, err := unix.Openat(int(dir), "ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { unix.Close(fd) }()
	// PID namespaces nest at most 32 deep.
	for range 33 {
		if ns, err = descriptorNS(fd); err != nil {
			return err
		}
		if ns == h.pidNS {
			return nil
		}
		if err := h.ownsNamespace(fd); err != nil {
			return err
		}
		parent, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		if err != nil {
			return fmt.Errorf("it is not in the daemon's PID namespace or one below: %w", err)
		}
		unix.Close(fd)
		fd = parent
	}
	return errors.New("its PID namespace is nested too deeply")
}

func (h host) ownsNamespace(fd int) error {
	owner, err := unix.IoctlRetInt(fd, unix.NS_GET_USERNS)
	if err == nil {
		defer unix.Close(owner)
		var ns nsID
		if ns, err = descriptorNS(owner); err == nil && ns == h.ownUserNS {
			return nil
		}
	}
	if err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	return errors.New("it belongs to another user namespace, such as a rootless container's, where processes can speak in each other's name; run the workload outside, or in a container that root started without user namespaces")
}

// A userNS is what is known of the user namespace of a process.
type userNS struct {
	foreign bool // it is not the daemon's
	byRoot  bool // root has made it: a unit with PrivateUsers=, a container with mapped users
}

// userNS looks at who has made the user namespace of the process.
func (h host) userNS(dir procDir, ns nsID) (userNS, error) {
	if ns == h.ownUserNS && ns != (nsID{}) {
		return userNS{}, nil
	}
	fd, err := unix.Openat(int(dir), "ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return userNS{}, err
	}
	defer unix.Close(fd)
	owner, err := ownerOf(fd)
	return userNS{foreign: true, byRoot: err == nil && owner == 0}, err
}

// ownerOf returns the user that has made a user namespace.
func ownerOf(fd int) (uint32, error) {
	var uid uint32
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.NS_GET_OWNER_UID, uintptr(unsafe.Pointer(&uid))); errno != 0 {
		return 0, errno
	}
	return uid, nil
}

// maySetProgram are the capabilities by which a process sets what it shows as its
// program: SYS_ADMIN, SYS_RESOURCE and CHECKPOINT_RESTORE.
const maySetProgram = sysAdmin | 1<<24 | 1<<40

const sysAdmin = 1 << 21

// mayHaveSetProgram returns an error if the process may have set the link to its
// program. Whoever makes a user namespace has all capabilities in it, and can
// have given them up since.
func (ns userNS) mayHaveSetProgram(permitted uint64) error {
	switch {
	case ns.foreign && !ns.byRoot:
		return errors.New("it is in a user namespace that a user has made, where it can show any file as its program; run it outside")
	case ns.foreign && permitted&maySetProgram != 0:
		return fmt.Errorf("it is in a user namespace of its own with capabilities (%#x) by which it can show any file as its program; take them away", permitted&maySetProgram)
	}
	return nil
}

func descriptorNS(fd int) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nsID{}, err
	}
	return nsID{st.Dev, st.Ino}, nil
}

// systemdRoot reports whether systemd is PID 1 and where its slices are: it
// keeps itself in init.scope below.
func systemdRoot(h cgroup.Hierarchy) (root string, ok bool) {
	if info, err := os.Lstat("/run/systemd/system"); err != nil || !info.IsDir() {
		return "", false
	}
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil || string(comm) != "systemd\n" {
		return "", false
	}
	b, err := os.ReadFile("/proc/1/cgroup")
	if err != nil {
		return "", false
	}
	path, err := cgroup.Parse(b, h)
	if err != nil {
		return "", false
	}
	path, ok = strings.CutSuffix(path, "/init.scope")
	return path, ok
}

// unit returns the system unit, and its slice, that a control group belongs
// to; of one that was removed there is nothing to say.
func (h host) unit(group string) (unit, slice string, ok bool) {
	if !h.systemd || !plainPath(group) || strings.HasSuffix(group, " (deleted)") {
		return "", "", false
	}
	below, ok := strings.CutPrefix(group, h.root+"/")
	if !ok {
		return "", "", false
	}
	return cgroup.Unit(below)
}
