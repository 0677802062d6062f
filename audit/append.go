package audit

import (
	"errors"
	"fmt"
)

// MaxAppend is how many records one call of the writer's Append takes.
const MaxAppend = 64

var (
	// ErrUnwritable means that the log can't be written, so nothing that needs
	// a record may happen. It lasts until the log has been written again.
	ErrUnwritable = errors.New("attestation log can't be written")
	// ErrFull means that the log has reached the bound on its size, and nothing in
	// it is old enough to be removed. It wraps ErrUnwritable.
	ErrFull = fmt.Errorf("%w: it is as large as it may be", ErrUnwritable)
)
