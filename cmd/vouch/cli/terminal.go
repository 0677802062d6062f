package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// IsTerminal reports whether what is written would be on a screen.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// IsInteractive reports whether somebody at a terminal can be asked.
func IsInteractive(in io.Reader) bool {
	f, ok := in.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// NotATerminal keeps a helper that was run by hand from showing secrets.
func NotATerminal(w io.Writer, reader string) error {
	if IsTerminal(w) {
		return fmt.Errorf("this prints secrets for %s to read, and standard output is a terminal", reader)
	}
	return nil
}

// AskHidden reads a line from the terminal without showing it.
func AskHidden(prompt string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer tty.Close()
	shown, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	hidden := *shown
	hidden.Lflag = hidden.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, &hidden); err != nil {
		return nil, err
	}
	defer unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, shown)
	fmt.Fprint(tty, prompt)
	defer fmt.Fprintln(tty)
	line := make([]byte, 4096) // in canonical mode one read is one line, termios(3)
	n, err := tty.Read(line)
	if err != nil {
		return nil, err
	}
	return bytes.TrimRight(line[:n], "\r\n"), nil
}
