package systemd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	unitpath "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// A Unit is what systemd holds of a loaded unit.
type Unit struct {
	Name         string
	InvocationID string    // 32 hexadecimal digits; a new one each time the unit starts
	Started      time.Time // when this invocation left the inactive state
	Loaded       time.Time // when systemd has read all units last
	NeedsReload  bool      // a file of the unit has changed since
	FragmentPath string    // of the unit file
	DropInPaths  []string
	Service      *Service // nil for other types of units
}

// A Service is what systemd holds of a service and how it starts its main
// process (systemd.service(5), systemd.exec(5)). Specifiers are resolved,
// variables are not.
type Service struct {
	Type             string // "simple", "notify"
	NotifyAccess     string // "none", "main"
	MainPID          int    // 0 where there is none
	ExecStart        []Command
	EnvironmentFiles []string
	WorkingDirectory string
	RootDirectory    string
	RootImage        string
	PAMName          string
}

// A Command is a program and its arguments, of which the first is its name.
type Command struct {
	Path string
	Args []string
}

// IsManager reports whether systemd is PID 1 of this machine (sd_booted(3)).
func IsManager() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// ErrNoUnit means that systemd has no unit of that name loaded.
var ErrNoUnit = errors.New("systemd has no such unit")

// Units asks systemd about units, over its private socket, which is there
// without a message bus and for root only. Its methods are safe for concurrent
// use. The zero value is ready.
type Units struct {
	mu   sync.Mutex // guards conn
	conn *dbus.Conn // nil until needed, and after an error
}

// privateSocket is where systemd itself answers.
const privateSocket = "unix:path=/run/systemd/private"

const (
	service      = "org.freedesktop.systemd1"
	unitsPath    = "/org/freedesktop/systemd1/unit/"
	getAll       = "org.freedesktop.DBus.Properties.GetAll"
	getOne       = "org.freedesktop.DBus.Properties.Get"
	managerPath  = "/org/freedesktop/systemd1"
	managerIface = "org.freedesktop.systemd1.Manager"
	unitIface    = "org.freedesktop.systemd1.Unit"
	serviceIface = "org.freedesktop.systemd1.Service"
)

// Unit returns what systemd holds of the unit, or [ErrNoUnit].
func (u *Units) Unit(ctx context.Context, name string) (*Unit, error) {
	unit, err := u.unit(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("asking systemd about unit %s: %w", name, err)
	}
	return unit, nil
}

// Close ends the connection to systemd.
func (u *Units) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn == nil {
		return nil
	}
	err := u.conn.Close()
	u.conn = nil
	return err
}

func (u *Units) unit(ctx context.Context, name string) (*Unit, error) {
	p, err := u.properties(ctx, name, unitIface)
	if err != nil {
		return nil, err
	}
	if state := p.text("LoadState"); state != "loaded" {
		return nil, fmt.Errorf("%w: it is %s", ErrNoUnit, state)
	}
	loaded, err := u.loaded(ctx)
	if err != nil {
		return nil, err
	}
	unit := &Unit{
		Name:         p.text("Id"),
		InvocationID: hex.EncodeToString(p.bytes("InvocationID")),
		Started:      time.UnixMicro(int64(p.number("InactiveExitTimestamp"))),
		Loaded:       loaded,
		NeedsReload:  p.truth("NeedDaemonReload"),
		FragmentPath: p.text("FragmentPath"),
		DropInPaths:  p.list("DropInPaths"),
	}
	if strings.HasSuffix(name, ".service") {
		s, err := u.properties(ctx, name, serviceIface)
		if err != nil {
			return nil, err
		}
		unit.Service = &Service{
			Type:             s.text("Type"),
			NotifyAccess:     s.text("NotifyAccess"),
			MainPID:          int(s.number("MainPID")),
			ExecStart:        s.commands("ExecStart"),
			EnvironmentFiles: s.paths("EnvironmentFiles"),
			WorkingDirectory: s.text("WorkingDirectory"),
			RootDirectory:    s.text("RootDirectory"),
			RootImage:        s.text("RootImage"),
			PAMName:          s.text("PAMName"),
		}
		if s.err != nil {
			return nil, s.err
		}
	}
	return unit, p.err
}

