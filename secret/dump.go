package secret

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// KeepOutOfDumps has the kernel write no core dump of this process, to a file
// or to a collector, whatever the limits and crash settings are, and lets no other
// process of the same user attach to it. It lasts until the process executes
// another program.
func KeepOutOfDumps() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keeping this process out of core dumps: %w", err)
	}
	return nil
}
