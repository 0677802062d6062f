package main

import (
	"context"
	"fmt"
	"reflect"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/programs"
	"github.com/vouchd/vouchd/systemd"
)

// servePrograms starts for users the programs that the administrator has
// defined, as transient units of systemd. Without systemd there is no such
// service: vouch run says so.
func (d *daemon) servePrograms(ctx context.Context) error {
	if !systemd.IsManager() {
		return nil
	}
	l, err := programs.Listen(d.run, d.config.RunSocket)
	if err != nil {
		return err
	}
	s := &programs.Server{
		Programs: func() map[string]*programs.Program { return *d.programs.Load() },
		Units:    d.units,
		Recorder: startRecorder{d.log},
		Report:   func(err error) { d.slog.Warn("serving vouch run", "err", err) },
	}
	return s.Serve(ctx, l)
}

// reloadPrograms puts the definitions on disk in force if they are in order;
// the last good ones stay otherwise, and status says why.
func (d *daemon) reloadPrograms(ctx context.Context) {
	defined, err := programs.Load(d.config.ProgramsDir, false)
	d.mu.Lock()
	defer d.mu.Unlock()
	if fmt.Sprint(err) == fmt.Sprint(d.programsRefused) && (err != nil || reflect.DeepEqual(defined, *d.programs.Load())) {
		return
	}
	r := audit.Record{Event: audit.EventReload, Outcome: audit.Success, Reason: fmt.Sprintf("%d programs", len(defined))}
	if err != nil {
		d.slog.Error("programs are not in order; the last good ones stay in force", "err", err)
		r.Outcome, r.Reason = audit.Failed, err.Error()
	}
	if logErr := d.log.Append(ctx, r); logErr != nil {
		d.slog.Error("recording a reload; the last good programs stay in force", "err", logErr)
		d.programsRefused = logErr
		return
	}
	if d.programsRefused = err; err == nil {
		d.programs.Store(&defined)
	}
}

// A startRecorder records who had which program started.
type startRecorder struct{ log *audit.Log }

// RecordStart implements [programs.Recorder].
func (r startRecorder) RecordStart(ctx context.Context, s programs.Start) error {
	record := audit.Record{
		Event:    audit.EventRun,
		Outcome:  audit.Success,
		Reason:   "program " + s.Program,
		Workload: &audit.Workload{PID: s.PID, UID: s.UID, GID: s.GID, Unit: s.Unit, Entry: s.Defined},
	}
	if s.Refused != nil {
		record.Outcome, record.Reason = audit.Denied, fmt.Sprintf("program %s: %v", s.Program, s.Refused)
	}
	return r.log.Append(ctx, record)
}
