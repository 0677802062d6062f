package reader

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit/internal/format"
)

// Archive writes a tar file that verifies by itself, of the log from a record
// on: from is rounded down to a full bundle of 256, or to what there is. The log
// may be in use meanwhile. What is in the archive ends behind a checkpoint.
func Archive(ctx context.Context, fsys fs.FS, w io.Writer, from uint64) error {
	a := archiver{ctx: ctx, fsys: fsys, w: tar.NewWriter(w), from: from &^ (format.TileWidth - 1)}
	err := a.run()
	if err == nil {
		err = a.w.Close()
	}
	if err != nil {
		return fmt.Errorf("archiving attestation log: %w", err)
	}
	return nil
}

type archiver struct {
	ctx  context.Context
	fsys fs.FS
	w    *tar.Writer
	from uint64

	size uint64 // records in the archive
}

func (a *archiver) run() error {
	// The checkpoint first, the segments next, the tiles last: so each is covered
	// by what comes after it.
	checkpoint, err := format.ReadBounded(a.fsys, format.CheckpointName, format.MaxFrame)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	witnesses, err := a.witnesses()
	if err != nil {
		return err
	}
	segs, err := format.OpenSegments(a.fsys, true)
	if err != nil {
		return err
	}
	defer segs.Close()
	if len(segs.Firsts) == 0 {
		return fmt.Errorf("there is no segment in %s: %w", format.WALDir, fs.ErrNotExist)
	}
	a.from = min(a.from, segs.Firsts[0]&^(format.TileWidth-1))
	if err := a.segments(segs); err != nil {
		return err
	}
	if len(checkpoint) > 0 {
		if err := a.put(format.CheckpointName, int64(len(checkpoint)), strings.NewReader(string(checkpoint))); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(witnesses)) {
		if err := a.put(name, int64(len(witnesses[name])), strings.NewReader(string(witnesses[name]))); err != nil {
			return err
		}
	}
	return a.tiles()
}

// witnesses reads what witnesses have signed.
func (a *archiver) witnesses() (map[string][]byte, error) {
	names, err := witnessFiles(a.fsys)
	if err != nil {
		return nil, err
	}
	files := make(map[string][]byte)
	for _, name := range names {
		if files[name], err = format.ReadBounded(a.fsys, name, format.MaxFrame); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func (a *archiver) segments(segs *format.OpenedSegments) error {
	for i, first := range segs.Firsts {
		s, err := segs.Open(i)
		if err != nil {
			return err
		}
		size, last := s.Size(), i == len(segs.Firsts)-1
		if last || size%format.Preallocated == 0 { // it may have zeros at its end
			end, err := format.ScanSegment(s, format.ScanVisitor{})
			if err != nil {
				return fmt.Errorf("%s: %w", format.SegmentName(first), err)
			}
			if _, err := s.Seek(0, io.SeekStart); err != nil {
				return err
			}
			size = end.End
			if last {
				a.size = uint64(end.Tree.Size)
			}
		}
		if err := a.put(format.SegmentName(first), size, s); err != nil {
			return err
		}
	}
	return nil
}

func (a *archiver) tiles() error {
	err := fs.WalkDir(a.fsys, format.TileDir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() || strings.HasSuffix(name, format.TempSuffix) {
			return err
		}
		t, err := format.ParseTilePath(name)
		if err != nil || format.TileEnd(t) > a.size || t.L < 1 && format.TileEnd(t) <= a.from {
			return err
		}
		s, err := format.OpenStill(a.fsys, name)
		if errors.Is(err, fs.ErrNotExist) && t.W < format.TileWidth {
			return nil // a full one has taken its place
		}
		if err != nil {
			return err
		}
		defer s.Close()
		return a.put(name, s.Size(), s)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (a *archiver) put(name string, size int64, r io.Reader) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	err := a.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, Format: tar.FormatPAX})
	if err != nil {
		return err
	}
	if n, err := io.Copy(a.w, io.LimitReader(r, size)); err != nil || n < size {
		return errors.Join(fmt.Errorf("%s: copied %d of %d bytes", name, n, size), err)
	}
	return nil
}

// maxArchiveFiles bounds an archive: it is enough for some 200 million records.
const maxArchiveFiles = 2 << 20

// maxArchivedName bounds the names in an archive that are looked at, in bytes.
const maxArchivedName = 4096

// An archive is a tar file as a file system, for [Verify] and [Records]. It
// keeps only names and places in memory.
type archive struct {
	r     io.ReaderAt
	files map[string]archived
	dirs  map[string][]fs.DirEntry
}

type archived struct{ off, size int64 }

// ReadArchive reads the list of files of a tar file: what [Archive] made, or one of
// a log's directory, in which the log may lie in a directory of any name. What else
// the tar file holds is not looked at. It must have the given size, and stay open as
// long as the file system is used.
func ReadArchive(r io.ReaderAt, size int64) (fs.FS, error) {
	a := &archive{r: r, files: map[string]archived{}, dirs: map[string][]fs.DirEntry{".": nil}}
	section := io.NewSectionReader(r, 0, size)
	t := tar.NewReader(section)
	log := "" // the directory that the log lies in, with a slash behind it
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading archive: %w", err)
		}
		dir, name, ok := logName(h.Name)
		if !ok {
			continue
		}
		if len(a.files) == 0 {
			log = dir
		}
		if dir != log {
			return nil, fmt.Errorf("reading archive: there is a log in %q and another in %q; extract the one wanted", log, dir)
		}
		off, err := section.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if err := a.take(name, h, archived{off, h.Size}, size); err != nil {
			return nil, fmt.Errorf("reading archive: %s: %w", name, err)
		}
	}
	for _, list := range a.dirs {
		slices.SortFunc(list, func(x, y fs.DirEntry) int { return strings.Compare(x.Name(), y.Name()) })
	}
	return a, nil
}

