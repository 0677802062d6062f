package node

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/attest/appraisal"
)

func TestUserspaceLogIsReadInWholeRecords(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tpm2-measure.log")
	read := func(from Sources) string {
		t.Helper()
		b, err := readUserspaceLog(t.Context(), from)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := read(Sources{UserspaceLog: path}) + read(Sources{}); got != "" {
		t.Errorf("without a file it is %q", got)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("\x1e{}\n\x1e{\"pcr\":9,")
	if got := read(Sources{UserspaceLog: path}); got != "\x1e{}\n" {
		t.Errorf("of a torn last record it is %q", got)
	}
	// Opened by systemd before the last record was written, and read from its beginning.
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write("\x1e{}\n\x1e{}\n")
	for range 2 {
		if got := read(Sources{UserspaceLogFile: f}); got != "\x1e{}\n\x1e{}\n" {
			t.Errorf("of an open file it is %q", got)
		}
	}
	write(strings.Repeat("\x1e{}\n", appraisal.MaxUserspaceLogLen))
	if got := read(Sources{UserspaceLog: path}); len(got) != appraisal.MaxUserspaceLogLen {
		t.Errorf("of a file that is too long it is %d bytes", len(got))
	}
}

// systemd extends the PCR first and writes the record then, with the sticky bit set
// from before the one until after the other.
func TestUserspaceLogIsReadWhenItsRecordIsThere(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tpm2-measure.log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Chmod(0o600 | fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		log []byte
		err error
	}
	answered := make(chan answer)
	go func() {
		b, err := readUserspaceLog(t.Context(), Sources{UserspaceLog: path})
		answered <- answer{b, err}
	}()
	if _, err := f.WriteString("\x1e{\"pcr\":9}\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod(0o600); err != nil {
		t.Fatal(err)
	}
	if a := <-answered; a.err != nil || string(a.log) != "\x1e{\"pcr\":9}\n" {
		t.Errorf("it is %q, %v", a.log, a.err)
	}
	// A writer that died leaves the bit set.
	if err := f.Chmod(0o600 | fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if b, err := readUserspaceLog(t.Context(), Sources{UserspaceLog: path}); err != nil || len(b) == 0 {
		t.Errorf("after a writer died it is %q, %v", b, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := readUserspaceLog(gone, Sources{UserspaceLog: path}); err == nil {
		t.Error("it waits for a writer although nobody waits for it")
	}
}
