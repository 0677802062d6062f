package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// HashFile returns where the path leads and the SHA-256 of the file there, in
// hexadecimal, if a process of the user can change neither the file nor what
// the path leads to. For root there is no such file.
func HashFile(ctx context.Context, path string, uid uint32) (real, sum string, err error) {
	if uid == 0 {
		return "", "", fmt.Errorf("%s: root can rewrite every file", path)
	}
	if real, err = resolve(path, notBy(uid)); err != nil {
		return "", "", err
	}
	_, sum, err = NewAttester(Options{}).hashes.path(ctx, 0, real)
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", path, err)
	}
	return real, sum, nil
}

// maxLinks bounds the symbolic links that are followed on the way to one file.
const maxLinks = 40

// A writer is whoever might have written a file.
type writer func(info os.FileInfo) error

// onlyRoot accepts what none but root can write to.
func onlyRoot(info os.FileInfo) error {
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		return fmt.Errorf("belongs to user %d, not to root", uid)
	}
	return notShared(info)
}

// notBy accepts what a process of the users can't write to. Whether it is in a
// group that may is not looked at: no group may.
func notBy(uids ...uint32) writer {
	return func(info os.FileInfo) error {
		if uid := info.Sys().(*syscall.Stat_t).Uid; slices.Contains(uids, uid) {
			return fmt.Errorf("belongs to user %d, which the process runs as and which may rewrite it", uid)
		}
		return notShared(info)
	}
}

// harmless are the capabilities (capabilities(7)) that do not help a process
// to change another user's files, or the clock that changes are judged by:
// KILL, NET_*, IPC_LOCK, SYS_NICE, WAKE_ALARM and BLOCK_SUSPEND.
const harmless = 1<<5 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<23 | 1<<35 | 1<<36

// confined returns an error if the process may write to files whoever they
// belong to.
func (s status) confined() error {
	if slices.Contains(s.uids[:], 0) {
		return errors.New("the process runs as root, or may become root, and can rewrite every file; give it a user of its own")
	}
	if more := s.permitted &^ harmless; more != 0 {
		return fmt.Errorf("the process has capabilities (%#x) by which it may rewrite files; take them away", more)
	}
	return nil
}

// notShared accepts what only its owner can write to. Where there is an access
// control list, the group's permission is the most that the list can grant.
func notShared(info os.FileInfo) error {
	if info.Mode().Type() != os.ModeSymlink && info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("has mode %04o, so that others than its owner may write to it", info.Mode().Perm())
	}
	return nil
}

// resolve follows the path to a file and returns where it is in the end. Every
// directory and symbolic link on the way, and the file, has to pass by: who can
// write to one of them decides what is found.
func resolve(path string, by writer) (string, error) {
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

// unchangedSince returns an error if the file was changed, in any way that its
// owner could not hide, at the given time or later. File systems stamp changes
// with a clock that may lag a tick behind.
func unchangedSince(id fileID, t time.Time) error {
	changed := time.Unix(id.ctime.Sec, int64(id.ctime.Nsec))
	if changed.Add(statTick).Before(t) {
		return nil
	}
	return fmt.Errorf("changed at %s, after the process had started at %s: restart it", changed.Format(time.RFC3339Nano), t.Format(time.RFC3339Nano))
}

// statTick is how late the stamp of a change, and how early that of a start of
// a process, may be.
const statTick = 20 * time.Millisecond

// startTime returns when a process that started at the given ticks since boot
// did, by the clock of today.
func startTime(start uint64) time.Time {
	return time.Now().Add(-sinceBoot()).Add(time.Duration(start) * 10 * time.Millisecond)
}
