package process

import (
	"context"
	"errors"
	"fmt"
	"strconv"
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
	host         uint64              // file system of the host's that it is on, 0 where that is not asked
}

// program identifies the file that the process runs, which need not be at its
// path any more, nor at any.
func (d procDir) program() (fileID, error) {
	var st unix.Statx_t
	// A server of FUSE is not asked: it may not answer.
	err := statx(int(d), "exe", unix.AT_STATX_DONT_SYNC, &st)
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

// A pinned file is open for nothing but looking at it (O_PATH): no file system is
// asked anything, and this one stays mounted.
type pinned struct {
	fd    int
	id    fileID
	mount uint64 // ID, in the mount namespace of the process
}

// pinProgram pins the file that the process runs.
func (d procDir) pinProgram() (pinned, error) {
	fd, err := unix.Openat(int(d), "exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return pinned{}, err
	}
	var st unix.Statx_t
	err = statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, &st)
	if err == nil && st.Mask&unix.STATX_MNT_ID == 0 {
		err = errors.New("the kernel does not tell which mount it is on (Linux 5.8 does)")
	}
	if err != nil {
		unix.Close(fd)
		return pinned{}, err
	}
	return pinned{fd, identify(&st), st.Mnt_id}, nil
}

// dup pins the file once more.
func (f pinned) dup() (pinned, error) {
	fd, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
	return pinned{fd, f.id, f.mount}, err
}

func (f pinned) close() { unix.Close(f.fd) }

// open opens the very file for reading.
func (f pinned) open() (int, error) {
	return unix.Open("/proc/self/fd/"+strconv.Itoa(f.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

// A running program is one that a process does run, as far as the kernel tells.
type running struct {
	onHost    bool   // its file is on a file system of the host's
	sha256    string // of the file, hexadecimal
	verity    string // algorithm:digest, "" for none
	verityErr error
}

// program establishes that the process runs the file that it shows, that no user
// decides what the file shows, and its digests. Nothing is kept of that but the
// digest of a file of the host's.
func (a *Attester) program(ctx context.Context, dir procDir, buf *buffer, o observation, ns userNS, path string) (r running, err error) {
	if err := ns.mayHaveSetProgram(o.status.permitted); err != nil {
		return r, err
	}
	if now := (start{o.image, o.program}); !a.starts.has(now) {
		if err := dir.runsItsProgram(o.image, o.program, path); err != nil {
			return r, err
		}
		a.starts.add(now)
	}
	file, err := dir.pinProgram()
	if err != nil {
		return r, err
	}
	defer file.close()
	if file.id != o.program {
		return r, ErrChanged
	}
	host, err := a.hostDevice(file.mount, func() (*mount, error) { return dir.mountOf(file.mount) })
	if err != nil {
		return r, err
	}
	r.onHost = true
	if o.program.verity {
		r.verity, r.verityErr = file.verity()
	}
	of := o.program
	of.host = host
	r.sha256, err = a.hashes.pinned(ctx, a.person(o.status.uids[0]), of, file)
	return r, err
}

// onHost returns an error unless the path, which holds no symbolic links, leads
// to a file or directory on a file system of the host's, as the daemon sees it.
func (a *Attester) onHost(path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, &st); err != nil {
		return err
	}
	_, err = a.hostDevice(st.Mnt_id, func() (*mount, error) {
		err := a.own.refresh()
		return a.own.withID(st.Mnt_id), err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
