package reader

import (
	"fmt"
	"slices"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// A knownCheckpoint must be met on the way.
type knownCheckpoint struct {
	audit.Checkpoint
	source string
	met    func() // may be nil
}

// expect has the log held against a signed checkpoint from elsewhere.
func (v *verifier) expect(signed []byte, source string) {
	if len(signed) == 0 {
		return
	}
	c, err := format.OpenCosigned(signed, v.v)
	if err != nil {
		v.fail("checkpoint-signature", nil, source+": "+err.Error(), "it is not this log's word")
		return
	}
	v.known = append(v.known, knownCheckpoint{Checkpoint: c, source: source})
	if source == format.CheckpointName {
		v.tiles.size = c.Size
	}
}

// meet compares the checkpoints that the tree has reached.
func (v *verifier) meet() {
	for i, k := range v.known {
		if k.Size != v.size() {
			continue
		}
		if k.Root != v.root() {
			v.fail("fork", nil, fmt.Sprintf("the first %d records are not those that %s stands for", k.Size, k.source),
				"a record up to there was changed, or the two have different histories")
		} else {
			v.signed = max(v.signed, k.Size)
			if k.met != nil {
				k.met()
			}
		}
		v.known = slices.Delete(v.known, i, i+1)
		v.meet()
		return
	}
}
