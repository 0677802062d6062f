// Package state is the daemon's state directory.
//
// One daemon owns a directory at a time. A file is replaced whole: a new one is written,
// synced and renamed over it, and the directory is synced; after a crash it is the old one or
// the new one. Each file carries its format version and its digest; a damaged one is an error
// that names the file, never an empty start.
//
// A file that grows instead is a sequence of frames ([AppendFrame], [FrameReader]), which
// distinguish a torn write from a whole one. Their owner decides what is in them, and when
// they are durable.
package state

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MaxFileLen bounds a state file, in bytes.
const MaxFileLen = 16 << 20

// ErrInUse means that another daemon holds the directory.
var ErrInUse = errors.New("another vouchd uses this state directory")

// A Dir is an open state directory. Its methods are safe for concurrent use on
// different names.
type Dir struct {
	path string
	dir  *os.File // holds the lock
}

// Open opens the directory, creating it with mode 0700 if it is missing, and takes the lock on
// it, which lasts until Close or the end of the process. It returns [ErrInUse] if another
// process has it, and refuses a directory that others may write to or that belongs to another
// user.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making state directory: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening state directory: %w", err)
	}
	if err := claim(dir); err != nil {
		dir.Close()
		return nil, fmt.Errorf("state directory %s: %w", path, err)
	}
	return &Dir{path: path, dir: dir}, nil
}

func claim(dir *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return errors.New("is not a directory")
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to user %d; give it to the daemon's user with chown", st.Uid)
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("has mode %04o, so others may write to it; use chmod 0700", st.Mode&0o7777)
	}
	err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	}
	return err
}

// Path returns the path of a name inside the directory.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Close releases the lock.
func (d *Dir) Close() error { return d.dir.Close() }

// Load returns the contents of a file that Save wrote with the same version or
// an older one, and that version. The error satisfies [fs.ErrNotExist] if the
// file is missing; a damaged file or one of a newer version is an error that
// says so, and the file stays as it is.
func (d *Dir) Load(name string, version int) (data []byte, savedVersion int, err error) {
	path := d.Path(name)
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxFileLen+1))
	if err != nil {
		return nil, 0, fmt.Errorf("reading %s: %w", path, err)
	}
	data, savedVersion, err = open(b, name)
	if err != nil {
		return nil, 0, fmt.Errorf("%s is damaged (%w); restore it from a backup, or move it away to start without it", path, err)
	}
	if savedVersion > version {
		return nil, 0, fmt.Errorf("%s has format %d and this vouchd knows up to %d; install the newer vouchd again", path, savedVersion, version)
	}
	return data, savedVersion, nil
}

// Save replaces a file durably: when it returns nil, the new contents survive
// a crash; otherwise the old ones are still there.
func (d *Dir) Save(name string, version int, data []byte) error {
	if len(data) > MaxFileLen/2 {
		return fmt.Errorf("writing %s: %d bytes are more than a state file holds", d.Path(name), len(data))
	}
	if err := ReplaceFileDurably(d.Path(name), seal(data, name, version), Mode(0o600)); err != nil {
		return fmt.Errorf("writing %s: %w", d.Path(name), err)
	}
	return nil
}

// Remove deletes a file durably. A missing one is no error.
func (d *Dir) Remove(name string) error {
	err := os.Remove(d.Path(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.dir.Sync()
}

// seal puts the header line before the data. The digest covers name and
// version too: a file copied over another is noticed.
func seal(data []byte, name string, version int) []byte {
	return append(header(data, name, version), data...)
}

func header(data []byte, name string, version int) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", name, version)
	h.Write(data)
	return fmt.Appendf(nil, "vouchd %s %d sha256:%x\n", name, version, h.Sum(nil))
}

func open(b []byte, name string) (data []byte, version int, err error) {
	if len(b) > MaxFileLen {
		return nil, 0, errors.New("too large")
	}
	line, data, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return nil, 0, errors.New("its header line is missing")
	}
	var gotName, digest string
	if _, err := fmt.Sscanf(string(line), "vouchd %s %d %s", &gotName, &version, &digest); err != nil {
		return nil, 0, errors.New("its header line is unreadable")
	}
	if string(line)+"\n" != string(header(data, name, version)) {
		return nil, 0, errors.New("its contents do not match its digest")
	}
	return data, version, nil
}
