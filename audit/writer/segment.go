package writer

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

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
