package audit

import "encoding/json"

// RestartFile is the state file by which an administrator has a stopped daemon begin
// another log, with another key, at its next start. It holds a [RestartRequest].
const RestartFile = "log-restart"

// A RestartRequest says why, and how far the daemon has got with it. The log there
// is, if any, is moved within the state directory; nothing of it is deleted.
type RestartRequest struct {
	Reason string `json:"reason"`
	Key    string `json:"key,omitempty"`  // of the log before, as a note verifier key
	Size   uint64 `json:"size,omitempty"` // records that it is known to have had
	Ended  bool   `json:"ended"`          // the log before is moved away, and its key is gone
}

// Encode returns the contents of the file.
func (r RestartRequest) Encode() ([]byte, error) { return json.Marshal(r) }
