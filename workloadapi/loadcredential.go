package workloadapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/systemd"
)

// A UnitManager says what systemd holds of a unit.
type UnitManager interface {
	Unit(ctx context.Context, name string) (*systemd.Unit, error)
}

const (
	maxUnitConns  = 64               // at a time; the rest wait
	unitTime      = 60 * time.Second // for one: systemd gives a unit 90 s to start
	maxCredential = 1 << 20          // bytes that systemd takes (systemd.exec(5))
)

// ServeUnits answers systemd on l, the socket that a unit names with
// LoadCredential=NAME:PATH, until the context ends, and closes l.
//
// systemd connects before it runs the unit's program and says in the name of its
// own socket for which unit and credential (systemd.exec(5)). That name is a
// claim: the peer has to be PID 1's own process, in that unit's control group,
// and systemd has to say that the unit loads this credential from here. What the
// unit is granted follows from an entry that names it; of a program that does
// not run yet nothing is known but what systemd holds of its unit. The lease
// ends with the unit.
func (s *Server) ServeUnits(ctx context.Context, l *net.UnixListener, units UnitManager) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	turns := semaphore.NewWeighted(maxUnitConns)
	defer turns.Acquire(context.Background(), maxUnitConns) // those in progress finish, in unitTime at most
	for {
		if err := turns.Acquire(ctx, 1); err != nil {
			return nil
		}
		conn, err := l.AcceptUnix()
		if err != nil {
			turns.Release(1)
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
				s.o.Logger.Error("accepting a connection of systemd's", "err", err)
				select {
				case <-time.After(100 * time.Millisecond): // descriptors may come free
				case <-ctx.Done():
				}
				continue
			}
			return fmt.Errorf("accepting connections of systemd's: %w", err)
		}
		go func() {
			defer turns.Release(1)
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(unitTime))
			ctx, cancel := context.WithTimeout(ctx, unitTime)
			defer cancel()
			s.answerUnit(ctx, conn, units, l.Addr().String())
		}()
	}
}

// answerUnit writes the credential. systemd takes an empty answer for an empty
// credential and starts the unit with it, but gives up on one that is too long:
// so that is what a refusal is.
func (s *Server) answerUnit(ctx context.Context, conn *net.UnixConn, units UnitManager, path string) {
	r := &unitRequest{requestID: rand.Text(), arrived: time.Now()}
	g, value, err := s.forUnit(ctx, conn, r, units, path)
	if err != nil {
		s.o.Logger.Warn("a unit is refused a credential", "unit", r.unit, "credential", r.name, "request", r.requestID, "err", err)
		line := fmt.Sprintf("vouchd refuses this credential; vouch log show --request %s says why\n", r.requestID)
		conn.Write(bytes.Repeat([]byte(line), maxCredential/len(line)+2)) // systemd stops reading in between
		return
	}
	defer g.Wipe()
	defer clear(value)
	if _, err := conn.Write(value); err != nil {
		s.o.Credentials.Abandon(g.Lease.ID, "the start of its unit was cut before it was delivered")
	}
}

// A unitRequest is one credential that systemd loads for a unit.
type unitRequest struct {
	requestID string
	arrived   time.Time
	peer      *process.Peer
	unit      string // as the peer's socket is named
	name      string // of the credential
	field     string // of it; empty for all
	caller    *caller
}

// forUnit leases the credential and returns what to write. Refusals are
// recorded.
func (s *Server) forUnit(ctx context.Context, conn *net.UnixConn, r *unitRequest, units UnitManager, path string) (*credential.Grant, []byte, error) {
	var err error
	if r.peer, err = process.PeerOf(conn); err != nil {
		return nil, nil, err // it has gone
	}
	defer r.peer.Close()
	if err := r.parse(conn); err != nil {
		return nil, nil, s.refuseUnit(ctx, r, err)
	}
	l, err := s.unitLease(ctx, r, units, path)
	if err != nil {
		return nil, nil, s.refuseUnit(ctx, r, err)
	}
	g, err := s.o.Credentials.Grant(ctx, l.holder, l.ask)
	if err != nil {
		return nil, nil, err // which is recorded
	}
	// The source may have taken a while.
	again, err := s.unitLease(ctx, r, units, path)
	if err == nil && (again.entry.ID != l.entry.ID || !slices.Contains(again.entry.Credentials, r.name)) {
		err = fmt.Errorf("%w: %q to %s any more", credential.ErrNotGranted, r.name, l.entry.ID)
	}
	var value []byte
	if err == nil {
		value, err = unitValue(g, r.field)
	}
	if err != nil {
		g.Wipe()
		s.o.Credentials.Abandon(g.Lease.ID, "its unit did not get it: "+err.Error())
		return nil, nil, s.refuseUnit(ctx, r, err)
	}
	return g, value, nil
}

