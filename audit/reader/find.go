package reader

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/vouchd/vouchd/audit/internal/format"
)

// maxLogDepth bounds how far below the root of a copy its log is looked for: as
// far as /var/lib/vouchd/log is below that of a machine.
const maxLogDepth = 4

// FindLog returns the log within a copy: the copy itself, or the one directory
// below it that is a log, as in an archive of the state directory.
func FindLog(copied fs.FS) (fs.FS, error) {
	logs, err := FindLogs(copied, 2)
	if err != nil {
		return nil, err
	}
	switch len(logs) {
	case 0:
		return copied, nil // whoever reads it says what is missing
	case 1:
		return fs.Sub(copied, logs[0])
	}
	return nil, fmt.Errorf("%s and %s are both logs; name one", logs[0], logs[1])
}

// FindLogs returns the directories of a copy that are logs, at most so many, in
// the order of their names. A directory that can't be looked into counts as one:
// whoever opens it is told, and none is passed over.
func FindLogs(copied fs.FS, most int) (dirs []string, err error) {
	level := []string{"."}
	for range maxLogDepth + 1 {
		var next []string
		for _, dir := range level {
			var below []string
			found := isLog(copied, dir)
			if !found {
				below, err = subdirectories(copied, dir)
				found = errors.Is(err, fs.ErrPermission) && dir != "."
			}
			switch {
			case found:
				if dirs = append(dirs, dir); len(dirs) == most {
					return dirs, nil
				}
				continue
			case err != nil:
				return nil, err
			case len(next)+len(below) > maxBelow:
				return nil, fmt.Errorf("there are more than %d directories in which a log could be; name it", maxBelow)
			}
			next = append(next, below...)
		}
		level = next
	}
	return dirs, nil
}

func isLog(copied fs.FS, dir string) bool {
	for _, name := range []string{format.WALDir, format.TileDir} {
		if info, err := fs.Stat(copied, path.Join(dir, name)); err == nil && info.IsDir() {
			return true
		}
	}
	return false
}

// maxBelow bounds how many directories are looked into at each depth.
const maxBelow = 10_000

func subdirectories(copied fs.FS, dir string) (names []string, err error) {
	entries, err := fs.ReadDir(copied, dir)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, path.Join(dir, e.Name()))
		}
	}
	return names, err
}
