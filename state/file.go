package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Ownership is who owns a file and may read it.
type Ownership struct {
	Mode     fs.FileMode
	UID, GID int // -1: left as the kernel sets it
}

// Mode is the ownership of a file that stays with the user who writes it.
func Mode(mode fs.FileMode) Ownership { return Ownership{mode, -1, -1} }

// ReplaceFile replaces a file atomically: a reader sees the old contents or the new. Nobody
// else can open the new file before it has its owner and mode. It returns the file it wrote,
// which a crash may undo; see [ReplaceFileDurably].
func ReplaceFile(path string, data []byte, o Ownership) (os.FileInfo, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // no effect once renamed
	_, err = f.Write(data)
	if o.UID >= 0 || o.GID >= 0 {
		err = errors.Join(err, f.Chown(o.UID, o.GID))
	}
	err = errors.Join(err, f.Chmod(o.Mode), f.Sync())
	info, statErr := f.Stat()
	if err = errors.Join(err, statErr, f.Close()); err != nil {
		return nil, err
	}
	return info, os.Rename(f.Name(), path)
}

// ReplaceFileDurably is [ReplaceFile], and returns once the new contents survive a
// crash.
func ReplaceFileDurably(path string, data []byte, o Ownership) error {
	if _, err := ReplaceFile(path, data, o); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
