// Package analyst answers what people ask of a log: who got and used what, when and
// how it went ([Summarise]), what is behind one record ([Explain]), and which records
// are about something ([Query]).
//
// It reads a copy and checks no proofs: what it says is what the log says. Whether
// that is the truth, [reader.Verify] tells.
package analyst

import "github.com/vouchd/vouchd/audit/reader"

// An Entry is one record as it is read from a log.
type Entry = reader.Entry

// maxKeys bounds how many authority keys are remembered.
const maxKeys = 4096

// unrevocable is what records say of a credential that its source can't end, and
// that does not expire.
const unrevocable = "none"
