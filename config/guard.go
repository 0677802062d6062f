package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxLinks bounds the symbolic links on one way, as Linux does
// (path_resolution(7)).
const maxLinks = 40

// guarded returns an error if any user other than root and the process's own could
// change what path, a directory or a file, leads to: anyone who can edit the
// configuration can grant themselves identities. Each directory on the way, through
// symbolic links, must belong to one of the two and not be writable by group or
// others. The sticky bit, as on /tmp, is enough on the way, since others cannot rename
// files there that are not theirs, but not on path itself. A missing file or
// directory is not an error.
func guarded(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	var last fs.FileInfo
	end, err := walk(abs, func(dir, name string) (fs.FileInfo, error) {
		at := filepath.Join(dir, name)
		info, err := os.Lstat(at)
		if err != nil {
			return nil, err
		}
		last = info
		return info, guardedStep(at, info)
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case last == nil: // the root directory
		return nil
	}
	return writableByOthers(end, last)
}

func guardedStep(at string, info fs.FileInfo) error {
	if info.IsDir() && info.Mode()&fs.ModeSticky != 0 || info.Mode()&fs.ModeSymlink != 0 {
		return ownedByOther(at, info)
	}
	return writableByOthers(at, info)
}

func ownedByOther(path string, info fs.FileInfo) error {
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return &Error{Pos: Pos{File: path}, Msg: fmt.Sprintf("belongs to user %d, who could grant identities with it; run: chown -h root %s", st.Uid, path)}
	}
	return nil
}

func writableByOthers(path string, info fs.FileInfo) error {
	if err := ownedByOther(path, info); err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return &Error{Pos: Pos{File: path}, Msg: fmt.Sprintf("has mode %04o, which lets other users grant identities; run: chmod go-w %s", info.Mode().Perm(), path)}
	}
	return nil
}

// walk goes from the root to path, an absolute one, as the kernel would. Look is
// called for each name on the way, links' targets included, with the real path of
// the directory it is in, and returns what the name is (as [os.Lstat] does).
// Walk returns the real path of the end, or the first error.
func walk(path string, look func(dir, name string) (fs.FileInfo, error)) (string, error) {
	at, links := "/", 0
	rest := strings.Split(path, "/")
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		info, err := look(at, name)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = filepath.Join(at, name)
			continue
		}
		target, err := os.Readlink(filepath.Join(at, name))
		if err != nil {
			return "", err
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many symbolic links", path)
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}
