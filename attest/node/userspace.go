package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/vouchd/vouchd/attest/appraisal"
)

const (
	beingWrittenLimit = 2 * time.Second
	beingWrittenEvery = 10 * time.Millisecond
)

// readUserspaceLog reads systemd's log of what it measured, as far as it has whole
// records and fits. A file that is missing or not for us is left out.
//
// It is read after the quote. systemd sets the file's sticky bit before it extends a
// PCR and clears it when the record is there, so a file without it has every record
// that the quote covers, and perhaps some more. systemd also locks the file; to lock it
// here would let this process hold up the boot.
func readUserspaceLog(ctx context.Context, from Sources) ([]byte, error) {
	f := from.UserspaceLogFile
	if f == nil {
		opened, err := os.Open(from.UserspaceLog)
		if from.UserspaceLog == "" || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		defer opened.Close()
		f = opened
	}
	// If the bit stays, whoever set it was interrupted: the log is what it is.
	for giveUp := time.Now().Add(beingWrittenLimit); ; {
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if st.Mode()&fs.ModeSticky == 0 || time.Now().After(giveUp) {
			break
		}
		if err := pause(ctx, beingWrittenEvery); err != nil {
			return nil, err
		}
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, appraisal.MaxUserspaceLogLen))
	return b[:bytes.LastIndexByte(b, '\n')+1], err
}