// logName splits a name in a tar file into a directory and what can be the name of
// a file of a log in it.
func logName(name string) (dir, rest string, ok bool) {
	if len(name) > maxArchivedName {
		return "", "", false
	}
	name = strings.TrimPrefix(name, "./")
	for i := 0; ; {
		if format.IsName(name[i:]) {
			return name[:i], name[i:], true
		}
		next := strings.IndexByte(name[i:], '/')
		if next < 0 {
			return "", "", false
		}
		i += next + 1
	}
}

// take enters a file of the log.
func (a *archive) take(name string, h *tar.Header, at archived, size int64) error {
	sparse := h.Typeflag == tar.TypeGNUSparse
	for key := range h.PAXRecords {
		sparse = sparse || strings.HasPrefix(key, "GNU.sparse.")
	}
	_, twice := a.files[name]
	switch {
	case h.Typeflag != tar.TypeReg && !sparse:
		return errNoFile
	case sparse:
		return errors.New("it is stored with holes; make the archive without --sparse")
	case twice:
		return errors.New("it is there twice")
	case at.size > size-at.off:
		return io.ErrUnexpectedEOF
	case len(a.files) == maxArchiveFiles:
		return fmt.Errorf("there are more than %d files", maxArchiveFiles)
	}
	a.files[name] = at
	a.enter(name, entry{path.Base(name), at.size, 0o600})
	return nil
}

// enter lists a file in its directory, and that in the one above.
func (a *archive) enter(name string, e fs.DirEntry) {
	dir := path.Dir(name)
	_, known := a.dirs[dir]
	a.dirs[dir] = append(a.dirs[dir], e)
	if !known {
		a.enter(dir, entry{path.Base(dir), 0, fs.ModeDir | 0o700})
	}
}

func (a *archive) Open(name string) (fs.File, error) {
	if f, ok := a.files[name]; ok {
		return &archivedFile{io.NewSectionReader(a.r, f.off, f.size), entry{path.Base(name), f.size, 0o600}}, nil
	}
	if list, ok := a.dirs[name]; ok {
		return &archivedDir{entry{path.Base(name), 0, fs.ModeDir | 0o700}, list}, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

type archivedFile struct {
	*io.SectionReader
	entry entry
}

func (f *archivedFile) Stat() (fs.FileInfo, error) { return f.entry, nil }
func (f *archivedFile) Close() error               { return nil }

type archivedDir struct {
	entry entry
	list  []fs.DirEntry
}

func (d *archivedDir) Stat() (fs.FileInfo, error) { return d.entry, nil }
func (d *archivedDir) Close() error               { return nil }
func (d *archivedDir) Read([]byte) (int, error)   { return 0, errors.New("is a directory") }

func (d *archivedDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		n = len(d.list)
	} else if len(d.list) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.list))
	list := d.list[:n]
	d.list = d.list[n:]
	return list, nil
}

// An entry is a file's or a directory's name and size.
type entry struct {
	name string
	size int64
	mode fs.FileMode
}

func (e entry) Name() string               { return e.name }
func (e entry) Size() int64                { return e.size }
func (e entry) Mode() fs.FileMode          { return e.mode }
func (e entry) Type() fs.FileMode          { return e.mode.Type() }
func (e entry) IsDir() bool                { return e.mode.IsDir() }
func (e entry) ModTime() time.Time         { return time.Time{} }
func (e entry) Sys() any                   { return nil }
func (e entry) Info() (fs.FileInfo, error) { return e, nil }
