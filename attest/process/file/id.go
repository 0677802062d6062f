package file

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// An ID tells files, and states of a file, apart. An owner can set mtime and keep
// the size, but ctime moves with every change and can't be set; the birth time tells
// a file from one that had its inode number before. IDs are compared with ==.
type ID struct {
	Dev, Ino     uint64
	size         uint64
	mtime, ctime unix.StatxTimestamp
	btime        unix.StatxTimestamp // zero where the file system has none
	verity       bool                // the file has fs-verity: it can't change
	host         uint64              // file system of the host's that it is on, 0 where that is not asked
}

// IDOf returns the identity of the file that name is, below a directory that is
// open; flags are those of statx(2).
func IDOf(dir int, name string, flags int) (ID, error) {
	st, err := statx(dir, name, flags)
	if err != nil {
		return ID{}, err
	}
	return identify(&st), nil
}

// AtPath returns the identity of what is at a path, links not followed.
func AtPath(path string) (ID, error) { return IDOf(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW) }

func statx(dir int, name string, flags int) (st unix.Statx_t, err error) {
	for {
		err = unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME|unix.STATX_MNT_ID, &st)
		if !errors.Is(err, unix.EINTR) {
			return st, err
		}
	}
}

func identify(st *unix.Statx_t) ID {
	id := ID{
		Dev:    unix.Mkdev(st.Dev_major, st.Dev_minor),
		Ino:    st.Ino,
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

// UnchangedSince returns an error if the file was changed, in any way that its
// owner could not hide, at the given time or later. File systems stamp changes
// with a clock that may lag a tick behind.
func (id ID) UnchangedSince(t time.Time) error { return unchangedSince(id.ctime, t) }

func unchangedSince(ctime unix.StatxTimestamp, t time.Time) error {
	changed := time.Unix(ctime.Sec, int64(ctime.Nsec))
	if changed.Add(Tick).Before(t) {
		return nil
	}
	return fmt.Errorf("changed at %s, after the process had started at %s: restart it", changed.Format(time.RFC3339Nano), t.Format(time.RFC3339Nano))
}

// Tick is how late the stamp of a change, and how early that of a start of a
// process, may be.
const Tick = 20 * time.Millisecond

// A Pinned file is open for nothing but looking at it (O_PATH): no file system is
// asked anything, and its own stays mounted.
type Pinned struct {
	ID    ID
	fd    int
	mount uint64 // ID, in the mount namespace of whoever sees the file
}

// Pin pins the file that name is, below a directory that is open; flags are those
// of open(2). The caller closes it.
func Pin(dir int, name string, flags int) (Pinned, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return Pinned{}, err
	}
	st, err := statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC)
	if err == nil && st.Mask&unix.STATX_MNT_ID == 0 {
		err = errors.New("the kernel does not tell which mount it is on (Linux 5.8 does)")
	}
	if err != nil {
		unix.Close(fd)
		return Pinned{}, err
	}
	return Pinned{identify(&st), fd, st.Mnt_id}, nil
}

// Close lets the file go.
func (f Pinned) Close() { unix.Close(f.fd) }

// dup pins the file once more.
func (f Pinned) dup() (Pinned, error) {
	fd, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
	return Pinned{f.ID, fd, f.mount}, err
}

// open opens the very file for reading.
func (f Pinned) open() (int, error) {
	return unix.Open("/proc/self/fd/"+strconv.Itoa(f.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}