// parse reads what the peer's socket is named.
func (r *unitRequest) parse(conn *net.UnixConn) error {
	name, err := peerName(conn)
	if err != nil {
		return fmt.Errorf("reading the name of the peer's socket: %w", err)
	}
	r.unit, r.name, r.field, err = splitUnitName(name)
	return err
}

// splitUnitName reads a random number, "/unit/", the unit, "/" and the
// credential's ID (systemd.exec(5)). The ID is the credential's name, or that and
// one of its fields, as NAME@FIELD.
func splitUnitName(name string) (unit, credential, field string, err error) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || parts[1] != "unit" || slices.Contains(parts, "") || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", "", "", fmt.Errorf("%w: its socket is not named as systemd does for a system unit: %q", errNotManager, name)
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

// unitLease establishes who asks and says what for. It is called again once the
// source has answered.
func (s *Server) unitLease(ctx context.Context, r *unitRequest, units UnitManager, path string) (*leasing, error) {
	if err := s.unitCaller(ctx, r, units, path); err != nil {
		return nil, err
	}
	entry := r.caller.entries[0]
	if i := slices.IndexFunc(r.caller.entries, func(e identity.Entry) bool { return slices.Contains(e.Credentials, r.name) }); i >= 0 {
		entry = r.caller.entries[i]
	}
	h := credential.Holder{ID: entry.ID, Process: credential.Process{Unit: r.unit}, Identity: &workloadIdentity{s, r.caller, entry}}
	if slices.Contains(entry.Credentials, r.name) {
		var err error
		if h.Process, h.Stop, err = s.unitHolder(ctx, r); err != nil {
			return nil, err
		}
	}
	return &leasing{r.caller, h, entry, credential.Ask{
		Name: r.name, Granted: entry.Credentials, RequestID: r.requestID, Exposure: credential.InFile, Asker: r.caller.asker(entry),
	}}, nil
}

// unitHolder returns what the lease ends with: not the process that asks, which
// is gone before the unit's program runs.
func (s *Server) unitHolder(ctx context.Context, r *unitRequest) (p credential.Process, stop <-chan struct{}, err error) {
	at := r.caller.process
	if d, ok := s.o.Credentials.Definitions().Get(r.name); ok && d.Bind == credential.BindProcess {
		return p, nil, fmt.Errorf("credential %s ends with the process that asks for it, which is systemd's and gone before the unit's runs; give its definition bind: unit", r.name)
	}
	p = credential.Process{PID: at.PID, StartTime: at.StartTime, BootID: s.o.Holders.bootID, Unit: at.Unit}
	if p.Invocation, err = s.o.Attester.Invocation(ctx, r.peer, at); err == nil {
		stop, err = s.o.Holders.stop(ctx, p.Unit, p.Invocation)
	}
	if err != nil {
		return p, nil, fmt.Errorf("%w: %w", errNoUnit, err)
	}
	return p, stop, nil
}

// errNotManager means that it is not systemd which asks, or not for that unit.
var errNotManager = errors.New("the peer is not systemd, at work for the unit that it names")

