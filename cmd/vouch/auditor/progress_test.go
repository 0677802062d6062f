package auditor

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
)

func TestProgressTellsHowMuchWasRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"wal/a", "wal/b"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 2<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &progress{looked: true}
	fsys := p.of(os.DirFS(dir))
	if names, err := fs.ReadDir(fsys, "wal"); err != nil || len(names) != 2 {
		t.Fatalf("%v, %v", names, err)
	}
	f, err := fsys.Open("wal/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, io.NewSectionReader(f.(io.ReaderAt), 0, 2<<20)); err != nil {
		t.Fatal(err)
	}
	if said := p.said(); said != "verifying: 50% of 4 MiB" {
		t.Errorf("it says %q", said)
	}
}

func TestProgressIsForTerminalsOnly(t *testing.T) {
	t.Parallel()
	cmd := new(cobra.Command)
	var stderr bytes.Buffer
	cmd.SetErr(&stderr)
	p, stop := startProgress(cmd)
	fsys := os.DirFS(t.TempDir())
	if p.of(fsys) != fsys {
		t.Error("files are counted although nobody looks")
	}
	stop()
	if stderr.Len() > 0 {
		t.Errorf("a file gets %q", stderr.String())
	}
}