// loaded returns when systemd began to read all units last, at start or at a
// daemon-reload.
func (u *Units) loaded(ctx context.Context) (time.Time, error) {
	var v dbus.Variant
	if err := u.call(ctx, managerPath, getOne, []any{managerIface, "UnitsLoadTimestamp"}, &v); err != nil {
		return time.Time{}, err
	}
	usec, ok := v.Value().(uint64)
	if !ok {
		return time.Time{}, errors.New("property UnitsLoadTimestamp is no number")
	}
	return time.UnixMicro(int64(usec)), nil
}

func (u *Units) properties(ctx context.Context, name, iface string) (*properties, error) {
	path := dbus.ObjectPath(unitsPath + unitpath.PathBusEscape(name))
	p := &properties{}
	err := u.call(ctx, path, getAll, []any{iface}, &p.values)
	return p, err
}

// call calls a method of systemd's. After an error of the connection it tries
// once more with a new one: systemd may have re-executed itself.
func (u *Units) call(ctx context.Context, path dbus.ObjectPath, method string, args []any, result ...any) error {
	var err error
	for range 2 {
		var conn *dbus.Conn
		if conn, err = u.connect(); err != nil {
			return err
		}
		err = conn.Object(service, path).CallWithContext(ctx, method, 0, args...).Store(result...)
		if _, answered := errors.AsType[dbus.Error](err); err == nil || answered || ctx.Err() != nil {
			return err
		}
		u.drop(conn)
	}
	return err
}

func (u *Units) connect() (*dbus.Conn, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn != nil {
		return u.conn, nil
	}
	conn, err := dbus.Dial(privateSocket)
	if err != nil {
		return nil, err
	}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err != nil {
		conn.Close()
		return nil, err
	}
	u.conn = conn
	return conn, nil
}

func (u *Units) drop(conn *dbus.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn == conn {
		u.conn = nil
	}
	conn.Close()
}

// properties of one interface. A property that is missing or of another type
// is remembered as the error, for it must not pass for an empty one.
type properties struct {
	values map[string]dbus.Variant
	err    error
}

func (p *properties) get(name string, into any) {
	v, ok := p.values[name]
	if !ok {
		p.err = errors.Join(p.err, fmt.Errorf("property %s is missing", name))
		return
	}
	if err := dbus.Store([]any{v.Value()}, into); err != nil {
		p.err = errors.Join(p.err, fmt.Errorf("property %s: %w", name, err))
	}
}

func (p *properties) text(name string) (s string)   { p.get(name, &s); return s }
func (p *properties) truth(name string) (b bool)    { p.get(name, &b); return b }
func (p *properties) list(name string) (l []string) { p.get(name, &l); return l }
func (p *properties) bytes(name string) (b []byte)  { p.get(name, &b); return b }
func (p *properties) number(name string) (n uint64) {
	switch v := p.values[name].Value().(type) {
	case uint32:
		return uint64(v)
	case uint64:
		return v
	}
	p.err = errors.Join(p.err, fmt.Errorf("property %s is missing or no number", name))
	return 0
}

// paths returns the paths of a list of paths and whether each may be missing.
func (p *properties) paths(name string) []string {
	var list []struct {
		Path     string
		Optional bool
	}
	p.get(name, &list)
	var paths []string
	for _, e := range list {
		paths = append(paths, e.Path)
	}
	return paths
}

func (p *properties) commands(name string) []Command {
	var list []struct {
		Path          string
		Args          []string
		IgnoreFailure bool
		Began         uint64
		BeganMono     uint64
		Ended         uint64
		EndedMono     uint64
		PID           uint32
		Code, Status  int32
	}
	p.get(name, &list)
	var commands []Command
	for _, e := range list {
		commands = append(commands, Command{Path: e.Path, Args: e.Args})
	}
	return commands
}
