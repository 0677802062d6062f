package process

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process/file"
)

// program identifies the file that the process runs, which need not be at its
// path any more, nor at any.
func (d procDir) program() (file.ID, error) {
	// A server of FUSE is not asked: it may not answer.
	id, err := file.IDOf(int(d), "exe", unix.AT_STATX_DONT_SYNC)
	if errors.Is(err, unix.ENOENT) {
		return id, errors.New("it runs none: a kernel thread, or about to exit")
	}
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return id, fmt.Errorf("%w (the daemon needs CAP_SYS_PTRACE)", err)
	}
	return id, err
}

// programPath returns the path of the program as the kernel reports it: in the
// mount namespace of the process, which may show any path for it, and with
// " (deleted)" at its end where it was removed.
func (d procDir) programPath() (string, error) {
	var b [4096]byte
	n, err := unix.Readlinkat(int(d), "exe", b[:])
	if err != nil {
		return "", err
	}
	if n == len(b) {
		return "", fmt.Errorf("its path is longer than %d bytes", n-1)
	}
	return string(b[:n]), nil
}

// isAt reports whether the daemon, too, finds that very file at the path. A
// user can show any program at any path in a mount namespace of their own, but
// not in the daemon's.
func isAt(program file.ID, path string) bool {
	if !plainPath(path) {
		return false
	}
	id, err := file.AtPath(path)
	return err == nil && id == program
}

// plainPath reports whether the path is absolute, without . and .., and can be
// written in a selector.
func plainPath(path string) bool {
	if !strings.HasPrefix(path, "/") || len(path) > unix.PathMax || strings.ContainsAny(path, "\n\x00") {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "." || part == ".." {
			return false
		}
	}
	return true
}

// A running program is one that a process does run, as far as the kernel tells.
type running struct {
	onHost    bool   // its file is on a file system of the host's
	sha256    string // of the file, hexadecimal
	verity    string // algorithm:digest, "" for none
	verityErr error
}

// program establishes that the process runs the file that it shows, that no user
// decides what the file shows, and its digests. Nothing is kept of that but the
// digest of a file of the host's.
func (a *Attester) program(ctx context.Context, dir procDir, buf *buffer, o observation, ns userNS, path string) (r running, err error) {
	if err := ns.mayHaveSetProgram(o.status.permitted); err != nil {
		return r, err
	}
	if now := (start{o.image, o.program}); !a.starts.has(now) {
		if err := dir.runsItsProgram(o.image, o.program, path); err != nil {
			return r, err
		}
		a.starts.add(now)
	}
	pin, err := file.Pin(int(dir), "exe", 0)
	if err != nil {
		return r, err
	}
	defer pin.Close()
	if pin.ID != o.program {
		return r, ErrChanged
	}
	host, err := a.systems.Device(pin, int(dir))
	if err != nil {
		return r, err
	}
	r.onHost = true
	r.verity, r.verityErr = pin.Verity()
	r.sha256, err = a.hasher.Pinned(ctx, a.person(o.status.uids[0]), pin, host)
	return r, err
}
