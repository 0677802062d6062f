package view

// A ProgramStart is a request to start a program (vouch run), and its outcome, as reported by
// the service that starts them.
type ProgramStart struct {
	PID       int    `json:"pid"`                  // of who asked
	StartTime uint64 `json:"start_time,omitempty"` // of that process, in ticks since boot; 0: not known
	UID       uint32 `json:"uid"`                  // that connected
	GID       uint32 `json:"gid"`
	Program   string `json:"program"`
	Unit      string `json:"unit,omitempty"`    // that it is to run as
	Defined   string `json:"defined,omitempty"` // file:line
	Refused   string `json:"refused,omitempty"` // why; empty: it is about to be started
}

// A ProgramRecorded says whether the decision is in the log.
type ProgramRecorded struct {
	Suppressed bool `json:"suppressed"` // a refusal of a user who was refused too often: counted only
}
