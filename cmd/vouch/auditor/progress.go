package auditor

import (
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// A progress says on a terminal how much of what is verified was read. Its zero
// value, for anything but a terminal, says nothing.
type progress struct {
	looked bool         // somebody looks
	all    atomic.Int64 // bytes
	read   atomic.Int64
}

// progressAfter is how soon progress shows.
const progressAfter = time.Second

// startProgress shows progress until stop is called, if standard error is a
// terminal.
func startProgress(cmd *cobra.Command) (p *progress, stop func()) {
	p = &progress{looked: cli.IsTerminal(cmd.ErrOrStderr())}
	return p, cli.Progress(cmd, progressAfter, p.said)
}

// said is how far it is, nothing if that is not known yet.
func (p *progress) said() string {
	read, all := p.read.Load(), p.all.Load()
	if all == 0 {
		return ""
	}
	return fmt.Sprintf("verifying: %d%% of %d MiB", min(99, read*100/all), max(1, all>>20))
}

// of returns a file system whose reading counts, for a log whose files are all to
// be read.
func (p *progress) of(fsys fs.FS) fs.FS {
	if !p.looked {
		return fsys
	}
	fs.WalkDir(fsys, ".", func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // whoever verifies it says what is wrong
		}
		if info, err := d.Info(); err == nil {
			p.all.Add(info.Size())
		}
		return nil
	})
	return countedFS{fsys, p}
}

type countedFS struct {
	fs.FS
	p *progress
}

// Open counts what is read of files that can be read from the middle, which a log's
// can.
func (c countedFS) Open(name string) (fs.File, error) {
	f, err := c.FS.Open(name)
	if err != nil {
		return nil, err
	}
	r, ok := f.(seekable)
	if _, dir := f.(fs.ReadDirFile); !ok || dir && isDir(f) {
		return f, nil
	}
	return countedFile{r, c.p}, nil
}

func isDir(f fs.File) bool {
	info, err := f.Stat()
	return err != nil || info.IsDir()
}

type seekable interface {
	fs.File
	io.ReaderAt
	io.Seeker
}

type countedFile struct {
	seekable
	p *progress
}

func (f countedFile) Read(b []byte) (int, error) {
	n, err := f.seekable.Read(b)
	f.p.read.Add(int64(n))
	return n, err
}

func (f countedFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.seekable.ReadAt(b, off)
	f.p.read.Add(int64(n))
	return n, err
}
