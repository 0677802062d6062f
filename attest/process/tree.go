package process

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a tree.
const (
	maxTreeEntries = 200_000
	maxTreeDepth   = 64
	treeTimeout    = 30 * time.Second
)

// A tree is a directory with everything below it.
type tree struct {
	sha256  string              // of the manifest
	changed unix.StatxTimestamp // latest ctime of all
	state   [32]byte            // of the identities of all entries
}

// HashTree returns the manifest of a directory and its SHA-256, which is what
// the selector script:tree_sha256 holds: one line for each entry below the
// directory, in the order of a walk that sorts each directory by name.
//
//	dir "lib"
//	file - 91be… "lib/agent.py"
//	file x 5f2c… "run"
//	link "python" "/usr/bin/python3"
//
// A file's line has an x if anybody may execute it, and its SHA-256. Names are
// quoted as in Go. What a link points to is not looked at; anything but
// directories, regular files and links is an error, as is a mount point.
func HashTree(ctx context.Context, dir string) (manifest []byte, sum string, err error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, "", err
	}
	a := NewAttester(Options{})
	w := treeWalk{ctx: ctx, hashes: a.hashes, root: real, by: func(os.FileInfo) error { return nil }}
	if err := w.walk(); err != nil {
		return nil, "", err
	}
	if manifest, err = w.manifest(); err != nil {
		return nil, "", err
	}
	digest := sha256.Sum256(manifest)
	return manifest, hex.EncodeToString(digest[:]), nil
}

// treeCache keeps the digests of trees by the state of all their entries.
type treeCache struct {
	mu    sync.Mutex // guards trees
	trees map[[32]byte]string
}

const maxTrees = 256

// tree returns the digest of a tree. Each entry is looked at each time; files
// are read again only where one has changed.
func (a *Attester) tree(ctx context.Context, person uint32, root string, by writer) (tree, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, treeTimeout, fmt.Errorf("hashing tree %s took longer than %v", root, treeTimeout))
	defer cancel()
	w := treeWalk{ctx: ctx, hashes: a.hashes, person: person, root: root, by: by}
	if err := w.walk(); err != nil {
		return tree{}, err
	}
	t := tree{changed: w.changed, state: w.state()}
	a.treeCache.mu.Lock()
	t.sha256 = a.treeCache.trees[t.state]
	a.treeCache.mu.Unlock()
	if t.sha256 != "" {
		return t, nil
	}
	manifest, err := w.manifest()
	if err != nil {
		return tree{}, err
	}
	digest := sha256.Sum256(manifest)
	t.sha256 = hex.EncodeToString(digest[:])
	a.treeCache.mu.Lock()
	defer a.treeCache.mu.Unlock()
	if a.treeCache.trees == nil || len(a.treeCache.trees) >= maxTrees {
		a.treeCache.trees = make(map[[32]byte]string)
	}
	if settled(fileID{ctime: t.changed}, time.Now()) {
		a.treeCache.trees[t.state] = t.sha256
	}
	return t, nil
}

// A treeWalk collects the entries of a tree.
type treeWalk struct {
	ctx    context.Context
	hashes *hashes
	person uint32 // for whom files are hashed
	root   string
	by     writer

	entries []treeEntry
	changed unix.StatxTimestamp
	mount   uint64 // the tree is in
}

type treeEntry struct {
	path   string // below the root
	mode   os.FileMode
	id     fileID
	target string // of a link
}

func (w *treeWalk) walk() error { return w.directory("", 0) }

func (w *treeWalk) directory(below string, depth int) error {
	if depth > maxTreeDepth {
		return fmt.Errorf("tree %s is deeper than %d directories", w.root, maxTreeDepth)
	}
	path := filepath.Join(w.root, below)
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", path)
	}
	id, err := w.enter(path, info)
	if err != nil {
		return err
	}
	if depth == 0 {
		w.entries = append(w.entries, treeEntry{path: ".", mode: info.Mode(), id: id})
	}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := w.entry(filepath.Join(below, e.Name()), depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *treeWalk) entry(below string, depth int) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	if len(w.entries) >= maxTreeEntries {
		return fmt.Errorf("tree %s has more than %d entries", w.root, maxTreeEntries)
	}
	path := filepath.Join(w.root, below)
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	id, err := w.enter(path, info)
	if err != nil {
		return err
	}
	e := treeEntry{path: below, mode: info.Mode(), id: id}
	switch info.Mode().Type() {
	case 0:
	case os.ModeSymlink:
		if e.target, err = os.Readlink(path); err != nil {
			return err
		}
	case os.ModeDir:
		w.entries = append(w.entries, e)
		return w.directory(below, depth+1)
	default:
		return fmt.Errorf("%s is neither a file, a directory nor a symbolic link", path)
	}
	w.entries = append(w.entries, e)
	return nil
}

// enter checks who can write to an entry and notes when it changed.
func (w *treeWalk) enter(path string, info os.FileInfo) (fileID, error) {
	if err := w.by(info); err != nil {
		return fileID{}, fmt.Errorf("%s %w", path, err)
	}
	var st unix.Statx_t
	if err := statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, &st); err != nil {
		return fileID{}, err
	}
	if st.Ino != info.Sys().(*syscall.Stat_t).Ino {
		return fileID{}, fmt.Errorf("%s changes while it is read", path)
	}
	// Not the device: on overlayfs each file may have another.
	if len(w.entries) == 0 {
		w.mount = st.Mnt_id
	}
	if st.Mask&unix.STATX_MNT_ID == 0 || st.Mnt_id != w.mount {
		return fileID{}, fmt.Errorf("%s is a mount point within the tree", path)
	}
	id := identify(&st)
	if id.ctime.Sec > w.changed.Sec || id.ctime.Sec == w.changed.Sec && id.ctime.Nsec > w.changed.Nsec {
		w.changed = id.ctime
	}
	return id, nil
}

// state digests everything about the tree that can be known without reading
// its files.
func (w *treeWalk) state() [32]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q\n", w.root)
	for _, e := range w.entries {
		fmt.Fprintf(h, "%q %v %v %q\n", e.path, e.mode, e.id, e.target)
	}
	return [32]byte(h.Sum(nil))
}

// manifest reads the files of the tree.
func (w *treeWalk) manifest() ([]byte, error) {
	var m []byte
	for _, e := range w.entries[1:] {
		switch e.mode.Type() {
		case os.ModeDir:
			m = fmt.Appendf(m, "dir %q\n", e.path)
		case os.ModeSymlink:
			m = fmt.Appendf(m, "link %q %q\n", e.path, e.target)
		default:
			sum, err := w.hashes.sum(w.ctx, w.person, e.id, opening(filepath.Join(w.root, e.path)))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", filepath.Join(w.root, e.path), err)
			}
			mark := "-"
			if e.mode.Perm()&0o111 != 0 {
				mark = "x"
			}
			m = fmt.Appendf(m, "file %s %s %q\n", mark, sum, e.path)
		}
	}
	return m, nil
}

// path hashes the file at a path that holds no symbolic links.
func (h *hashes) path(ctx context.Context, person uint32, path string) (fileID, string, error) {
	var st unix.Statx_t
	if err := statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, &st); err != nil {
		return fileID{}, "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fileID{}, "", errors.New("not a regular file")
	}
	id := identify(&st)
	sum, err := h.sum(ctx, person, id, opening(path))
	return id, sum, err
}

func opening(path string) func() (int, error) {
	return func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	}
}
