package reader

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/vouchd/vouchd/audit/internal/format"
)

// A Witnessed is what somebody elsewhere saw of the log, as a copy of it says.
type Witnessed struct {
	Name  string    `json:"name"`
	Key   string    `json:"key"`
	Size  uint64    `json:"size"` // records that it saw, all of them in this copy
	Time  time.Time `json:"time"` // by the witness's clock
	Known bool      `json:"known"`
}

// A witnessFile is read before the segments, so that they have all that it
// covers, and judged once the log's key is known.
type witnessFile struct {
	name string
	data []byte
}

func (v *verifier) readWitnesses() error {
	names, err := witnessFiles(v.fsys)
	if err != nil {
		return err
	}
	for _, name := range names {
		data, err := format.ReadBounded(v.fsys, name, format.MaxFrame)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil && len(data) <= format.MaxFrame {
			return err
		}
		v.witnesses = append(v.witnesses, witnessFile{name, data})
	}
	return nil
}

// expectWitnessed has the log held against what witnesses signed.
func (v *verifier) expectWitnessed() {
	for _, f := range v.witnesses {
		w, c, err := parseKept(f.name, f.data, v.v)
		if err != nil {
			v.rep.add(Finding{Severity: Failure, Name: "witness-signature", Place: f.name, Message: err.Error(),
				Meaning: "the file was changed, or is of another log"})
			continue
		}
		seen := Witnessed{Name: w.Name(), Key: w.String(), Size: c.Size, Time: c.Time, Known: slices.Contains(v.o.Witnesses, w.String())}
		v.known = append(v.known, knownCheckpoint{
			Checkpoint: c.Checkpoint,
			source:     fmt.Sprintf("what the witness %s signed at %s", w.Name(), c.Time.Format(time.RFC3339)),
			met:        func() { v.rep.Witnessed = append(v.rep.Witnessed, seen) },
		})
	}
}

// missWitnesses names the witnesses asked for that signed no state of this log.
func (v *verifier) missWitnesses() {
	for _, vkey := range v.o.Witnesses {
		if slices.ContainsFunc(v.rep.Witnessed, func(w Witnessed) bool { return w.Key == vkey }) {
			continue
		}
		v.rep.add(Finding{Severity: Failure, Name: "not-witnessed", Message: fmt.Sprintf("the copy has no state of this log that %s signed", vkey),
			Meaning: "it was never submitted to that witness, or the witness refused it, or what it signed was removed or does not fit"})
	}
}

// isWitnessFile tells whether the file was looked at with the witnesses'.
func isWitnessFile(name string) bool { return path.Dir(name) == format.WitnessDir }
