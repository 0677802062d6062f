package writer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A disk is what the log asks of a file system. Names are relative to the
// log's directory.
type disk interface {
	fs.FS
	create(name string) (file, error) // for reading and writing; it must not exist
	open(name string) (file, error)   // for reading and writing; it must exist
	mkdir(dir string) error           // and its parents; existing ones are no error
	rename(from, to string) error
	remove(name string) error
	syncDir(dir string) error
}

// A file is one open file.
type file interface {
	io.ReaderAt
	io.WriterAt
	size() (int64, error)
	truncate(size int64) error
	// sync returns when the contents, and what is needed to read them again,
	// are durable. After an error nothing is known about what was written
	// before, and it must not be tried again on this file.
	sync() error
	Close() error
}

// A directory is the real thing. It holds the lock on the log.
type directory struct {
	root *os.Root
	lock *os.File
}

// ErrInUse means that another process has the log open.
var ErrInUse = errors.New("another process writes this log")

// openDirectory makes the directory where it is missing and locks it.
func openDirectory(path string) (*directory, error) {
	if err := makeDurably(path); err != nil {
		return nil, err
	}
	lock, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &directory{root: root, lock: lock}, nil
}

// makeDurably makes the directory so that it survives a crash.
func makeDurably(path string) error {
	if err := os.Mkdir(path, 0o700); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer parent.Close()
	return parent.Sync()
}

func (d *directory) Close() error { return errors.Join(d.root.Close(), d.lock.Close()) }

// Open implements [fs.FS].
func (d *directory) Open(name string) (fs.File, error) { return d.root.FS().Open(name) }

func (d *directory) create(name string) (file, error) {
	return opened(d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600))
}

func (d *directory) open(name string) (file, error) {
	return opened(d.root.OpenFile(name, os.O_RDWR, 0))
}

func opened(f *os.File, err error) (file, error) {
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d *directory) mkdir(dir string) error       { return d.root.MkdirAll(dir, 0o700) }
func (d *directory) rename(from, to string) error { return d.root.Rename(from, to) }
func (d *directory) remove(name string) error     { return d.root.Remove(name) }
func (d *directory) syncDir(dir string) (err error) {
	f, err := d.root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

type osFile struct{ *os.File }

func (f osFile) truncate(size int64) error { return f.Truncate(size) }

func (f osFile) size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (f osFile) sync() error {
	for {
		// The size is among what fdatasync makes durable, the times are not.
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
