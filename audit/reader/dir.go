package reader

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// errNoFile is what a name in a copy stands for that is no file.
var errNoFile = errors.New("neither a regular file nor a directory: no log has it")

// A Dir is a copy of a log in a directory, as a file system for [Verify] and its
// like. Whoever made the copy may have put anything in it: a FIFO, a device or a
// link is not opened.
type Dir struct{ root *os.Root }

// OpenDir opens the directory. The caller closes it.
func OpenDir(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Dir{root}, nil
}

// Close closes the directory, but no file in it.
func (d *Dir) Close() error { return d.root.Close() }

// Open implements [fs.FS].
func (d *Dir) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	info, err := d.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errNoFile}
	}
	// It may be another by now: such a one is not waited for.
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(info, now) {
		err = &fs.PathError{Op: "open", Path: name, Err: errNoFile}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
