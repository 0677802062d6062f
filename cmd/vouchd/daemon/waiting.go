package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/packaging/version"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// spaceEvery is how often a daemon looks whether there is space for its log.
const spaceEvery = 2 * time.Second

// openLog opens the log and records the start. On a disk that takes no record it
// waits until it does: meanwhile status says why, and every other call is refused. A
// daemon that ended instead would be started again and again, and could not be asked.
// There is no log where the context ended first.
func (d *daemon) openLog(ctx context.Context, agent, admins *net.UnixListener) (err error) {
	d.log, err = openRecords(ctx, d.config.Log, d.machine, d.slog)
	if !takesNoRecord(err) {
		return err
	}
	d.slog.Error("waiting for space: nothing is issued until the attestation log can be written", "err", err)
	problem := err
	group, waiting := errgroup.WithContext(ctx)
	waiting, enough := context.WithCancel(waiting)
	group.Go(func() error { return d.refuse(waiting, agent) })
	group.Go(func() error { return d.tellStatus(waiting, admins, problem) })
	group.Go(func() error { return systemd.Watchdog(waiting, func(context.Context) error { return nil }) })
	group.Go(func() error {
		defer enough()
		if err := systemd.Ready("Waiting for space: the attestation log can't be written"); err != nil {
			return err
		}
		return d.reopenLog(waiting)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if d.log != nil {
		d.slog.Info("the attestation log can be written again")
	}
	return nil
}

// reopenLog tries again until the log opens, or can't be opened for another reason.
func (d *daemon) reopenLog(ctx context.Context) (err error) {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if d.log, err = openRecords(ctx, d.config.Log, d.machine, d.slog); !takesNoRecord(err) {
			return err
		}
	}
}

// takesNoRecord tells whether an error means that nothing can be written for now.
func takesNoRecord(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS)
}

// refuse answers every call of the agent socket with an error that says why.
func (d *daemon) refuse(ctx context.Context, l *net.UnixListener) error {
	ours, err := twin(l)
	if err != nil {
		return err
	}
	return gate.ServeUnavailable(ctx, ours, "the host's attestation log can't be written, so nothing is issued; try again later")
}

// tellStatus answers administrators how the daemon is.
func (d *daemon) tellStatus(ctx context.Context, l *net.UnixListener, problem error) error {
	ours, err := twin(l)
	if err != nil {
		return err
	}
	return admin.ServeStatus(ctx, ours, func() view.Status {
		st := view.Status{
			Version: version.String(), TrustDomain: d.config.TrustDomain.Name(), Started: d.started, Reminders: []string{},
			Problems: []string{fmt.Sprintf("the attestation log cannot be written, so nothing is issued: %v; free space in %s", problem, d.machine.state.Path("log"))},
		}
		d.machine.report(&st)
		return st
	}, d.slog)
}

// twin returns another listener of the same socket: closing it leaves that open.
func twin(l *net.UnixListener) (*net.UnixListener, error) {
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	other, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	unix, ok := other.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("%s is no Unix socket", l.Addr())
	}
	unix.SetUnlinkOnClose(false)
	return unix, nil
}
