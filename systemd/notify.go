// Package systemd is what the daemon and systemd say to each other: readiness,
// reloading, the watchdog and sockets that systemd has opened. If systemd did not start
// the daemon, all of it does nothing.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// Ready says that the daemon serves, or serves again after [Reloading]. The
// status is one line for systemctl status.
func Ready(status string) error {
	return notify(daemon.SdNotifyReady + "\nSTATUS=" + oneLine(status))
}

// Status replaces the line for systemctl status.
func Status(status string) error { return notify("STATUS=" + oneLine(status)) }

// Reloading says that a reload has begun; [Ready] ends it. It includes the time, by
// which systemd distinguishes a reload that it asked for from an earlier one
// (sd_notify(3)).
func Reloading() error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return fmt.Errorf("notifying systemd: %w", err)
	}
	usec := time.Duration(ts.Nano()).Microseconds()
	return notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, usec))
}

// Stopping says that the daemon is about to end.
func Stopping() error { return notify(daemon.SdNotifyStopping) }

func notify(state string) error {
	// The variable stays: more is to be said later.
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("notifying systemd: %w", err)
	}
	return nil
}

// oneLine keeps a status from being read as another assignment.
func oneLine(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' {
			b[i] = ' '
		}
	}
	return string(b)
}

// Watchdog tells systemd twice per watchdog period that the daemon is well, as long as
// check returns nil, until ctx ends. When check fails, systemd hears nothing until it
// succeeds again, and restarts the daemon if that takes too long. If the unit has no
// WatchdogSec, Watchdog returns at once.
func Watchdog(ctx context.Context, check func(context.Context) error) error {
	period, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("reading the watchdog's period: %w", err)
	}
	if period == 0 {
		return nil
	}
	tick := time.NewTicker(period / 2)
	defer tick.Stop()
	for {
		if check(ctx) == nil {
			if err := notify(daemon.SdNotifyWatchdog); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Passed returns what systemd has opened for the daemon, by name: the listening Unix
// sockets of socket units (FileDescriptorName=) and regular files (OpenFile=), none if
// there are none. It takes the descriptors from the environment: a second call returns
// nothing.
func Passed() (map[string]*net.UnixListener, map[string]*os.File, error) {
	listeners, files := make(map[string]*net.UnixListener), make(map[string]*os.File)
	var errs []error
	for _, f := range activation.Files(true) {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && files[f.Name()] == nil {
			files[f.Name()] = f
			continue
		}
		l, err := net.FileListener(f)
		f.Close() // the listener has a duplicate
		if err != nil {
			errs = append(errs, fmt.Errorf("socket %s from systemd: %w", f.Name(), err))
			continue
		}
		u, ok := l.(*net.UnixListener)
		switch {
		case !ok:
			err = fmt.Errorf("socket %s from systemd is %s, not a stream socket of family unix", f.Name(), l.Addr().Network())
		case listeners[f.Name()] != nil:
			err = fmt.Errorf("systemd passes two sockets named %s; give each its FileDescriptorName", f.Name())
		}
		if err != nil {
			l.Close()
			errs = append(errs, err)
			continue
		}
		u.SetUnlinkOnClose(false) // the socket is systemd's
		listeners[f.Name()] = u
	}
	if len(errs) > 0 {
		for _, l := range listeners {
			l.Close()
		}
		for _, f := range files {
			f.Close()
		}
		return nil, nil, errors.Join(errs...)
	}
	return listeners, files, nil
}
