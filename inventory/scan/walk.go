package scan

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/inventory"
)

// Bounds of a tree.
const (
	maxDepth = 200  // directories, each of which is an open file
	atOnce   = 1024 // names of a directory
)

// A dir is a directory that is being gone through.
type dir struct {
	f     *os.File
	path  string
	dev   uint64
	reach reach
	git   bool // it is inside of what git keeps
	depth int
}

// tree goes through a tree, or reads the one file that a path names.
func (r *run) tree(path string) {
	st, err := lstat(path)
	if err != nil {
		r.unread(path, err)
		return
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK { // named by whoever asks, so meant
		resolved, err := filepath.EvalSymlinks(path)
		if err != nil {
			r.unread(path, err)
			return
		}
		path = resolved
		if st, err = lstat(path); err != nil {
			r.unread(path, err)
			return
		}
	}
	above := r.people.reachOf(filepath.Dir(path))
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		parent := &dir{path: filepath.Dir(path), reach: above}
		if parent.f, err = openDir(unix.AT_FDCWD, parent.path, parent.path); err != nil {
			r.unread(path, err)
			return
		}
		defer parent.f.Close()
		r.file(parent, filepath.Base(path))
		return
	}
	r.dir(&dir{path: path, reach: above}, unix.AT_FDCWD, path)
}

func lstat(path string) (st unix.Stat_t, err error) {
	if err = unix.Lstat(path, &st); err != nil {
		err = &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return st, err
}

// openDir opens a directory. Its path is what names in it are looked up by where the file
// system does not say what they are.
func openDir(at int, name, path string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// dir goes through a directory, whose reach is still that of what is above it.
func (r *run) dir(d *dir, at int, name string) {
	if r.ctx.Err() != nil || r.excluded(d.path) || d.depth > 0 && isCache(d.path) {
		return
	}
	if d.depth > maxDepth {
		r.unread(d.path, fmt.Errorf("it is more than %d directories deep", maxDepth))
		return
	}
	f, err := openDir(at, name, d.path)
	if errors.Is(err, unix.ENOENT) && d.depth > 0 || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return // it has changed meanwhile
	}
	if err != nil {
		r.unread(d.path, err)
		return
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		r.unread(d.path, err)
		return
	}
	if d.depth > 0 && uint64(st.Dev) != d.dev && !r.mayEnter(d.path, int(f.Fd())) {
		return
	}
	r.result.Counts.Directories++
	d.f, d.dev, d.reach = f, uint64(st.Dev), d.reach.through(&st)
	r.names(d)
}

// names reads a directory, so many names at a time.
func (r *run) names(d *dir) {
	for r.ctx.Err() == nil {
		entries, err := d.f.ReadDir(atOnce)
		for _, e := range entries {
			if r.ctx.Err() != nil {
				return
			}
			switch name := e.Name(); {
			case e.IsDir():
				r.below(d, name)
			case e.Type().IsRegular():
				r.result.Counts.Files++
				r.Files.Add(1)
				r.file(d, name)
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ENOENT) { // it was removed
				r.unread(d.path, err)
			}
			break
		}
	}
}

// storeOfGit are directories in which git has objects and their names.
var storeOfGit = []string{"objects", "refs", "logs", "lfs", "hooks", "info", "annex"}

func (r *run) below(d *dir, name string) {
	git := d.git || name == ".git"
	if name == "objects" && isRepository(d) {
		git, d.git = true, true // a bare one by any name
		if len(r.repos) < maxRepos {
			r.repos = append(r.repos, d.path)
		}
	}
	if git && slices.Contains(storeOfGit, name) {
		return
	}
	r.dir(&dir{path: filepath.Join(d.path, name), dev: d.dev, reach: d.reach, git: git, depth: d.depth + 1}, int(d.f.Fd()), name)
}

// isRepository reports whether a directory that has objects is one of git's.
func isRepository(d *dir) bool {
	for _, name := range []string{"HEAD", "refs"} {
		if unix.Faccessat(int(d.f.Fd()), name, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) != nil {
			return false
		}
	}
	return true
}

// caches are where package managers keep copies of others' projects.
var caches = []string{"/go/pkg/mod", "/.cargo/registry", "/.cargo/git", "/.rustup/toolchains", "/.npm/_cacache", "/.m2/repository", "/.gradle/caches"}

func isCache(path string) bool {
	return slices.ContainsFunc(caches, func(c string) bool { return strings.HasSuffix(path, c) })
}

// notFiles are the file systems whose files are the kernel's, or another machine's.
var notFiles = map[int64]string{
	unix.PROC_SUPER_MAGIC: "", unix.SYSFS_MAGIC: "", unix.CGROUP_SUPER_MAGIC: "", unix.CGROUP2_SUPER_MAGIC: "", unix.DEVPTS_SUPER_MAGIC: "",
	unix.DEBUGFS_MAGIC: "", unix.TRACEFS_MAGIC: "", unix.SECURITYFS_MAGIC: "", unix.BPF_FS_MAGIC: "", unix.PSTOREFS_MAGIC: "",
	unix.EFIVARFS_MAGIC: "", unix.SELINUX_MAGIC: "", unix.BINFMTFS_MAGIC: "", unix.HUGETLBFS_MAGIC: "", 0x19800202: "", /* mqueue */
	unix.NFS_SUPER_MAGIC: "NFS", unix.CIFS_SUPER_MAGIC: "CIFS", unix.SMB2_SUPER_MAGIC: "SMB", unix.FUSE_SUPER_MAGIC: "FUSE",
	unix.AFS_SUPER_MAGIC: "AFS", unix.CEPH_SUPER_MAGIC: "Ceph", unix.AUTOFS_SUPER_MAGIC: "autofs",
}

// mayEnter reports whether the files below a mount point are this machine's.
func (r *run) mayEnter(path string, fd int) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		r.unread(path, err)
		return false
	}
	name, not := notFiles[int64(st.Type)]
	if name != "" {
		r.unread(path, fmt.Errorf("it is on %s; name it to have it scanned", name))
	}
	return !not
}

