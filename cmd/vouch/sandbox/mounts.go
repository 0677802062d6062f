package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// resolver is what the command's /etc/resolv.conf says.
const resolver = "nameserver 127.0.0.1\n"

// hidden are the directories that the command has for itself, by mode. Sockets of services,
// agents and terminals are in them, and devices.
var hidden = []struct {
	path string
	mode uint32
}{
	{"/run", 0o755}, {"/var/run", 0o755}, {"/tmp", 0o1777}, {"/var/tmp", 0o1777}, {"/dev", 0o755},
}

// bundles are where systems keep the roots that programs trust.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/ssl/ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// nodes are the devices that the command has.
var nodes = []string{"null", "zero", "full", "random", "urandom", "tty"}

// A mounter changes the mounts of this namespace.
type mounter struct {
	hidden []string // resolved paths that something private is mounted on
	kept   []kept
}

// kept is what stays visible below a directory that is hidden.
type kept struct {
	path     string
	fd       int
	readOnly bool
}

// makeMounts hides what the command must not see, and puts in place what it needs. Then it
// changes to the command's directory: the one that this process is in may be hidden.
func makeMounts(r request) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	var m mounter
	for _, h := range hidden {
		path, err := filepath.EvalSymlinks(h.path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		m.hidden = append(m.hidden, path)
	}
	slices.Sort(m.hidden)
	m.hidden = slices.Compact(m.hidden)
	if err := m.keep(r); err != nil {
		return err
	}
	resolv := targetOf("/etc/resolv.conf")
	if err := m.hide(); err != nil {
		return err
	}
	if err := m.put(resolv, []byte(resolver)); err != nil {
		return fmt.Errorf("replacing /etc/resolv.conf: %w", err)
	}
	if r.Bundle != nil {
		if err := m.trust(r.Bundle); err != nil {
			return err
		}
	}
	if r.Store != nil {
		if err := m.put(StorePath, r.Store); err != nil {
			return err
		}
	}
	if err := freshProc(); err != nil {
		return err
	}
	readOnly("/sys")
	if err := os.Chdir(r.Dir); err != nil {
		return fmt.Errorf("changing to the directory of the command, which is hidden in a sandbox: %w", err)
	}
	return nil
}

// keep opens the directories that are to stay visible although they are below a hidden one.
// Below /run and /dev none does. Where writing is limited, the command's directory is
// read-only unless it is among those to be written: for Landlock it is below /tmp.
func (m *mounter) keep(r request) error {
	dirs := slices.Clone(r.Write)
	if !slices.Contains(dirs, r.Dir) {
		dirs = append(dirs, r.Dir)
	}
	for _, dir := range dirs {
		for _, h := range m.hidden {
			if !strings.HasPrefix(dir, h+"/") || h != "/tmp" && h != "/var/tmp" {
				continue
			}
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return &os.PathError{Op: "open", Path: dir, Err: err}
			}
			m.kept = append(m.kept, kept{dir, fd, r.Limited && !slices.Contains(r.Write, dir)})
		}
	}
	slices.SortFunc(m.kept, func(a, b kept) int { return strings.Compare(a.path, b.path) }) // outer ones first
	return nil
}

// hide mounts something private on the hidden directories.
func (m *mounter) hide() error {
	var devices []kept
	for _, name := range nodes {
		path := "/dev/" + name
		if fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
			devices = append(devices, kept{path: path, fd: fd})
		}
	}
	for _, path := range m.hidden {
		mode := uint32(0o755)
		for _, h := range hidden {
			if h.path == path {
				mode = h.mode
			}
		}
		flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
		if path == "/dev" {
			flags = unix.MS_NOSUID
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", flags, fmt.Sprintf("mode=%o", mode)); err != nil {
			return fmt.Errorf("hiding %s: %w", path, err)
		}
	}
	for _, k := range m.kept {
		if err := os.MkdirAll(k.path, 0o755); err != nil {
			return err
		}
		if err := bind(k, unix.MS_REC); err != nil {
			return err
		}
	}
	if !slices.Contains(m.hidden, "/dev") {
		return errors.New("there is no /dev")
	}
	return makeDevices(devices)
}

