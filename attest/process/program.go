package process

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// A fileID tells files, and states of a file, apart. An owner can set mtime
// and keep the size, but ctime moves with every change and can't be set; the
// birth time tells a file from one that had its inode number before.
type fileID struct {
	dev, ino     uint64
	size         uint64
	mtime, ctime unix.StatxTimestamp
	btime        unix.StatxTimestamp // zero where the file system has none
	verity       bool                // the file has fs-verity: it can't change
}

// program identifies the file that the process runs, which need not be at its
// path any more, nor at any.
func (d procDir) program() (fileID, error) {
	var st unix.Statx_t
	err := statx(int(d), "exe", 0, &st)
	if errors.Is(err, unix.ENOENT) {
		return fileID{}, errors.New("it runs none: a kernel thread, or about to exit")
	}
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return fileID{}, fmt.Errorf("%w (the daemon needs CAP_SYS_PTRACE)", err)
	}
	if err != nil {
		return fileID{}, err
	}
	return identify(&st), nil
}

func statx(dir int, name string, flags int, st *unix.Statx_t) error {
	for {
		err := unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME|unix.STATX_MNT_ID, st)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func identify(st *unix.Statx_t) fileID {
	id := fileID{
		dev:    unix.Mkdev(st.Dev_major, st.Dev_minor),
		ino:    st.Ino,
		size:   st.Size,
		mtime:  st.Mtime,
		ctime:  st.Ctime,
		verity: st.Attributes&st.Attributes_mask&unix.STATX_ATTR_VERITY != 0,
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.btime = st.Btime
	}
	return id
}

// programPath returns the path of the program as the kernel reports it: in the
// mount namespace of the process, which may show any path for it, and with
// " (deleted)" at its end where it was removed.
func (d procDir) programPath() (string, error) {
	var b [4096]byte
	n, err := unix.Readlinkat(int(d), "exe", b[:])
	if err != nil {
		return "", err
	}
	if n == len(b) {
		return "", fmt.Errorf("its path is longer than %d bytes", n-1)
	}
	return string(b[:n]), nil
}

// isAt reports whether the daemon, too, finds that very file at the path. A
// user can show any program at any path in a mount namespace of their own, but
// not in the daemon's.
func isAt(program fileID, path string) bool {
	if !plainPath(path) {
		return false
	}
	var st unix.Statx_t
	err := statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, &st)
	return err == nil && identify(&st) == program
}

// plainPath reports whether the path is absolute, without . and .., and can be
// written in a selector.
func plainPath(path string) bool {
	if !strings.HasPrefix(path, "/") || len(path) > unix.PathMax || strings.ContainsAny(path, "\n\x00") {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "." || part == ".." {
			return false
		}
	}
	return true
}

// openProgram opens the file that the process runs for reading.
func (d procDir) openProgram() (int, error) {
	return unix.Openat(int(d), "exe", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}
