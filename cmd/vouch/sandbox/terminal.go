package sandbox

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// restoreTerminal returns what gives the terminal back to this process's group, if it has it
// now. An interactive shell takes it, and in its namespace cannot name this group to return it.
func restoreTerminal() func() {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return func() {} // there is none
	}
	fd := int(tty.Fd())
	if front, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil || front != unix.Getpgrp() {
		tty.Close()
		return func() {}
	}
	return func() {
		defer tty.Close()
		if front, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil || front == unix.Getpgrp() {
			return
		}
		signal.Ignore(syscall.SIGTTOU) // a background process is stopped by it for this
		defer signal.Reset(syscall.SIGTTOU)
		unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, unix.Getpgrp())
	}
}
