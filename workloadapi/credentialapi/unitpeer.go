package credentialapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// A unitPeer is a process of systemd's that loads a credential for a unit. It is
// a [gate.Peer].
type unitPeer struct {
	pinned  *process.Peer
	manager UnitManager
	path    string // of the socket that it connected to
	unit    string // as the peer's socket is named
	name    string // of the credential
	field   string // of it; empty for all
}

// Process implements [gate.Peer].
func (p *unitPeer) Process() *process.Peer { return p.pinned }

// Challenge implements [gate.Peer]. The process was started for this credential, runs
// systemd's program to its end and shares its socket with no other process.
func (p *unitPeer) Challenge() (func(context.Context) error, error) {
	return func(context.Context) error { return p.pinned.Alive() }, nil
}

// Attest implements [gate.Peer]: the peer must be systemd acting for the unit.
func (p *unitPeer) Attest(ctx context.Context, a *process.Attester) (*process.Attested, error) {
	if p.pinned.UID() != 0 {
		return nil, fmt.Errorf("%w: it is a process of user %d", errNotManager, p.pinned.UID())
	}
	if err := a.OfManager(p.pinned); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotManager, err)
	}
	at, err := a.Attest(ctx, p.pinned)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", gate.ErrAttestation, err)
	}
	if at.Unit != p.unit {
		return ofUnit(at), fmt.Errorf("%w: it names %q, but is in the control group of %q", errNotManager, p.unit, at.Unit)
	}
	unit, err := p.manager.Unit(ctx, p.unit)
	if err != nil {
		return ofUnit(at), fmt.Errorf("%w: %w", gate.ErrAttestation, err)
	}
	if !p.loads(unit) {
		return ofUnit(at), fmt.Errorf("%w: systemd has no LoadCredential= of %s that names this credential and %s", errNotManager, p.unit, p.path)
	}
	return ofUnit(at), nil
}

// isNamed reports whether an entry is for the peer's unit.
func (p *unitPeer) isNamed(e identity.Entry) bool { return namesUnit(e, p.unit) }

// errNotManager means that it is not systemd which asks, or not for that unit.
var errNotManager = errors.New("the peer is not systemd acting for the unit it names")

// parse reads what the peer's socket is named.
func (p *unitPeer) parse(conn *net.UnixConn) error {
	name, err := peerName(conn)
	if err != nil {
		return fmt.Errorf("reading the name of the peer's socket: %w", err)
	}
	p.unit, p.name, p.field, err = splitUnitName(name)
	return err
}

// splitUnitName reads a random number, "/unit/", the unit, "/" and the
// credential's ID (systemd.exec(5)). The ID is the credential's name, or that and
// one of its fields, as NAME@FIELD.
func splitUnitName(name string) (unit, credential, field string, err error) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || parts[1] != "unit" || slices.Contains(parts, "") || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", "", "", fmt.Errorf("%w: its socket does not have the name that systemd gives for a system unit: %q", errNotManager, name)
	}
	credential, field, _ = strings.Cut(parts[3], "@")
	return parts[2], credential, field, nil
}

// peerName returns the abstract name of the peer's socket without its zero byte.
// The net package shows that byte as "@", with which the path of a file could
// begin as well.
func peerName(conn *net.UnixConn) (name string, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	var addr unix.RawSockaddrUnix
	size := uint32(unsafe.Sizeof(addr))
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, e := unix.Syscall(unix.SYS_GETPEERNAME, fd, uintptr(unsafe.Pointer(&addr)), uintptr(unsafe.Pointer(&size)))
		errno = unix.Errno(e)
	})
	switch {
	case err != nil:
		return "", err
	case errno != 0:
		return "", errno
	}
	n := int(size) - int(unsafe.Offsetof(addr.Path))
	if n < 2 || n > len(addr.Path) || addr.Path[0] != 0 {
		return "", fmt.Errorf("%w: its socket has no abstract name", errNotManager)
	}
	b := make([]byte, n-1)
	for i := range b {
		b[i] = byte(addr.Path[i+1])
	}
	return string(b), nil
}

// ofUnit leaves of what was attested what holds for the unit's own processes,
// too: the rest is about systemd's, which is root.
func ofUnit(at *process.Attested) *process.Attested {
	unit := *at
	unit.Selectors = slices.DeleteFunc(slices.Clone(at.Selectors), func(sel attest.Selector) bool { return sel.Type != "systemd" })
	return &unit
}

// namesUnit reports whether the entry is for this unit alone: one that wants less
// was written for processes.
func namesUnit(e identity.Entry, unit string) bool {
	return e.Selectors.Has(attest.Selector{Type: "systemd", Value: "id:" + unit})
}

// loads reports whether systemd has the unit load this credential from here.
func (p *unitPeer) loads(u *systemd.Unit) bool {
	if u.Service == nil {
		return false
	}
	id := p.name
	if p.field != "" {
		id += "@" + p.field
	}
	return slices.Contains(u.Service.LoadCredential, systemd.Credential{ID: id, Path: p.path})
}

// nearestShown bounds the entries that are looked at for why there is none.
const nearestShown = 5

// whyNoEntry says what else an entry that names the unit requires.
func whyNoEntry(g *gate.Gate, at *process.Attested, unit string) string {
	for _, m := range g.NearMisses(at, nearestShown) {
		if !namesUnit(m.Entry, unit) {
			continue
		}
		why := fmt.Sprintf("%s names %s and also wants %s", m.Entry.Place(), unit, strings.Join(m.Missing.Strings(), ", "))
		if slices.ContainsFunc(m.Missing, func(sel attest.Selector) bool { return sel.Type != "systemd" }) {
			why += "; of a unit that is starting nothing is known but what systemd holds of it: write one beside it with systemd: selectors alone"
		}
		return why
	}
	return fmt.Sprintf("none has the selector systemd:id:%s", unit)
}
