package lease

import (
	"context"
	"fmt"
	"time"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/secret"
)

// A purpose is what a lease is for.
type purpose string

const (
	forValue      purpose = ""
	forHandle     purpose = "handle"     // with it its holder connects; there is nothing upstream
	forConnection purpose = "connection" // it ends with one connection, and so with the daemon
)

// seated is what the lease of a seat is for.
func seated(d *credential.Definition) purpose {
	if d.Database != nil {
		return forHandle
	}
	return forValue
}

// Connect leases a credential for one connection to a database, which the caller ends with
// [Manager.Abandon]. After a connection of the holder's that was revoked, the error is
// [credential.ErrRevoked], until the holder asks for another handle.
func (m *Manager) Connect(ctx context.Context, h credential.Holder, a credential.Ask) (*Call, error) {
	return m.drilled(ctx, h, a, m.calls.connect)
}

func (c *calls) connect(ctx context.Context, h credential.Holder, a credential.Ask) (*Call, error) {
	d, ok := c.book.definitions().Get(a.Name)
	if !ok {
		return nil, fmt.Errorf("%w: %s; add it to the credentials directory", credential.ErrUndefined, a.Name)
	}
	if d.Database == nil {
		return nil, fmt.Errorf("%w: %s has no database block, and no connections are made with it", credential.ErrNotGranted, a.Name)
	}
	s := c.seatOf(h, d)
	if reason, ok := c.revokedOf(s); ok {
		return nil, fmt.Errorf("%w: %s: %s", credential.ErrRevoked, d.Name, reason)
	}
	g, err := c.grants.grantAs(ctx, h, a, forConnection)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	l := c.book.leases[g.Lease.ID]
	if l == nil || l.ending() {
		g.Wipe()
		return nil, fmt.Errorf("%w: %s", credential.ErrHolderGone, d.Name)
	}
	s.connections = append(s.connections, l)
	why := func() string {
		c.book.mu.Lock()
		defer c.book.mu.Unlock()
		return l.Reason
	}
	return &Call{Lease: l.Lease, Fields: g.Fields, Over: l.overChannel(), New: true, why: why}, nil
}

// revokedOf reports whether somebody revoked what a holder had, and forgets connections that
// have ended otherwise.
func (c *calls) revokedOf(s *seat) (reason string, revoked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	if l := s.lease; l != nil && l.cutOff() {
		return l.Reason, true
	}
	left := s.connections[:0]
	for _, l := range s.connections {
		if l.cutOff() {
			s.lease = l
			return l.Reason, true
		}
		if !l.ending() {
			left = append(left, l)
		}
	}
	clear(s.connections[len(left):])
	s.connections = left
	return "", false
}

// grantHandle is [Manager.Grant] for a credential that connections are made with. The value
// comes along where its definition says so.
func (c *calls) grantHandle(ctx context.Context, h credential.Holder, a credential.Ask, d *credential.Definition) (*credential.Grant, error) {
	s := c.seatOf(h, d)
	s.mu.Lock()
	defer s.mu.Unlock()
	handle := credential.Field{Name: HandleField, Value: secret.Of([]byte(c.handle("", d.Name, h.Process)))}
	c.book.mu.Lock()
	s.connections = nil // what was revoked of them no longer counts
	c.book.mu.Unlock()
	if d.Deliver == credential.DeliverBoth {
		g, err := c.grants.grant(ctx, h, a)
		if err != nil {
			return nil, err
		}
		c.book.mu.Lock()
		s.lease = c.book.leases[g.Lease.ID]
		c.book.mu.Unlock()
		g.Fields = append(g.Fields, handle)
		return g, nil
	}
	if _, err := c.sit(ctx, s, h, a, d, true); err != nil {
		return nil, err
	}
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	return &credential.Grant{Lease: s.lease.Lease, Fields: []credential.Field{handle}}, nil
}

// broker returns what obtains and ends a lease.
func (l *lease) broker() credential.Broker {
	if l.purpose == forHandle {
		return handleOnly{l.source.Traits}
	}
	return l.source.Source()
}

// handleOnly is the broker of leases that have nothing upstream.
type handleOnly struct{ traits credential.Traits }

func (h handleOnly) Traits() credential.Traits { return h.traits }

func (handleOnly) Plan(context.Context, credential.Request) (credential.Plan, error) {
	return credential.Plan{Handle: credential.Handle{Name: "handle"}}, nil
}

func (handleOnly) Issue(context.Context, credential.Request, credential.Plan) (credential.Issued, error) {
	return credential.Issued{}, nil
}

func (handleOnly) Revoke(context.Context, credential.Handle) (credential.Use, error) {
	return credential.Use{}, nil
}

func (handleOnly) Recover(context.Context, credential.Handle) error { return nil }

func (handleOnly) Renew(context.Context, credential.Handle, time.Duration) (time.Time, error) {
	return time.Time{}, nil
}
