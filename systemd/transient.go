package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// A Transient is a service that systemd makes for one run of one program.
type Transient struct {
	Name        string // of the unit
	Description string
	Slice       string
	Command     []string // the program's absolute path and its arguments, none of which is expanded
	User        string
	Directory   string
	Environment []string    // NAME=value
	Files       [3]*os.File // standard input, output and error
	Alone       bool        // without a network, and with what vouch exec --sandbox needs to make one that leads to it alone
}

// SandboxResolver is the resolv.conf of a service that is alone; packages install it.
const SandboxResolver = "/usr/share/vouchd/sandbox-resolv.conf"

// stopTimeout is how long a transient service has to end between SIGTERM and SIGKILL:
// nobody is waiting for it by then.
const stopTimeout = 10 * time.Second

// Start starts the service, which has no privileges to gain. systemd allows that to root
// only. It returns once systemd has accepted the unit; [Units.Run] reports how it goes.
// The unit stays known until [Units.Remove]. If this process is in a unit, the service
// also ends when that unit does: nobody would be left to tell the caller.
func (u *Units) Start(ctx context.Context, t Transient) error {
	if len(t.Command) == 0 {
		return fmt.Errorf("starting unit %s: no command", t.Name)
	}
	type command struct {
		Path  string
		Args  []string
		Flags []string
	}
	p := []property{
		{"Description", dbus.MakeVariant(t.Description)},
		{"Slice", dbus.MakeVariant(t.Slice)},
		{"Type", dbus.MakeVariant("exec")},
		{"RemainAfterExit", dbus.MakeVariant(true)}, // to be asked for the exit status
		{"NotifyAccess", dbus.MakeVariant("none")},
		{"TimeoutStopUSec", dbus.MakeVariant(uint64(stopTimeout.Microseconds()))},
		{"NoNewPrivileges", dbus.MakeVariant(true)},
		{"ExecStartEx", dbus.MakeVariant([]command{{t.Command[0], t.Command, []string{"no-env-expand"}}})},
		{"User", dbus.MakeVariant(t.User)},
		{"WorkingDirectory", dbus.MakeVariant(t.Directory)},
		{"Environment", dbus.MakeVariant(t.Environment)},
	}
	if t.Alone {
		p = append(p, aloneProperties()...)
	}
	for i, name := range []string{"StandardInputFileDescriptor", "StandardOutputFileDescriptor", "StandardErrorFileDescriptor"} {
		p = append(p, property{name, dbus.MakeVariant(dbus.UnixFD(t.Files[i].Fd()))})
	}
	type aux struct {
		Name       string
		Properties []property
	}
	// systemd takes no descriptors on its private socket.
	conn, err := dbus.Dial("unix:path=" + busSocket)
	if err != nil {
		return fmt.Errorf("starting unit %s: %w", t.Name, err)
	}
	defer conn.Close()
	if err := authenticate(conn, true); err != nil {
		return fmt.Errorf("starting unit %s: %w", t.Name, err)
	}
	own, err := ownUnit(ctx, conn)
	if err != nil {
		return fmt.Errorf("starting unit %s: which unit is this process in: %w", t.Name, err)
	}
	if own != "" {
		p = append(p, property{"BindsTo", dbus.MakeVariant([]string{own})}, property{"After", dbus.MakeVariant([]string{own})})
	}
	err = conn.Object(service, managerPath).CallWithContext(ctx, managerIface+".StartTransientUnit", 0, t.Name, "fail", p, []aux{}).Err
	if e, ok := errors.AsType[dbus.Error](err); ok && strings.Contains(e.Name, "Authorization") || ok && strings.HasSuffix(e.Name, ".AccessDenied") {
		return fmt.Errorf("starting unit %s: systemd does not let user %d start units (%w); run this as root", t.Name, os.Geteuid(), err)
	}
	if err != nil {
		return fmt.Errorf("starting unit %s: %w", t.Name, err)
	}
	return nil
}

// A property is one of a unit, as systemd's D-Bus interface has them.
type property struct {
	Name  string
	Value dbus.Variant
}

