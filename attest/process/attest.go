package process

import "fmt"

// An Error reports which fact about which process could not be established.
type Error struct {
	PID  int
	Fact string // "exe", "cgroup"
	Err  error
}

func (e *Error) Error() string {
	return fmt.Sprintf("attesting %s of process %d: %v", e.Fact, e.PID, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }
