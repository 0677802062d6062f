package file

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// A Tree is a directory with everything below it.
type Tree struct {
	SHA256  string              // of the manifest, hexadecimal
	changed unix.StatxTimestamp // latest ctime of all
}

// UnchangedSince returns an error if anything in the tree was changed at the given
// time or later.
func (t Tree) UnchangedSince(since time.Time) error { return unchangedSince(t.changed, since) }

// HashTree returns the manifest of a directory and its SHA-256 in hexadecimal, which
// is what the selector script:tree_sha256 holds: one line for each entry below the
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
	w := treeWalk{ctx: ctx, hasher: NewHasher(0, 0, 0), root: real, by: func(os.FileInfo) error { return nil }}
	if err := w.walk(); err != nil {
		return nil, "", err
	}
	if manifest, err = w.manifest(); err != nil {
		return nil, "", err
	}
	return manifest, hexSHA256(manifest), nil
}

func hexSHA256(b []byte) string {
	digest := sha256.Sum256(b)
	return hex.EncodeToString(digest[:])
}

const maxTrees = 256 // digests that are kept

// Tree returns the digest of a tree, all of which must pass by; person is whom it
// is hashed for. Each entry is looked at each time; files are read again only where
// one has changed.
func (h *Hasher) Tree(ctx context.Context, person uint32, root string, by Writer) (Tree, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, treeTimeout, fmt.Errorf("hashing tree %s took longer than %v", root, treeTimeout))
	defer cancel()
	w := treeWalk{ctx: ctx, hasher: h, person: person, root: root, by: by}
	if err := w.walk(); err != nil {
		return Tree{}, err
	}
	t, state := Tree{changed: w.changed}, w.state()
	h.mu.Lock()
	t.SHA256 = h.trees[state]
	h.mu.Unlock()
	if t.SHA256 != "" {
		return t, nil
	}
	manifest, err := w.manifest()
	if err != nil {
		return Tree{}, err
	}
	t.SHA256 = hexSHA256(manifest)
	if settled(t.changed, time.Now()) {
		h.keepTree(state, t.SHA256)
	}
	return t, nil
}

func (h *Hasher) keepTree(state [32]byte, sum string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.trees == nil || len(h.trees) >= maxTrees {
		h.trees = make(map[[32]byte]string)
	}
	h.trees[state] = sum
}

// A treeWalk collects the entries of a tree.
type treeWalk struct {
	ctx    context.Context
	hasher *Hasher
	person uint32 // for whom files are hashed
	root   string
	by     Writer

	entries []treeEntry
	changed unix.StatxTimestamp
	mount   uint64 // the tree is in
}

type treeEntry struct {
	path   string // below the root
	mode   os.FileMode
	id     ID
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
func (w *treeWalk) enter(path string, info os.FileInfo) (ID, error) {
	if err := w.by(info); err != nil {
		return ID{}, fmt.Errorf("%s %w", path, err)
	}
	st, err := statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return ID{}, err
	}
	if st.Ino != info.Sys().(*syscall.Stat_t).Ino {
		return ID{}, fmt.Errorf("%s changes while it is read", path)
	}
	// Not the device: on overlayfs each file may have another.
	if len(w.entries) == 0 {
		w.mount = st.Mnt_id
	}
	if st.Mask&unix.STATX_MNT_ID == 0 || st.Mnt_id != w.mount {
		return ID{}, fmt.Errorf("%s is a mount point within the tree", path)
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
			sum, err := w.hasher.sum(w.ctx, w.person, e.id, opening(filepath.Join(w.root, e.path)))
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

// Path returns the identity and the SHA-256, in hexadecimal, of the regular file at
// a path that holds no symbolic links; person is whom it is hashed for.
func (h *Hasher) Path(ctx context.Context, person uint32, path string) (ID, string, error) {
	st, err := statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return ID{}, "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return ID{}, "", errors.New("not a regular file")
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