// aloneProperties are those of a service that is alone. Its capabilities are good for its own
// network, and vouch gives them up before it executes the command. Of /run there is what vouch
// asks the daemon by; the command cannot make Unix sockets.
func aloneProperties() []property {
	type temporary struct{ Path, Options string }
	type bind struct {
		Source, Destination string
		IgnoreMissing       bool
		Flags               uint64
	}
	type families struct {
		Allow bool
		Names []string
	}
	const capabilities = uint64(1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_NET_BIND_SERVICE)
	return []property{
		{"PrivateNetwork", dbus.MakeVariant(true)},
		{"AmbientCapabilities", dbus.MakeVariant(capabilities)},
		{"CapabilityBoundingSet", dbus.MakeVariant(capabilities)},
		{"PrivateTmp", dbus.MakeVariant(true)},
		{"PrivateDevices", dbus.MakeVariant(true)},
		{"ProtectProc", dbus.MakeVariant("invisible")},
		{"ProtectKernelTunables", dbus.MakeVariant(true)},
		{"TemporaryFileSystem", dbus.MakeVariant([]temporary{{"/run", "mode=755"}, {"/run/vouch", "mode=1777"}})},
		{"BindReadOnlyPaths", dbus.MakeVariant([]bind{
			{"/run/vouchd", "/run/vouchd", false, 0}, {SandboxResolver, "/etc/resolv.conf", false, 0}})},
		{"RestrictAddressFamilies", dbus.MakeVariant(families{true, []string{"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"}})},
	}
}

// ownUnit returns the unit that this process is in, "" for none.
func ownUnit(ctx context.Context, conn *dbus.Conn) (string, error) {
	var path dbus.ObjectPath
	err := conn.Object(service, managerPath).CallWithContext(ctx, managerIface+".GetUnitByPID", 0, uint32(os.Getpid())).Store(&path)
	if e, ok := errors.AsType[dbus.Error](err); ok && e.Name == service+".NoUnitForPID" {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var id dbus.Variant
	if err := conn.Object(service, path).CallWithContext(ctx, getOne, 0, unitIface, "Id").Store(&id); err != nil {
		return "", err
	}
	name, ok := id.Value().(string)
	if !ok {
		return "", fmt.Errorf("property Id is of type %T", id.Value())
	}
	return name, nil
}

// A Run is how far a service's main process has come.
type Run struct {
	PID    int  // of the main process while it runs, else 0
	Ended  bool // it has, or could not be started
	Status int  // its exit status; or the signal that ended it
	Signal bool // Status is a signal
}

// Run returns how far the service has come.
func (u *Units) Run(ctx context.Context, name string) (Run, error) {
	p, err := u.properties(ctx, query{objectOf(name), everyIface, ""})
	if err != nil {
		return Run{}, fmt.Errorf("asking systemd about unit %s: %w", name, err)
	}
	var code, status int32
	p.get("ExecMainCode", &code)
	p.get("ExecMainStatus", &status)
	r := Run{PID: int(p.number("MainPID"))}
	state, active, result := p.text("LoadState"), p.text("ActiveState"), p.text("Result")
	if p.err != nil {
		return Run{}, fmt.Errorf("asking systemd about unit %s: %w", name, p.err)
	}
	const exited, killed, dumped = 1, 2, 3 // CLD_EXITED and so on, waitid(2)
	switch {
	case code == exited:
		r.Ended, r.Status = true, int(status)
	case code == killed, code == dumped:
		r.Ended, r.Status, r.Signal = true, int(status), true
	case active == "failed" || state != "loaded":
		return Run{}, fmt.Errorf("unit %s could not be started: %s", name, result)
	}
	return r, nil
}

// Signal sends a signal to the service's main process.
func (u *Units) Signal(ctx context.Context, name string, signal int32) error {
	err := u.call(ctx, managerPath, managerIface+".KillUnit", []any{name, "main", signal})
	if err != nil {
		return fmt.Errorf("sending signal %d to unit %s: %w", signal, name, err)
	}
	return nil
}

// Remove stops the service, with all of its processes, and forgets it.
func (u *Units) Remove(ctx context.Context, name string) error {
	var job dbus.ObjectPath
	if err := u.call(ctx, managerPath, managerIface+".StopUnit", []any{name, "replace"}, &job); err != nil && !isNoUnit(err) {
		return fmt.Errorf("stopping unit %s: %w", name, err)
	}
	// A failed unit stays until its failure is reset.
	if err := u.call(ctx, managerPath, managerIface+".ResetFailedUnit", []any{name}); err != nil && !isNoUnit(err) {
		return fmt.Errorf("removing unit %s: %w", name, err)
	}
	return nil
}

func isNoUnit(err error) bool {
	e, ok := errors.AsType[dbus.Error](err)
	return ok && e.Name == "org.freedesktop.systemd1.NoSuchUnit"
}
