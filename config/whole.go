package config

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errUnfinished means that a configuration file may be half written: another
// process has it open for writing. It is not read until that process closes it,
// since an entry that still lacks its last selector grants more than the whole
// one.
var errUnfinished = errors.New("is open for writing by another process, and read once that has closed it; to replace a file at once, rename another over it")

// unchangedFor is how long a file must be left alone if the kernel does not say
// whether a process is writing it.
const unchangedFor = 2 * time.Second

// holdWhole returns once nobody has the file open for writing, and prevents it from
// being opened for writing until release: open(2) waits until then.
//
// The kernel grants a read lease only on a file without writers (fcntl(2), F_SETLEASE).
// That requires the file's owner or CAP_LEASE, and a file system that supports leases;
// elsewhere, the file must not have changed for a while.
func holdWhole(f *os.File) (release func(), err error) {
	fd := f.Fd()
	switch _, err = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK); {
	case err == nil:
		return func() { unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK) }, nil
	case errors.Is(err, unix.EAGAIN) && !grantsNoLease(int(fd)):
		return nil, errUnfinished
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	ctime := info.Sys().(*syscall.Stat_t).Ctim
	if age := time.Since(time.Unix(ctime.Unix())); age >= 0 && age < unchangedFor {
		return nil, errUnfinished
	}
	return func() {}, nil
}

// grantsNoLease reports whether the file is on NFS, which answers as if there
// were a writer unless the server delegated the file.
func grantsNoLease(fd int) bool {
	var s unix.Statfs_t
	return unix.Fstatfs(fd, &s) == nil && s.Type == unix.NFS_SUPER_MAGIC
}

// unfinished reports whether a file that paths lead to, directly or in a
// directory, can't be read yet because it is being written.
func unfinished(paths []string) bool {
	for _, path := range paths {
		if isUnfinished(path) {
			return true
		}
		held, err := os.ReadDir(path)
		if err != nil {
			continue
		}
		for _, entry := range held {
			if kind(entry.Name()) == wanted && isUnfinished(filepath.Join(path, entry.Name())) {
				return true
			}
		}
	}
	return false
}

func isUnfinished(path string) bool {
	f, err := openFile(path)
	if err != nil {
		return false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return false
	}
	release, err := holdWhole(f)
	if err == nil {
		release()
	}
	return errors.Is(err, errUnfinished)
}
