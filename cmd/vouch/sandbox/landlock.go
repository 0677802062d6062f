package sandbox

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Versions of Landlock's interface (landlock(7)).
const (
	landlockBasic  = 1 // Linux 5.13
	landlockRefer  = 2 // 5.19: files may be moved between directories
	landlockTrunc  = 3 // 6.2
	landlockScopes = 6 // 6.12: signals and abstract sockets
)

// landlockVersion returns which version the kernel has, 0 for none.
func landlockVersion() int {
	version, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(version)
}

var errNoLandlock = errors.New("the kernel has no Landlock (Linux 5.13), or a container forbids it, so writing cannot be limited; leave --write out")

// writing is what Options.Write is about.
const writing = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
	unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
	unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM

// devices is what no process here may do in any case. A domain has to restrict something.
const devices = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK

// restrict puts this thread into a Landlock domain: no process in it can trace, or read by
// /proc, one that is outside; nor, since Linux 6.12, send it a signal. If limited, files may be
// written below dirs alone.
func restrict(limited bool, dirs []string, required bool) error {
	version := landlockVersion()
	switch {
	case version == 0 && limited:
		return errNoLandlock
	case version == 0 && required:
		return errors.New("the kernel has no Landlock (Linux 5.13), which would keep the command from other processes")
	case version < landlockRefer && !limited && !required:
		return nil // it would forbid all moving between directories
	}
	var rights unix.LandlockRulesetAttr
	rights.Handled_access_fs = devices
	if limited {
		rights.Handled_access_fs |= writing
	}
	if version >= landlockRefer {
		rights.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= landlockTrunc && limited {
		rights.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	size := unsafe.Offsetof(rights.Handled_access_net)
	if version >= landlockScopes {
		rights.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = unsafe.Offsetof(rights.Quiet_access_fs)
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rights)), size, 0)
	if errno != 0 {
		return fmt.Errorf("making a Landlock domain: %w", errno)
	}
	defer unix.Close(int(fd))
	allowed := rights.Handled_access_fs &^ devices
	if !limited {
		dirs = []string{"/"}
	}
	for _, dir := range dirs {
		if err := allow(int(fd), dir, allowed); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("allowing %s to be written: %w", dir, err)
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("entering a Landlock domain: %w", errno)
	}
	return nil
}

func allow(ruleset int, dir string, rights uint64) error {
	if rights == 0 {
		return nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
