package file

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// maxLinks bounds the symbolic links that are followed on the way to one file.
const maxLinks = 40

// A Writer is whoever might have written a file.
type Writer func(info os.FileInfo) error

// OnlyRoot accepts what none but root can write to.
func OnlyRoot(info os.FileInfo) error {
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		return fmt.Errorf("belongs to user %d, not to root", uid)
	}
	return notShared(info)
}

// NotBy accepts what a process of the users can't write to. Whether it is in a
// group that may is not looked at: no group may.
func NotBy(uids ...uint32) Writer {
	return func(info os.FileInfo) error {
		if uid := info.Sys().(*syscall.Stat_t).Uid; slices.Contains(uids, uid) {
			return fmt.Errorf("belongs to user %d, which the process runs as and which may rewrite it", uid)
		}
		return notShared(info)
	}
}

// notShared accepts what only its owner can write to. Where there is an access
// control list, the group's permission is the most that the list can grant.
func notShared(info os.FileInfo) error {
	if info.Mode().Type() != os.ModeSymlink && info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("has mode %04o, so that others than its owner may write to it", info.Mode().Perm())
	}
	return nil
}

// Resolve follows the path to a file and returns where it is in the end. Every
// directory and symbolic link on the way, and the file, has to pass by: who can
// write to one of them decides what is found.
func Resolve(path string, by Writer) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("path %s is not absolute", path)
	}
	rest := strings.Split(filepath.Clean(path)[1:], "/")
	at := "/"
	info, err := os.Lstat(at)
	if err != nil {
		return "", err
	}
	if err := by(info); err != nil {
		return "", fmt.Errorf("directory / %w", err)
	}
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at) // at holds no symbolic links
			continue
		}
		next := filepath.Join(at, part)
		if info, err = os.Lstat(next); err != nil {
			return "", err
		}
		if err := by(info); err != nil {
			return "", fmt.Errorf("%s %w", next, err)
		}
		if info.Mode().Type() != os.ModeSymlink {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("path %s leads through more than %d symbolic links", path, maxLinks)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}
