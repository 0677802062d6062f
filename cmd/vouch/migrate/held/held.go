// Package held opens a file of somebody else's so that nobody but its reader decides which
// file it is: its directory is held open, and no link of another user leads to it. It is
// replaced whole, in that directory, with its owner, mode and access list.
//
// Out of reach: the owner of the directory, who may put what they like in the file's
// place; that is theirs.
package held

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/inventory"
)

// MaxLen bounds a file, in bytes.
const MaxLen = inventory.MaxLen

// A File is one as it was when it was opened. Its directory is held open, so
// that whoever owns a part of the path cannot have another file written.
type File struct {
	Path string // its real one
	name string // in dir
	dir  *os.File
	Stat unix.Stat_t
	Data []byte
}

// Open reads a file that is neither a link nor has other names.
func Open(path string) (*File, error) {
	f, err := Find(path)
	if err != nil {
		return nil, err
	}
	f.Data, f.Stat, err = f.read()
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Find opens the directory of a file, which need not be there.
func Find(path string) (*File, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dir, err := openDir(filepath.Dir(abs))
	if err != nil {
		return nil, err
	}
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		dir.Close()
		return nil, err
	}
	name := filepath.Base(abs)
	return &File{Path: filepath.Join(real, name), name: name, dir: dir}, nil
}

// maxLinks bounds the links that a path leads through, as the kernel does.
const maxLinks = 40

// openDir opens a directory by its parts. A link on the way is followed only if it is
// root's or the caller's own, and in a directory that is theirs: where another user could
// put one, it could lead anywhere.
func openDir(path string) (*os.File, error) {
	at, err := unix.Open("/", unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*os.File, error) {
		unix.Close(at)
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	links := 0
	for rest := strings.Trim(path, "/"); rest != ""; {
		part, after, _ := strings.Cut(rest, "/")
		rest = strings.TrimLeft(after, "/")
		var st unix.Stat_t
		if err := unix.Fstatat(at, part, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fail(err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, err := trustedLink(at, part, &st)
			if err == nil && links >= maxLinks {
				err = unix.ELOOP
			}
			if err != nil {
				return fail(err)
			}
			links++
			if filepath.IsAbs(target) {
				root, err := unix.Open("/", unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_RDONLY, 0)
				if err != nil {
					return fail(err)
				}
				unix.Close(at)
				at = root
			}
			rest = strings.TrimLeft(target+"/"+rest, "/")
			continue
		}
		next, err := unix.Openat(at, part, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0)
		if errors.Is(err, unix.EACCES) && rest != "" { // it may be passed through
			next, err = unix.Openat(at, part, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_PATH, 0)
		}
		if err != nil {
			return fail(err)
		}
		unix.Close(at)
		at = next
	}
	return os.NewFile(uintptr(at), path), nil
}

// trustedLink returns where a link leads.
func trustedLink(dir int, name string, link *unix.Stat_t) (string, error) {
	ours := func(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }
	var in unix.Stat_t
	if err := unix.Fstat(dir, &in); err != nil {
		return "", err
	}
	if !ours(link.Uid) || !ours(in.Uid) || in.Mode&0o022 != 0 && in.Mode&unix.S_ISVTX == 0 {
		return "", fmt.Errorf("%s in it is a link of user %d, who could have it lead anywhere; name the file by its real path", name, link.Uid)
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, target)
	return string(target[:max(n, 0)]), err
}

// Lock keeps others from migrating a file of the directory until the file is closed.
func (f *File) Lock() error {
	if err := unix.Flock(int(f.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("locking the directory of %s: %w; another vouch migrate may be at work there", f.Path, err)
	}
	return nil
}

// Close lets the directory go and wipes what was read.
func (f *File) Close() {
	f.dir.Close()
	clear(f.Data)
}

// read reads what is there now under the file's name.
func (f *File) read() (data []byte, st unix.Stat_t, err error) {
	fd, err := unix.Openat(int(f.dir.Fd()), f.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, st, fmt.Errorf("%s is a symbolic link; name the file it points to", f.Path)
	}
	if err != nil {
		return nil, st, &os.PathError{Op: "open", Path: f.Path, Err: err}
	}
	in := os.NewFile(uintptr(fd), f.Path)
	defer in.Close()
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, st, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, st, fmt.Errorf("%s is not a regular file", f.Path)
	case st.Nlink != 1:
		return nil, st, fmt.Errorf("%s has %d hard links, and the secrets would stay in the others; find and remove them first: find / -xdev -samefile %[1]s", f.Path, st.Nlink)
	}
	data, err = io.ReadAll(io.LimitReader(in, MaxLen+1))
	if err == nil && len(data) > MaxLen {
		err = fmt.Errorf("%s is larger than %d bytes, too large for a file of settings", f.Path, MaxLen)
	}
	return data, st, err
}

// Unchanged returns an error unless the file is the one that was read, with the same in it.
func (f *File) Unchanged() error {
	now, st, err := f.read()
	if err != nil {
		return err
	}
	defer clear(now)
	if st.Dev != f.Stat.Dev || st.Ino != f.Stat.Ino || !bytes.Equal(f.Data, now) {
		return fmt.Errorf("%s changed in the meantime and was left alone; run this again", f.Path)
	}
	return nil
}

// Replace has a file that is locked hold other data, with its owner, mode and access list, if it has
// not changed since it was read. It returns once that survives a crash.
func (f *File) Replace(data []byte) error {
	temp := "." + f.name + ".vouch" // always the same, so that one that a crash has left goes
	dir := int(f.dir.Fd())
	if err := unix.Unlinkat(dir, temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove", Path: filepath.Join(filepath.Dir(f.Path), temp), Err: err}
	}
	fd, err := unix.Openat(dir, temp, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: filepath.Join(filepath.Dir(f.Path), temp), Err: err}
	}
	defer unix.Unlinkat(dir, temp, 0) // no effect once renamed
	out := os.NewFile(uintptr(fd), temp)
	_, err = out.Write(data)
	err = errors.Join(err, out.Chown(int(f.Stat.Uid), int(f.Stat.Gid)), f.copyACL(fd), unix.Fchmod(fd, f.Stat.Mode&0o7777), out.Sync(), out.Close())
	if err == nil {
		err = f.Unchanged()
	}
	if err == nil {
		err = unix.Renameat(dir, temp, dir, f.name)
	}
	if err != nil {
		return fmt.Errorf("replacing %s: %w", f.Path, err)
	}
	return unix.Fsync(dir)
}

// copyACL gives a new file the access list of the old one, if that has one.
func (f *File) copyACL(to int) error {
	const name = "system.posix_acl_access"
	from, err := unix.Openat(int(f.dir.Fd()), f.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	list := make([]byte, 64<<10)
	n, err := unix.Fgetxattr(from, name, list)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Fsetxattr(to, name, list[:n], 0)
}
