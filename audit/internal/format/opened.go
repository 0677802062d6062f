package format

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/vouchd/vouchd/state"
)

// A Still is a file as long as it was when it was opened. A daemon may append
// meanwhile; what was there then, is whole.
type Still struct {
	*io.SectionReader
	io.Closer
}

// OpenStill opens a file as it is now.
func OpenStill(fsys fs.FS, name string) (*Still, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	at, ok := f.(io.ReaderAt)
	if !ok {
		f.Close()
		return nil, fmt.Errorf("%s: the file system can't read from the middle of files", name)
	}
	return &Still{io.NewSectionReader(at, 0, fi.Size()), f}, nil
}

// Frames returns a reader of the frames from an offset on.
func (s *Still) Frames(offset int64) *state.FrameReader {
	return Frames(io.NewSectionReader(s, offset, s.Size()-offset), offset)
}

// Tail reads what stands at an offset, behind the last checkpoint, as [ReadTail] does.
func (s *Still) Tail(off int64) ([]byte, error) { return ReadTail(s, off, s.Size()) }

// OpenedSegments are a log's segments as they were at one moment.
type OpenedSegments struct {
	fsys   fs.FS
	Firsts []uint64 // the index of each one's first record
	stills []*Still // nil: opened when wanted
}

// OpenSegments lists the segments. Of a log in use it opens them all at once,
// since a daemon may turn them into tiles meanwhile.
func OpenSegments(fsys fs.FS, inUse bool) (*OpenedSegments, error) {
	for tries := 0; ; tries++ {
		firsts, err := Segments(fsys)
		if err != nil {
			return nil, err
		}
		s := &OpenedSegments{fsys: fsys, Firsts: firsts}
		if !inUse {
			return s, nil
		}
		for i := 0; i < len(firsts) && err == nil; i++ {
			var f *Still
			if f, err = OpenStill(fsys, SegmentName(firsts[i])); err == nil {
				s.stills = append(s.stills, f)
			}
		}
		if err == nil {
			return s, nil
		}
		s.Close()
		if !errors.Is(err, fs.ErrNotExist) || tries == 10 {
			return nil, err
		}
	}
}

// Open returns a segment; closing it twice does no harm.
func (s *OpenedSegments) Open(i int) (*Still, error) {
	if s.stills != nil {
		return s.stills[i], nil
	}
	return OpenStill(s.fsys, SegmentName(s.Firsts[i]))
}

// Close closes the segments that are open.
func (s *OpenedSegments) Close() {
	for _, f := range s.stills {
		f.Close()
	}
}

// Release closes a segment after a look at it, unless it is kept for later.
func (s *OpenedSegments) Release(f *Still) {
	if s.stills == nil {
		f.Close()
	}
}