// bind mounts what was opened before it was hidden.
func bind(k kept, flags uintptr) error {
	defer unix.Close(k.fd)
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(k.fd), k.path, "", unix.MS_BIND|flags, ""); err != nil {
		return fmt.Errorf("keeping %s visible: %w", k.path, err)
	}
	if k.readOnly {
		if err := readOnly(k.path); err != nil {
			return fmt.Errorf("making %s read-only: %w", k.path, err)
		}
	}
	return nil
}

// makeDevices fills /dev. Terminals outside are not in it; the command's own is /dev/tty.
func makeDevices(devices []kept) error {
	for _, d := range devices {
		if err := os.WriteFile(d.path, nil, 0o444); err != nil {
			return err
		}
		if err := bind(d, 0); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(to, "/dev/"+name); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/dev/pts", "/dev/shm"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return fmt.Errorf("mounting /dev/shm: %w", err)
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"); err != nil {
		return fmt.Errorf("mounting /dev/pts: %w", err)
	}
	return nil
}

// targetOf returns what a path leads to in the end, also where nothing is there; "" if that
// cannot be told.
func targetOf(path string) string {
	for range 10 {
		if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			path = filepath.Join(dir, filepath.Base(path))
		}
		to, err := os.Readlink(path)
		if err != nil {
			return path
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return ""
}

// private is where files are made that are mounted elsewhere.
const private = "/run/vouch"

// put has a path hold other content. A file that is not there, and in no private directory,
// stays away.
func (m *mounter) put(path string, content []byte) error {
	if path == "" {
		return errors.New("its links lead nowhere")
	}
	for _, h := range m.hidden {
		if strings.HasPrefix(path, h+"/") {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			return os.WriteFile(path, content, 0o444)
		}
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.MkdirAll(private, 0o755); err != nil {
		return err
	}
	file := filepath.Join(private, filepath.Base(path))
	if err := os.WriteFile(file, content, 0o444); err != nil {
		return err
	}
	return unix.Mount(file, path, "", unix.MS_BIND, "")
}

// trust puts the roots in place of the system's.
func (m *mounter) trust(bundle []byte) error {
	if err := m.put(BundlePath, bundle); err != nil {
		return err
	}
	var done []string
	for _, path := range bundles {
		path = targetOf(path)
		if _, err := os.Stat(path); err != nil || slices.Contains(done, path) {
			continue
		}
		done = append(done, path)
		if err := unix.Mount(BundlePath, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("replacing %s: %w", path, err)
		}
	}
	return nil
}

// procReadOnly are files of /proc by which root changes the machine.
var procReadOnly = []string{"sys", "sysrq-trigger", "irq", "bus", "fs", "acpi"}

// freshProc mounts a /proc of the command's processes. Containers forbid that by masking
// files of theirs; then the old one stays, and Landlock keeps the command from what it has of
// other processes but their names.
func freshProc() error {
	err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err != nil && landlockVersion() == 0 {
		return fmt.Errorf("mounting /proc, which a container's masked one forbids (%w), and the kernel has no Landlock (Linux 5.13), with which it could stay", err)
	}
	for _, name := range procReadOnly {
		path := "/proc/" + name
		if unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, "") != nil {
			continue // it is not there
		}
		if err := readOnly(path); err != nil && os.Geteuid() == 0 {
			return fmt.Errorf("making %s read-only: %w", path, err)
		}
	}
	return nil
}

// readOnly makes a mount read-only, with those below it since Linux 5.12.
func readOnly(path string) error {
	err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if !errors.Is(err, unix.ENOSYS) {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return err
	}
	const keep = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NOATIME | unix.ST_NODIRATIME | unix.ST_RELATIME
	flags := uintptr(st.Flags) & keep // the ST_ flags of these are the MS_ flags, but for one
	if flags&unix.ST_RELATIME != 0 {
		flags = flags&^unix.ST_RELATIME | unix.MS_RELATIME
	}
	return unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|flags, "")
}