// unitCaller attests the peer as systemd at work for the unit, and finds what
// that unit is entitled to.
func (s *Server) unitCaller(ctx context.Context, r *unitRequest, units UnitManager, path string) error {
	if r.peer.UID() != 0 {
		return fmt.Errorf("%w: it is a process of user %d", errNotManager, r.peer.UID())
	}
	if err := s.o.Attester.OfManager(r.peer); err != nil {
		return fmt.Errorf("%w: %w", errNotManager, err)
	}
	at, err := s.o.Attester.Attest(ctx, r.peer)
	if err != nil {
		return fmt.Errorf("%w: %w", errAttestation, err)
	}
	r.caller = &caller{requestID: r.requestID, arrived: r.arrived, process: ofUnit(at)}
	if at.Unit != r.unit {
		return fmt.Errorf("%w: it names %q and is in the control group of %q", errNotManager, r.unit, at.Unit)
	}
	unit, err := units.Unit(ctx, r.unit)
	if err != nil {
		return fmt.Errorf("%w: %w", errAttestation, err)
	}
	if !loads(unit, r, path) {
		return fmt.Errorf("%w: systemd has no LoadCredential= of %s that names this credential and %s", errNotManager, r.unit, path)
	}
	if err := s.refusal(); err != nil {
		return err
	}
	r.caller.entries = slices.DeleteFunc(s.match(r.caller.process), func(e identity.Entry) bool { return !namesUnit(e, r.unit) })
	if len(r.caller.entries) == 0 {
		return fmt.Errorf("%w: %s", errNoIdentity, s.whyNoEntry(r))
	}
	return nil
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

func loads(u *systemd.Unit, r *unitRequest, path string) bool {
	if u.Service == nil {
		return false
	}
	id := r.name
	if r.field != "" {
		id += "@" + r.field
	}
	return slices.Contains(u.Service.LoadCredential, systemd.Credential{ID: id, Path: path})
}

// whyNoEntry says what an entry that names the unit wants beside.
func (s *Server) whyNoEntry(r *unitRequest) string {
	for _, m := range s.entries.Load().NearMisses(s.selectors(r.caller.process), nearestShown) {
		if !namesUnit(m.Entry, r.unit) {
			continue
		}
		why := fmt.Sprintf("%v names %s and also wants %s", m.Entry.Pos, r.unit, strings.Join(m.Missing.Strings(), ", "))
		if slices.ContainsFunc(m.Missing, func(sel attest.Selector) bool { return sel.Type != "systemd" }) {
			why += "; of a unit that is starting nothing is known but what systemd holds of it: write one beside it with systemd: selectors alone"
		}
		return why
	}
	return fmt.Sprintf("none has the selector systemd:id:%s", r.unit)
}

// refuseUnit records why a unit gets nothing.
func (s *Server) refuseUnit(ctx context.Context, r *unitRequest, cause error) error {
	rec := audit.Record{
		Event: audit.EventLeaseIntent, RequestID: r.requestID, Outcome: audit.Denied, Reason: cause.Error(), Duration: time.Since(r.arrived),
		Workload:   &audit.Workload{PID: r.peer.PID(), UID: r.peer.UID(), GID: r.peer.GID(), Unit: r.unit},
		Credential: &audit.Credential{Name: r.name},
	}
	if r.caller != nil {
		rec.Workload = r.caller.workload()
	}
	suppressed, ok := s.refusals.allow(r.peer.UID())
	if !ok {
		return cause
	}
	if suppressed > 0 {
		rec.Reason = fmt.Sprintf("%s (and %d refusals of this user since the last record)", rec.Reason, suppressed)
	}
	return errors.Join(cause, s.o.Log.Append(context.WithoutCancel(ctx), rec))
}

// unitValue is what the file in the unit's credentials directory is to hold: the
// one field, the one that there is, or all of them in JSON.
func unitValue(g *credential.Grant, field string) ([]byte, error) {
	var value []byte
	switch i := slices.IndexFunc(g.Fields, func(f credential.Field) bool { return f.Name == field }); {
	case field != "" && i < 0:
		return nil, fmt.Errorf("%w: credential %s has no field %q", credential.ErrParameter, g.Lease.Credential, field)
	case field != "":
		value = slices.Clone(g.Fields[i].Value.Reveal())
	case len(g.Fields) == 1:
		value = slices.Clone(g.Fields[0].Value.Reveal())
	default:
		all := make(map[string]string, len(g.Fields))
		for _, f := range g.Fields {
			if !utf8.Valid(f.Value.Reveal()) {
				return nil, fmt.Errorf("field %s of %s is not text, so that JSON cannot hold it; name one field, as %[2]s@FIELD", f.Name, g.Lease.Credential)
			}
			all[f.Name] = string(f.Value.Reveal())
		}
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(all); err != nil {
			return nil, err
		}
		value = b.Bytes()
	}
	if len(value) > maxCredential {
		clear(value)
		return nil, fmt.Errorf("credential %s has more than the %d bytes that systemd takes", g.Lease.Credential, maxCredential)
	}
	return value, nil
}