// excluded reports whether whoever asks wants a path left out.
func (r *run) excluded(path string) bool {
	for _, pattern := range r.Exclude {
		if !strings.Contains(pattern, "/") {
			if ok, _ := filepath.Match(pattern, filepath.Base(path)); ok {
				return true
			}
			continue
		}
		if ok, _ := filepath.Match(pattern, path); ok || isBelow(path, pattern) {
			return true
		}
	}
	return false
}

// file reads a file if a finder knows it.
func (r *run) file(d *dir, name string) {
	path := filepath.Join(d.path, name)
	kind, known := inventory.KindOf(path)
	if d.git && kind != inventory.GitRemote || !known && !inventory.MaySniffName(path) || r.excluded(path) {
		return
	}
	f, st, err := openFile(int(d.f.Fd()), name)
	if err != nil {
		if known {
			r.unread(path, err)
		}
		return
	}
	if f == nil {
		return
	}
	defer f.Close()
	if !known {
		if kind, known = sniff(f, path, st.Size); !known {
			return
		}
	}
	data, err := readAll(f)
	if err != nil {
		r.unread(path, err)
		return
	}
	defer clear(data)
	r.result.Counts.Read++
	found, err := inventory.ReadFile(kind, path, data)
	if err != nil {
		r.unread(path, err)
	}
	if kind == inventory.Unit {
		found = r.unitLinks(path, data, found)
	}
	r.take(found, func(f *inventory.Finding) { r.people.facts(f, st, d.reach) })
}

// openFile opens a regular file; nil if it is none, or is none any more.
func openFile(at int, name string) (*os.File, *unix.Stat_t, error) {
	const how = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := unix.Openat(at, name, how|unix.O_NOATIME, 0) // nobody is to look as if they had read it
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Openat(at, name, how, 0) // another user's
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, nil, err
	}
	return f, &st, nil
}

// sniff tells by how a file begins what kind it is.
func sniff(f *os.File, path string, size int64) (kind string, ok bool) {
	if !inventory.MaySniff(path, size) {
		return "", false
	}
	head := make([]byte, inventory.SniffLen)
	n, _ := f.ReadAt(head, 0) // what cannot be read says nothing
	defer clear(head)
	return inventory.Sniff(head[:n])
}

// readAll reads a file up to the bound. One that is larger, or grows meanwhile, is none
// that a finder knows.
func readAll(f *os.File) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, inventory.MaxLen+1))
	if err != nil {
		return nil, err
	}
	if len(data) > inventory.MaxLen {
		return nil, fmt.Errorf("it is larger than %d bytes", inventory.MaxLen)
	}
	return data, nil
}
