package workloadapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
)

// A ProgramStart is somebody's wish to have a program started (vouch run), and
// what became of it, as the service tells it that starts them.
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

const (
	maxProgramStart     = 64 << 10 // bytes
	programStartTimeout = 10 * time.Second
	askerAttestTimeout  = 3 * time.Second
)

// programStart records a start, or the refusal of one, that the service of
// vouch run has decided. That service runs as root, and nobody else has
// anything to say about who asked it.
func (a *Admin) programStart(w http.ResponseWriter, r *http.Request) {
	by, ok := r.Context().Value(askerKey{}).(Asker)
	if !ok || by.UID != 0 {
		http.Error(w, fmt.Sprintf("user %d may not record starts of programs; root may", by.UID), http.StatusForbidden)
		return
	}
	var start ProgramStart
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxProgramStart)).Decode(&start); err != nil {
		http.Error(w, fmt.Sprintf("reading the start of a program: %v", err), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), programStartTimeout)
	defer cancel()
	recorded, err := a.Server.recordProgram(ctx, start)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	reply(w, recorded)
}

func (s *Server) recordProgram(ctx context.Context, start ProgramStart) (ProgramRecorded, error) {
	if start.PID <= 0 || start.Refused == "" && (start.Program == "" || start.Unit == "") {
		return ProgramRecorded{}, errors.New("a start without a process, a program or a unit")
	}
	record := audit.Record{Event: audit.EventRun, Outcome: audit.Success, Reason: fmt.Sprintf("program %s as %s", start.Program, start.Unit)}
	if start.Refused != "" {
		suppressed, ok := s.refusals.allow(start.UID)
		if !ok {
			return ProgramRecorded{Suppressed: true}, nil
		}
		record.Outcome, record.Reason = audit.Denied, fmt.Sprintf("program %s: %s", start.Program, start.Refused)
		if suppressed > 0 {
			record.Reason = fmt.Sprintf("%s (and %d refusals of this user since the last record)", record.Reason, suppressed)
		}
	}
	record.Workload = s.starter(ctx, start)
	return ProgramRecorded{}, s.o.Log.Append(ctx, record)
}

// starter is the process that asked, as far as it can be attested: for the log
// alone, since the decision was made by who connected.
func (s *Server) starter(ctx context.Context, start ProgramStart) *audit.Workload {
	w := &audit.Workload{PID: start.PID, StartTime: start.StartTime, UID: start.UID, GID: start.GID}
	ctx, cancel := context.WithTimeout(ctx, askerAttestTimeout)
	defer cancel()
	if p, err := process.PinStarted(start.PID, start.StartTime, start.UID, start.GID); err == nil {
		defer p.Close()
		// One that is another user by now is not who connected.
		if at, err := s.o.Attester.Attest(ctx, p); err == nil && at.UID == start.UID {
			w = workloadOf(at)
		}
	}
	w.Entry = start.Defined
	return w
}

// RecordProgram has the daemon record a start of a program, durably once it
// returns without an error. Root alone may.
func (c *AdminClient) RecordProgram(ctx context.Context, start ProgramStart) (ProgramRecorded, error) {
	body, err := json.Marshal(start)
	if err != nil {
		return ProgramRecorded{}, err
	}
	return ask[ProgramRecorded](ctx, c, http.MethodPost, "/v1/programs/start", nil, body)
}
