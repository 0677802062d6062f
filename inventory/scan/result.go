package scan

import (
	"encoding/json"
	"errors"
	"slices"

	"github.com/vouchd/vouchd/inventory"
)

// MaxResult bounds the JSON of a result, in bytes.
const MaxResult = 64 << 20

// ParseResult reads the JSON of an earlier result. It comes from outside: its texts are
// made such as may be shown.
func ParseResult(data []byte) (*Result, error) {
	var r Result
	if err := json.Unmarshal(data, &r); err != nil || r.Time.IsZero() || r.Findings == nil {
		return nil, errors.New("it is no inventory; make one with: vouch inventory --output json")
	}
	if len(r.Findings) > maxFindings {
		return nil, errors.New("it has more findings than an inventory can have")
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		for _, s := range []*string{&f.Kind, &f.Path, &f.Item, &f.What, &f.Fingerprint, &f.File, &f.Broad, &f.Replace, &f.Hint, &f.Owner, &f.Mode, &f.Access, &f.Program, &f.State} {
			*s = inventory.Printable(*s)
		}
		for j := range f.Readers {
			f.Readers[j] = inventory.Printable(f.Readers[j])
		}
	}
	r.Unread = slices.Clip(r.Unread)
	return &r, nil
}
