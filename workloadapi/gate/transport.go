package gate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/workloadapi/gate/wire"
)

// A transport is what gRPC takes for TLS: it turns an accepted Unix connection into
// one whose every byte is known to come from one pinned process (package wire), within
// the limits of its person.
type transport struct {
	limits  connLimits
	persons *persons
	limited *counters

	mu        sync.Mutex // guards the fields below
	conns     int
	strangers int               // of them, those of processes that were entitled to nothing yet
	people    map[uint32]*guest // by the person they belong to
	met       map[uint32]bool   // who had an identity once, and is let in though there are many strangers
}

// A guest counts one person's open connections.
type guest struct{ conns, strangers int }

// connLimits bound the open connections: each costs two file descriptors and
// some ten kilobytes. Those of processes that were entitled to nothing yet are
// few, and short: their room is not anybody's who has an identity.
type connLimits struct {
	total, each           int // each: of one person
	strangers, eachOfThem int
	strangerFor           time.Duration
}

var defaultConnLimits = connLimits{total: 8192, each: 1024, strangers: 4096, eachOfThem: 128, strangerFor: 30 * time.Second}

// NewTransport returns credentials for [google.golang.org/grpc.Creds], for a
// listener that [Listen] returned.
func (g *Gate) NewTransport() credentials.TransportCredentials {
	return newTransport(defaultConnLimits, g.recorder.persons, g.recorder.limited)
}

func newTransport(limits connLimits, persons *persons, limited *counters) credentials.TransportCredentials {
	return &transport{limits: limits, persons: persons, limited: limited, people: make(map[uint32]*guest), met: make(map[uint32]bool)}
}

// A Conn is a connection over gRPC from one pinned process, and what gRPC has for
// its AuthInfo. It is a [Peer].
type Conn struct{ conn *conn }

// ConnOf returns the connection that a request came over.
func ConnOf(ctx context.Context) (*Conn, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("request without a peer")
	}
	c, ok := p.AuthInfo.(*Conn)
	if !ok {
		return nil, fmt.Errorf("request over a connection of type %T", p.AuthInfo)
	}
	return c, nil
}

// AuthType implements [credentials.AuthInfo].
func (*Conn) AuthType() string { return "vouchd-peer" }

// Process returns the process that connected. The connection closes it.
func (c *Conn) Process() *process.Peer { return c.conn.peer }

// Attest implements [Peer]: all facts about the process count.
func (c *Conn) Attest(ctx context.Context, a *process.Attester) (*process.Attested, error) {
	at, err := a.Attest(ctx, c.conn.peer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAttestation, err)
	}
	return at, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// Challenge implements [Peer], by a PING (see [wire.Conn.Challenge]).
func (c *Conn) Challenge() (wait func(ctx context.Context) error, err error) {
	return c.conn.Challenge()
}

// ServerHandshake implements [credentials.TransportCredentials].
func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	u, ok := raw.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("connection of type %T is not a Unix socket", raw)
	}
	peer, err := process.PeerOf(u)
	if err != nil {
		return nil, nil, err
	}
	place, err := t.admit(peer.PID(), peer.UID())
	if err != nil {
		peer.Close()
		return nil, nil, err
	}
	c, err := newConn(u, peer, place)
	if err != nil {
		place.leave()
		peer.Close()
		return nil, nil, err
	}
	return c, &c.info, nil
}

// A conn is a connection in its place.
type conn struct {
	*wire.Conn
	peer  *process.Peer
	place *place
	info  Conn
}

// newConn takes over u, peer and place unless it returns an error.
func newConn(u *net.UnixConn, peer *process.Peer, place *place) (*conn, error) {
	c := &conn{peer: peer, place: place}
	c.info.conn = c
	stranger := time.AfterFunc(math.MaxInt64, func() {
		if !place.stays() {
			place.t.limited.strangers.Add(1)
			c.Close()
		}
	})
	var err error
	c.Conn, err = wire.New(u, peer, func() {
		stranger.Stop()
		peer.Close()
		place.leave()
	})
	if err != nil {
		stranger.Stop()
		return nil, err
	}
	stranger.Reset(place.t.limits.strangerFor) // not before there is something to close
	return c, nil
}

// A place is what a connection takes of the limits.
type place struct {
	t      *transport
	person uint32
	known  bool // its process was entitled to something; guarded by the transport's mu
	gone   bool // the same
}

// admit counts a connection of a process, or returns an error if there are as
// many as are allowed.
func (t *transport) admit(pid int, uid uint32) (*place, error) {
	person := t.persons.of(uid)
	t.mu.Lock()
	defer t.mu.Unlock()
	of := t.people[person]
	if of == nil {
		of = new(guest)
	}
	var err error
	switch {
	case t.conns >= t.limits.total:
		err = fmt.Errorf("%d connections are open, the maximum", t.conns)
	case of.conns >= t.limits.each:
		err = fmt.Errorf("the user has %d connections, the maximum", of.conns)
	case t.strangers >= t.limits.strangers && !t.met[person]:
		err = fmt.Errorf("%d connections without an identity are open, the maximum", t.strangers)
	case of.strangers >= t.limits.eachOfThem:
		err = fmt.Errorf("the user has %d connections without an identity, the maximum", of.strangers)
	}
	if err != nil {
		t.limited.connections.Add(1)
		return nil, fmt.Errorf("process %d of user %d: %w", pid, uid, err)
	}
	t.people[person] = of
	t.conns++
	t.strangers++
	of.conns++
	of.strangers++
	return &place{t: t, person: person}, nil
}

// know notes that the process is entitled to something.
func (p *place) know() {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	if !p.known && !p.gone {
		p.known = true
		if !p.t.met[p.person] {
			keep(p.t.met, p.person, true, func(bool) bool { return false })
		}
		p.t.strangers--
		p.t.people[p.person].strangers--
	}
}

// stays reports whether the connection may stay, now that it is no longer new.
func (p *place) stays() bool {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	return p.known || p.gone
}

// leave gives the place back.
func (p *place) leave() {
	t := p.t
	t.mu.Lock()
	defer t.mu.Unlock()
	p.gone = true
	of := t.people[p.person]
	t.conns--
	of.conns--
	if !p.known {
		t.strangers--
		of.strangers--
	}
	if of.conns == 0 {
		delete(t.people, p.person)
	}
}

// ClientHandshake implements [credentials.TransportCredentials]; the daemon's
// clients need no credentials.
func (*transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("the transport is for servers only")
}

// Info implements [credentials.TransportCredentials].
func (*transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone implements [credentials.TransportCredentials]. The clone is the same:
// the limits hold for both together.
func (t *transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements [credentials.TransportCredentials].
func (*transport) OverrideServerName(string) error { return nil }
