package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

const (
	maxProgramStart     = 64 << 10 // bytes
	programStartTimeout = 10 * time.Second
	askerAttestTimeout  = 3 * time.Second
)

// programStart records a start, or a refused start, that the service of vouch run has decided.
// That service runs as root, and only root may say who asked it.
func (s *Server) programStart(w http.ResponseWriter, r *http.Request) {
	if by := askerOf(r); by.UID != 0 {
		http.Error(w, fmt.Sprintf("user %d may not record starts of programs; root may", by.UID), http.StatusForbidden)
		return
	}
	var start view.ProgramStart
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxProgramStart)).Decode(&start); err != nil {
		http.Error(w, fmt.Sprintf("reading the start of a program: %v", err), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), programStartTimeout)
	defer cancel()
	recorded, err := s.recordProgram(ctx, start)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	reply(w, recorded)
}

func (s *Server) recordProgram(ctx context.Context, start view.ProgramStart) (view.ProgramRecorded, error) {
	if start.PID <= 0 || start.Refused == "" && (start.Program == "" || start.Unit == "") {
		return view.ProgramRecorded{}, errors.New("a start without a process, a program or a unit")
	}
	if start.Refused == "" {
		return view.ProgramRecorded{}, s.Recorder.Record(ctx, audit.Record{
			Event: audit.EventRun, Outcome: audit.Success, Reason: fmt.Sprintf("program %s as %s", start.Program, start.Unit), Workload: s.starter(ctx, start),
		})
	}
	err := s.Recorder.Refuse(ctx, start.UID, func() audit.Record {
		return audit.Record{
			Event: audit.EventRun, Outcome: audit.Denied, Reason: fmt.Sprintf("program %s: %s", start.Program, start.Refused), Workload: s.starter(ctx, start),
		}
	})
	if errors.Is(err, gate.ErrTooManyRefusals) {
		return view.ProgramRecorded{Suppressed: true}, nil
	}
	return view.ProgramRecorded{}, err
}

// starter is the process that asked, as far as it can be attested: for the log
// alone, since the decision was made by who connected.
func (s *Server) starter(ctx context.Context, start view.ProgramStart) *audit.Workload {
	w := &audit.Workload{PID: start.PID, StartTime: start.StartTime, UID: start.UID, GID: start.GID}
	ctx, cancel := context.WithTimeout(ctx, askerAttestTimeout)
	defer cancel()
	if p, err := process.PinStarted(start.PID, start.StartTime, start.UID, start.GID); err == nil {
		defer p.Close()
		// If its user has changed since, it is not the process that connected.
		if at, err := s.Attester.Attest(ctx, p); err == nil && at.UID == start.UID {
			w = gate.WorkloadOf(at)
		}
	}
	w.Entry = start.Defined
	return w
}
