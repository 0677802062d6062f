package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

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

// A line of text for people has this many columns, on a terminal.
const columns = 80

// Wrap breaks text between words so that its lines fit a terminal, the second and further
// ones behind indent. Written elsewhere it stays as it is: a line is what tools look for.
func Wrap(w io.Writer, text, indent string) string {
	if !IsTerminal(w) {
		return strings.ReplaceAll(text, "\n", "\n"+indent)
	}
	return wrap(text, indent, columns)
}

func wrap(text, indent string, columns int) string {
	var b strings.Builder
	for i, line := range strings.Split(text, "\n") {
		if i > 0 {
			b.WriteString("\n" + indent)
		}
		at := 0 // column
		if i > 0 {
			at = utf8.RuneCountInString(indent)
		}
		for j, word := range strings.Fields(line) {
			n := utf8.RuneCountInString(word)
			switch {
			case j == 0:
			case at+1+n > columns:
				b.WriteString("\n" + indent)
				at = utf8.RuneCountInString(indent)
			default:
				b.WriteByte(' ')
				at++
			}
			b.WriteString(word)
			at += n
		}
	}
	return b.String()
}

// Short is the beginning of a digest, by which people tell it from others.
func Short(digest string) string {
	const shown = 16
	if len(digest) <= shown {
		return digest
	}
	return digest[:shown] + "…"
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
