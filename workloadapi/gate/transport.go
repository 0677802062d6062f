package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/vouchd/vouchd/attest/process"
)

// A transport is what gRPC takes for TLS: it makes an accepted Unix connection
// one whose every byte is known to come from one pinned process.
//
// The kernel says who connected, but the program may be swapped under a
// connection: a process connects, forks, and execs a program that is entitled
// to more, while its child keeps the socket. Every fact about the process that
// connected is then one about the trusted program. The transport sees through
// it in two ways. Each message's sender must be the pinned process
// (SCM_CREDENTIALS, which the kernel fills in), so the child can't speak.
// And what was sent before the exec, or lies in the socket's buffer, doesn't
// suffice either: after attestation the daemon sends an HTTP/2 PING with 8
// unpredictable bytes, and gives the reply only once the pinned process has
// sent them back (see [Conn.Challenge]). Every HTTP/2 client answers PINGs by
// itself.
//
// A trusted program that writes what it is fed to a descriptor that it
// inherited can be made to answer; and a process with CAP_SYS_ADMIN over a PID
// namespace may claim to be any process in it, for which reason
// attest/process refuses peers in namespaces that the host does not own.
type transport struct {
	limits connLimits

	mu    sync.Mutex // guards the fields below
	conns int
	users map[uint32]int // open connections by the user that connected
}

// connLimits bound the open connections: each costs two file descriptors and
// some ten kilobytes.
type connLimits struct {
	total   int
	perUser int // one user leaves room for the others
}

var defaultConnLimits = connLimits{total: 8192, perUser: 2048}

// NewTransport returns credentials for [google.golang.org/grpc.Creds], for a
// listener that [Listen] returned.
func NewTransport() credentials.TransportCredentials { return newTransport(defaultConnLimits) }

func newTransport(limits connLimits) credentials.TransportCredentials {
	return &transport{limits: limits, users: make(map[uint32]int)}
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

// errAbsent means that the process that connected did not answer a challenge:
// another one holds its socket, or it hangs.
var errAbsent = errors.New("the process that connected does not answer on its connection")

// Challenge puts a PING with 8 unpredictable bytes between two HTTP/2 frames
// now. The returned wait blocks until the pinned process, still alive, has
// answered it, and otherwise returns errAbsent, process.ErrPeerGone, the end of
// the connection or ctx's error. It is to be called exactly once.
//
// The two are apart because the caller can work while the answer travels. What
// the answer proves is that the process is at the connection after the
// challenge was sent: attest first, then challenge, then reply.
func (c *Conn) Challenge() (wait func(ctx context.Context) error, err error) {
	return c.conn.challenge()
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
	if err := t.admit(peer); err != nil {
		peer.Close()
		return nil, nil, err
	}
	c, err := newConn(u, peer, func() { t.release(peer) })
	if err != nil {
		t.release(peer)
		peer.Close()
		return nil, nil, err
	}
	return c, &c.info, nil
}

func (t *transport) admit(p *process.Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns >= t.limits.total {
		return fmt.Errorf("process %d of user %d: %d connections are open, as many as are allowed", p.PID(), p.UID(), t.conns)
	}
	if n := t.users[p.UID()]; n >= t.limits.perUser {
		return fmt.Errorf("process %d of user %d: the user has %d connections, as many as are allowed", p.PID(), p.UID(), n)
	}
	t.conns++
	t.users[p.UID()]++
	return nil
}

func (t *transport) release(p *process.Peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conns--
	if t.users[p.UID()]--; t.users[p.UID()] == 0 {
		delete(t.users, p.UID())
	}
}

// ClientHandshake implements [credentials.TransportCredentials]; the daemon's
// clients need no credentials.
func (*transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("the transport serves only")
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
