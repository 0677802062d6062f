package writer

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/state"
)

// A segment is the one that records are appended to. The committing goroutine
// owns it.
type segment struct {
	file  file
	name  string
	first uint64
	off   int64 // where the next batch goes; all before is durable
	room  int64 // up to where the file is filled with zeros
	grown int64 // bytes of zeros that are not accounted for yet
	bad   bool  // writing to it failed: what stands behind off shows the next start that
}

// write makes a batch durable. It goes where zeros are already, so that the sync has
// no size to make durable.
func (s *segment) write(batch []byte) (err error) {
	defer func() { s.bad = err != nil }()
	if err := s.makeRoom(s.off + int64(len(batch))); err != nil {
		return err
	}
	if _, err := s.file.WriteAt(batch, s.off); err != nil {
		return err
	}
	if err := s.file.sync(); err != nil {
		return err
	}
	s.off += int64(len(batch))
	return nil
}

// makeRoom fills the file with zeros from an end on, unless it is already. On a disk
// that is full, the batch alone may still fit.
func (s *segment) makeRoom(end int64) error {
	if end <= s.room {
		return nil
	}
	room := (end/format.Preallocated + 1) * format.Preallocated
	_, err := s.file.WriteAt(make([]byte, room-end), end)
	if errors.Is(err, unix.ENOSPC) {
		s.room = end
		return s.file.truncate(s.off)
	}
	s.grown += room - max(s.room, end)
	s.room = room
	return err
}

// close takes away the zeros behind the last batch. They do no harm where they stay.
func (s *segment) close() error {
	if s.room > s.off && !s.bad {
		s.file.truncate(s.off)
	}
	return s.file.Close()
}

// createSegment makes a segment durable under its name, with only a header, or
// not at all.
func createSegment(d disk, h format.SegmentHeader) (*segment, error) {
	first := uint64(h.Tree.Size)
	frame := state.AppendFrame(nil, format.KindSegment, h.Marshal())
	s := &segment{name: format.SegmentName(first), first: first, off: int64(len(frame))}
	var err error
	s.file, err = writeDurably(d, s.name, func(f file) error {
		_, err := f.WriteAt(frame, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making segment: %w", err)
	}
	return s, nil
}

// writeDurably replaces a file by one that fill writes, and returns it open. In a
// crash the name stands for the old file or for the whole new one.
func writeDurably(d disk, name string, fill func(file) error) (file, error) {
	temp := name + format.TempSuffix
	if err := d.remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := d.create(temp)
	if err != nil {
		return nil, err
	}
	err = fill(f)
	if err == nil {
		err = f.sync()
	}
	if err == nil {
		err = d.rename(temp, name)
	}
	if err == nil {
		err = d.syncDir(path.Dir(name))
	}
	if err != nil {
		f.Close()
		d.remove(temp) // its space is needed where the disk is full
		return nil, err
	}
	return f, nil
}
