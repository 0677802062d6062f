package programs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// checkStreams returns an error unless systemd can hold, and close, what the
// caller passes as standard streams without blocking. PID 1 does that itself:
// a file whose server does not answer, or a socket that lingers, would block the whole
// machine.
func checkStreams(files []*os.File) error {
	if len(files) != 3 {
		return fmt.Errorf("got %d descriptors, want 3", len(files))
	}
	for i, name := range []string{"input", "output", "error"} {
		if err := checkStream(int(files[i].Fd())); err != nil {
			return fmt.Errorf("standard %s %w; use a pipe, as in: vouch run NAME | cat", name, err)
		}
	}
	return nil
}

// localFileSystems answer without a server. Others, such as overlayfs, may depend on a server
// that any user runs (FUSE).
var localFileSystems = map[int64]bool{
	unix.EXT4_SUPER_MAGIC:  true,
	unix.XFS_SUPER_MAGIC:   true,
	unix.BTRFS_SUPER_MAGIC: true,
	unix.F2FS_SUPER_MAGIC:  true,
	unix.TMPFS_MAGIC:       true,
	0x2fc12fc1:             true, // ZFS
}

func checkStream(fd int) error {
	var st unix.Statx_t
	// As the kernel has it, without asking a server.
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return fmt.Errorf("cannot be examined (%w)", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFIFO:
		return nil
	case unix.S_IFSOCK:
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err == nil && domain == unix.AF_UNIX {
			return nil
		}
		return fmt.Errorf("is a network socket")
	case unix.S_IFREG:
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil {
			return fmt.Errorf("cannot be examined (%w)", err)
		}
		if localFileSystems[int64(fs.Type)] {
			return nil
		}
		return fmt.Errorf("is a file on a file system (type %#x) that may wait for a server", fs.Type)
	default:
		return fmt.Errorf("is neither a terminal, a pipe, nor a file")
	}
}
