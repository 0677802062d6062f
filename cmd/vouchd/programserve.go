package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon"
	"github.com/vouchd/vouchd/cmd/vouchd/reload"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/programs"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/admin/client"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// idleAfter is how long the service of vouch run waits for the next caller
// before it ends; systemd starts it again for that one.
const idleAfter = time.Minute

// newPrograms is the service of vouch run: small, and root, which systemd asks of
// who starts units; the daemon is not.
func newPrograms(log *slog.Logger, file *string, overrides *[]string) *cobra.Command {
	return &cobra.Command{
		Use:   "programs",
		Short: "Start the programs that an administrator has defined, for vouch run",
		Long: `Programs is the service behind vouch run. systemd starts it as root when somebody
calls (vouchd-programs.socket), and it ends a minute after the last program has.
It starts what /etc/vouchd/programs.d defines and nothing else, and only what the
running daemon has recorded first.`,
		Example: `  vouchd programs
  vouchd programs --config ./vouchd.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := servePrograms(cmd.Context(), log, *file, *overrides)
			if err != nil {
				log.Error("serving vouch run", "err", err)
			}
			return err
		},
	}
}

func servePrograms(ctx context.Context, log *slog.Logger, file string, overrides []string) error {
	if !systemd.IsManager() {
		return errors.New("vouch run requires systemd as PID 1")
	}
	if os.Geteuid() != 0 {
		return errors.New("systemd starts units only for root; run this as root")
	}
	sockets, _, err := passed("run")
	if err != nil {
		return err
	}
	units := new(systemd.Units)
	defer units.Close()
	s := &programs.Server{
		Units:     units,
		Vouch:     vouchPath(),
		Report:    func(err error) { log.Warn("serving vouch run", "err", err) },
		IdleAfter: idleAfter,
	}
	c, err := config.Load(file, overrides...)
	if err != nil && sockets["run"] == nil {
		return err
	}
	if err != nil {
		// Exiting now would have systemd start this again and again while a caller waits:
		// instead the caller is told, and another attempt follows soon.
		log.Error("the configuration is invalid; nothing is started", "err", err)
		s.Programs = func() map[string]*programs.Program { return nil }
		s.Recorder = noRecorder{err}
		s.IdleAfter = time.Second
		if err := systemd.Ready("Nothing is started: the configuration is invalid"); err != nil {
			return err
		}
		return s.Serve(ctx, sockets["run"])
	}
	for _, w := range c.Warnings {
		log.Warn(w)
	}
	l, err := programs.Listen(sockets["run"], c.ProgramsSocket)
	if err != nil {
		return err
	}
	defined := reload.New(daemon.Programs(c.ProgramsDir, log))
	look := func() { defined.Reload(ctx) } // the daemon records what changes, so nothing fails here
	look()
	s.Programs = func() map[string]*programs.Program { return defined.State().Value }
	s.MayEnd = func() bool { // what is in force could be loaded again
		now := defined.State()
		return now.Problem == nil || now.Loaded.IsZero()
	}
	s.Recorder = adminRecorder{client.New(c.AdminSocket)}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return config.Watch(ctx, []string{c.ProgramsDir}, look) })
	group.Go(func() error { defer stop(); return s.Serve(ctx, l) })
	if err := systemd.Ready("Starting programs of " + c.ProgramsDir); err != nil {
		return err
	}
	err = group.Wait()
	systemd.Stopping()
	return err
}

// vouchPath is where vouch is: beside this program, or where the packages have it.
func vouchPath() string {
	if own, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(own), "vouch")
		if _, err := os.Stat(beside); err == nil {
			return beside
		}
	}
	return "/usr/bin/vouch"
}

// An adminRecorder has the daemon record who had which program started.
type adminRecorder struct{ daemon *client.Client }

// RecordStart implements [programs.Recorder].
func (r adminRecorder) RecordStart(ctx context.Context, s programs.Start) error {
	start := view.ProgramStart{
		PID: s.PID, StartTime: s.StartTime, UID: s.UID, GID: s.GID,
		Program: s.Program, Unit: s.Unit, Defined: s.Defined,
	}
	if s.Refused != nil {
		start.Refused = s.Refused.Error()
	}
	recorded, err := r.daemon.RecordProgram(ctx, start)
	if err == nil && recorded.Suppressed {
		err = programs.ErrTooManyRefusals
	}
	return err
}

// A noRecorder records nothing, and so nothing is started.
type noRecorder struct{ why error }

// RecordStart implements [programs.Recorder].
func (r noRecorder) RecordStart(context.Context, programs.Start) error { return r.why }
