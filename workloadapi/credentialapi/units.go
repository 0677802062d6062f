package credentialapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/gate"
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

// Units answers systemd when it loads credentials for units.
type Units struct {
	API     *API
	Manager UnitManager
	Logger  *slog.Logger
}

// Serve answers systemd on l, the socket that a unit names with LoadCredential=NAME:PATH,
// until the context ends, and closes l.
//
// systemd connects before it runs the unit's program, and the name of its own socket says for
// which unit and credential (systemd.exec(5)). That name is only a claim: the peer must be PID
// 1's own process, in that unit's control group, and systemd must say that the unit loads this
// credential from here. An entry that names the unit then decides what it is granted. The
// program is not running yet, so nothing is known about it except what systemd holds about its
// unit. The lease ends with the unit.
func (u *Units) Serve(ctx context.Context, l *net.UnixListener) error {
	return gate.Accept(ctx, l, maxUnitConns, u.Logger, func(conn *net.UnixConn) {
		conn.SetDeadline(time.Now().Add(unitTime))
		ctx, cancel := context.WithTimeoutCause(ctx, unitTime, errUnitTime)
		defer cancel()
		u.answer(ctx, conn, l.Addr().String())
	})
}

var (
	errUnitTime = errors.New("the unit waited too long")
	errCut      = errors.New("the start of its unit was aborted before delivery")
)

// answer writes the credential. systemd takes an empty answer for an empty
// credential and starts the unit with it, but gives up on one that is too long,
// which is what a refusal is.
func (u *Units) answer(ctx context.Context, conn *net.UnixConn, path string) {
	p, err := process.PeerOf(conn)
	if err != nil {
		u.refuse(conn, &unitPeer{}, "", err) // it has gone
		return
	}
	defer p.Close()
	peer := &unitPeer{pinned: p, manager: u.Manager, path: path}
	named := peer.parse(conn)
	r := gate.Request{
		Peer: peer, Event: audit.EventLeaseIntent, Counts: peer.isNamed, Unit: peer.unit, Credential: peer.name,
		Lacks: func(at *process.Attested) string { return whyNoEntry(u.API.gate, at, peer.unit) },
	}
	c, err := u.admit(ctx, r, named)
	if err == nil {
		err = u.deliver(ctx, conn, c, peer)
	}
	if err != nil && !errors.Is(err, errCut) {
		u.refuse(conn, peer, gate.RequestOf(err), err)
	}
}

// admit refuses a peer whose socket is not named as systemd does.
func (u *Units) admit(ctx context.Context, r gate.Request, named error) (*gate.Caller, error) {
	if named != nil {
		return nil, u.API.gate.Begin(r).Refuse(ctx, r.Event, named)
	}
	return u.API.gate.Admit(ctx, r)
}

func (u *Units) refuse(conn *net.UnixConn, p *unitPeer, requestID string, err error) {
	u.Logger.Warn("a unit is refused a credential", "unit", p.unit, "credential", p.name, "request", requestID, "err", err)
	line := fmt.Sprintf("vouchd refuses this credential; vouch log show --request %s says why\n", requestID)
	conn.Write(bytes.Repeat([]byte(line), maxCredential/len(line)+2)) // systemd stops reading in between
}

// deliver leases the credential and writes it.
func (u *Units) deliver(ctx context.Context, conn *net.UnixConn, c *gate.Caller, p *unitPeer) error {
	if err := c.Prove(ctx); err != nil {
		return err
	}
	r, err := u.request(ctx, c, p.name)
	if err != nil {
		return c.Refuse(ctx, audit.EventLeaseIntent, err)
	}
	return gate.Obtain(ctx, c, gate.Slow[*credential.Grant]{
		Get:   func(ctx context.Context, hand func(*credential.Grant) error) error { return u.lease(ctx, r, hand) },
		Still: r.still,
		Deliver: func(g *credential.Grant) error {
			value, err := unitValue(g, p.field)
			if err != nil {
				return c.Refuse(ctx, audit.EventLeaseIntent, err)
			}
			defer clear(value)
			if _, err := conn.Write(value); err != nil {
				return errCut
			}
			return nil
		},
		Event: audit.EventLeaseIntent,
	})
}

// lease leases a credential to a unit, and ends what was not delivered.
func (u *Units) lease(ctx context.Context, r *request, hand func(*credential.Grant) error) error {
	g, err := u.API.leases.Grant(ctx, r.holder, r.ask)
	if err != nil {
		return err
	}
	defer g.Wipe()
	switch err := hand(g); {
	case errors.Is(err, errCut):
		u.API.leases.Abandon(g.Lease.ID, err.Error())
		return err
	case err != nil:
		u.API.leases.Abandon(g.Lease.ID, "its unit did not get it: "+err.Error())
		return err
	}
	return nil
}

// request says what a unit asks for, and as which identity. Its lease ends with the unit,
// not with the process that asks, which exits before the unit's program runs.
func (u *Units) request(ctx context.Context, c *gate.Caller, name string) (*request, error) {
	e := granting(c, name)
	h := credential.Holder{ID: e.ID, Process: credential.Process{Unit: c.Process.Unit}, Identity: &workloadIdentity{u.API, c, e}}
	if slices.Contains(e.Credentials, name) {
		if d, ok := u.API.leases.Definitions().Get(name); ok && d.Bind == credential.BindProcess {
			return nil, fmt.Errorf("credential %s ends with the process that asks for it, here systemd's, which exits before the unit's process runs; set bind: unit in its definition", name)
		}
		invocation, stop, err := u.API.unitOf(ctx, c)
		if err != nil {
			return nil, err
		}
		h.Process = credential.Process{PID: c.Process.PID, StartTime: c.Process.StartTime, BootID: u.API.pins.bootID, Unit: c.Process.Unit, Invocation: invocation}
		h.Stop = stop
	}
	return &request{c, h, e, credential.Ask{
		Name: name, Granted: e.Credentials, RequestID: c.RequestID, Exposure: credential.InFile, Asker: asker(c, e),
	}}, nil
}
