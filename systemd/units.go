package systemd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
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
	Type             string    // "simple", "notify"
	NotifyAccess     string    // "none", "main"
	MainPID          int       // 0 if there is none
	MainStarted      time.Time // when systemd has noted the main process's start
	ExecStart        []Command
	EnvironmentFiles []string
	WorkingDirectory string
	RootDirectory    string
	RootImage        string
	PAMName          string
	LoadCredential   []Credential
}

// A Credential is one that a unit loads from a path (LoadCredential=).
type Credential struct{ ID, Path string }

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

// Units asks systemd about units: as root over its private socket, which is
// there without a message bus, and as another user over the bus, where systemd's
// name belongs to root by the bus's own policy. Its methods are safe for
// concurrent use. The zero value is ready.
type Units struct {
	mu   sync.Mutex // guards conn
	conn *dbus.Conn // nil until needed, and after an error
}

const (
	privateSocket = "/run/systemd/private"        // where systemd itself answers
	busSocket     = "/run/dbus/system_bus_socket" // where descriptors can be passed, too
)

const (
	service      = "org.freedesktop.systemd1"
	unitsPath    = "/org/freedesktop/systemd1/unit/"
	getOne       = "org.freedesktop.DBus.Properties.Get"
	getAll       = "org.freedesktop.DBus.Properties.GetAll"
	managerPath  = "/org/freedesktop/systemd1"
	managerIface = "org.freedesktop.systemd1.Manager"
	unitIface    = "org.freedesktop.systemd1.Unit"
	serviceIface = "org.freedesktop.systemd1.Service"
	everyIface   = "" // all of an object's, as they are at one moment
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
	// The time at which systemd last read its units comes last: it reveals a unit that was
	// read again in between.
	p, err := u.properties(ctx, query{objectOf(name), everyIface, ""}, query{managerPath, managerIface, "UnitsLoadTimestamp"})
	if err != nil {
		return nil, err
	}
	if state := p.text("LoadState"); state != "loaded" {
		return nil, fmt.Errorf("%w: it is %s", ErrNoUnit, state)
	}
	unit := &Unit{
		Name:         p.text("Id"),
		InvocationID: hex.EncodeToString(p.bytes("InvocationID")),
		Started:      time.UnixMicro(int64(p.number("InactiveExitTimestamp"))),
		Loaded:       time.UnixMicro(int64(p.number("UnitsLoadTimestamp"))),
		NeedsReload:  p.truth("NeedDaemonReload"),
		FragmentPath: p.text("FragmentPath"),
		DropInPaths:  p.list("DropInPaths"),
	}
	if strings.HasSuffix(name, ".service") {
		unit.Service = &Service{
			Type:             p.text("Type"),
			NotifyAccess:     p.text("NotifyAccess"),
			MainPID:          int(p.number("MainPID")),
			MainStarted:      time.UnixMicro(int64(p.number("ExecMainStartTimestamp"))),
			ExecStart:        p.commands("ExecStart"),
			EnvironmentFiles: p.paths("EnvironmentFiles"),
			WorkingDirectory: p.text("WorkingDirectory"),
			RootDirectory:    p.text("RootDirectory"),
			RootImage:        p.text("RootImage"),
			PAMName:          p.text("PAMName"),
			LoadCredential:   p.credentials("LoadCredential"),
		}
	}
	return unit, p.err
}

func objectOf(unit string) dbus.ObjectPath {
	return dbus.ObjectPath(unitsPath + unitpath.PathBusEscape(unit))
}

// A query asks for a property of one object's interface, or for all of them if
// it names none. The names that are asked for here differ between interfaces.
type query struct {
	path     dbus.ObjectPath
	iface    string
	property string
}

// properties asks all that is wanted without waiting in between. What costs
// systemd time is each message more than each property.
func (u *Units) properties(ctx context.Context, ask ...query) (*properties, error) {
	p := &properties{values: make(map[string]dbus.Variant)}
	return p, u.retry(ctx, func(conn *dbus.Conn) error {
		calls := make([]*dbus.Call, len(ask))
		for i, q := range ask {
			object := conn.Object(service, q.path)
			if q.property == "" {
				calls[i] = object.GoWithContext(ctx, getAll, 0, nil, q.iface)
			} else {
				calls[i] = object.GoWithContext(ctx, getOne, 0, nil, q.iface, q.property)
			}
		}
		for i, call := range calls {
			<-call.Done
			if err := p.add(call, ask[i].property); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *properties) add(call *dbus.Call, property string) error {
	if property == "" {
		return call.Store(&p.values) // adds to the map
	}
	var v dbus.Variant
	err := call.Store(&v)
	p.values[property] = v
	return err
}

// call calls a method of systemd's.
func (u *Units) call(ctx context.Context, path dbus.ObjectPath, method string, args []any, result ...any) error {
	return u.retry(ctx, func(conn *dbus.Conn) error {
		return conn.Object(service, path).CallWithContext(ctx, method, 0, args...).Store(result...)
	})
}

// retry does something with the connection. After an error of the connection
// it tries once more with a new one: systemd may have re-executed itself.
func (u *Units) retry(ctx context.Context, do func(*dbus.Conn) error) error {
	var err error
	for range 2 {
		var conn *dbus.Conn
		if conn, err = u.connect(ctx); err != nil {
			return err
		}
		err = do(conn)
		if _, answered := errors.AsType[dbus.Error](err); err == nil || answered || ctx.Err() != nil {
			return err
		}
		u.drop(conn)
	}
	return err
}

func (u *Units) connect(ctx context.Context) (*dbus.Conn, error) {
	u.mu.Lock()
	conn := u.conn
	u.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	path := privateSocket
	if os.Geteuid() != 0 {
		path = busSocket
	}
	// Not under the lock: each caller waits within its own time limit.
	conn, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn != nil { // another was faster
		conn.Close()
		return u.conn, nil
	}
	u.conn = conn
	return conn, nil
}

// dial connects to systemd or the bus, over which no descriptors can be passed.
func dial(ctx context.Context, path string) (*dbus.Conn, error) {
	socket, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { socket.SetDeadline(time.Unix(1, 0)) })
	conn, err := dbus.NewConn(socket)
	if err == nil {
		err = authenticate(conn, path == busSocket)
	}
	if err == nil && path != busSocket {
		err = wake(ctx, conn)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("connecting to %s: %w", path, err)
	}
	return conn, nil
}

func authenticate(conn *dbus.Conn, bus bool) error {
	err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))})
	if err == nil && bus {
		err = conn.Hello()
	}
	return err
}

// wake makes the first call on a connection to systemd itself, whose answer, an
// error, does not matter. systemd reads the end of the handshake together with
// up to 256 bytes that follow it, and a message that came whole with these waits
// until another one arrives; so this one is longer.
func wake(ctx context.Context, conn *dbus.Conn) error {
	err := conn.Object(service, managerPath).CallWithContext(ctx, getOne, 0, managerIface, strings.Repeat("x", 1024)).Err
	if _, answered := errors.AsType[dbus.Error](err); answered {
		return nil
	}
	return err
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

func (p *properties) credentials(name string) (list []Credential) {
	p.get(name, &list)
	return list
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
