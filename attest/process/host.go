package process

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A host is what the Attester knows of the machine, or container, it runs on.
type host struct {
	pidNS, userNS nsID                      // the daemon's
	namespaces    [len(namespaceKinds)]nsID // of PID 1; zero where not known
	hierarchy     hierarchy
	systemd       bool   // systemd is PID 1
	root          string // control group that systemd's slices lie in, "" for the root
}

func thisHost() host {
	var h host
	// Where /proc cannot be read nothing equals the zero value, so that every
	// namespace is a foreign one.
	h.pidNS, _ = namespace(unix.AT_FDCWD, "/proc/self/ns/pid")
	h.userNS, _ = namespace(unix.AT_FDCWD, "/proc/self/ns/user")
	// The daemon may be in a mount namespace of its own, hardened as it is.
	for i, kind := range namespaceKinds {
		h.namespaces[i], _ = namespace(unix.AT_FDCWD, "/proc/1/ns/"+kind)
	}
	h.hierarchy = thisHierarchy()
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
func (h host) owns(dir procDir) error {
	ns, err := namespace(int(dir), "ns/pid")
	if err != nil {
		return err
	}
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
		if ns, err = descriptorNS(owner); err == nil && ns == h.userNS {
			return nil
		}
	}
	if err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	return errors.New("it belongs to another user namespace, such as a rootless container's, where processes can speak in each other's name; run the workload outside, or in a container that root started without user namespaces")
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
func systemdRoot(h hierarchy) (root string, ok bool) {
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
	path, err := parseCgroup(b, h)
	if err != nil {
		return "", false
	}
	path, ok = strings.CutSuffix(path, "/init.scope")
	return path, ok
}

// unit returns the system unit, and its slice, that a control group belongs
// to; of one that was removed there is nothing to say.
func (h host) unit(cgroup string) (unit, slice string, ok bool) {
	if !h.systemd || !plainPath(cgroup) || strings.HasSuffix(cgroup, " (deleted)") {
		return "", "", false
	}
	below, ok := strings.CutPrefix(cgroup, h.root+"/")
	if !ok {
		return "", "", false
	}
	return unitOf(below)
}
