package databases

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// bufferSize is of each of the four buffers that a connection has, in bytes.
const bufferSize = 16 << 10

// A backend is a database's side of a connection that is logged in.
type backend struct {
	net.Conn
	in   *bufio.Reader
	hi   *pgconn.HijackedConn
	tls  *tls.Config
	mine [4]byte // the key by which an agent cancels statements here
}

// servePostgres serves a connection of an agent that speaks PostgreSQL's protocol. What
// goes wrong before messages pass, the agent is told.
func (c *session) servePostgres() error {
	if err := c.in.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	s, err := readStartup(agentIO{c})
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil // it looked whether somebody listens
	case err != nil:
		c.write(fatal(refuse("protocol", "%v", err)))
		return err
	case s.cancels:
		return c.cancelOther(s)
	}
	if err := c.in.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	b, err := c.login(s)
	if err != nil {
		c.write(fatal(err)) // the agent may have gone
		return err
	}
	defer b.Close()
	if err := c.greet(s, b); err != nil {
		return err
	}
	return c.relayPostgres(b)
}

// agentIO reads what an agent sends, and writes to it.
type agentIO struct{ c *session }

func (a agentIO) Read(p []byte) (int, error) { return a.c.in.Read(p) }

func (a agentIO) Write(p []byte) (int, error) { return len(p), a.c.write(p) }

// login asks the daemon, and logs in to the database.
func (c *session) login(s *startup) (*backend, error) {
	parameters, err := s.check(c.definition, c.name)
	if err != nil {
		return nil, err
	}
	fields, err := c.ask(&link.Connect{Handle: handleOf(s.parameters["user"])})
	if err != nil {
		return nil, err
	}
	l, err := loginOf(c.definition, fields)
	for _, f := range fields {
		clear(f.Value)
	}
	if err != nil {
		return nil, refuse("injection", "%v", err)
	}
	b, err := connectPostgres(c.ctx, c.definition, l, parameters)
	if cause := context.Cause(c.ctx); err != nil && cause != nil {
		return nil, refuse("lease_revoked", "%v", cause)
	}
	if err != nil {
		return nil, failure(c.definition, l, err)
	}
	c.connected = true
	rand.Read(b.mine[:])
	c.server.mu.Lock()
	c.postgres = b
	c.server.mu.Unlock()
	return b, nil
}

// failure is what an agent is told of a login that the database refused. Which password was
// wrong is not the agent's matter.
func failure(d *database.Definition, l *login, err error) error {
	var no *pgconn.PgError
	if errors.As(err, &no) {
		state := no.Code
		if len(state) != 5 || state[:2] == "28" {
			state = "08006"
		}
		return coded(state, "%s refuses the login: %.200s (SQLSTATE %.5s)", d.Place(), no.Message, no.Code)
	}
	return unreachable(d, l, err)
}

// nothingElse keeps password files and the environment out of where we connect.
const nothingElse = "host=localhost user=none password=none dbname=none sslmode=disable passfile=/dev/null"

// connectPostgres logs in.
func connectPostgres(ctx context.Context, d *database.Definition, l *login, parameters map[string]string) (*backend, error) {
	p, err := pgconn.ParseConfig(nothingElse)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(d.Port(), 10, 16)
	if err != nil {
		return nil, err
	}
	b := &backend{tls: tlsOf(d, l)}
	p.Host, p.Port, p.Database, p.User, p.Password = d.Host(), uint16(port), d.Name(), l.user, l.password
	p.TLSConfig, p.Fallbacks, p.RuntimeParams, p.ConnectTimeout = b.tls, nil, parameters, d.Connect
	p.ValidateConnect, p.AfterConnect, p.KerberosSpn, p.KerberosSrvName = nil, nil, "", ""
	p.SSLNegotiation, p.MinProtocolVersion, p.MaxProtocolVersion, p.ChannelBinding = "postgres", "3.0", "3.0", "prefer"
	p.RequireAuth = "scram-sha-256,none"
	if d.MD5 {
		p.RequireAuth += ",md5"
	}
	p.DialFunc = func(ctx context.Context, network, to string) (net.Conn, error) { return dial(ctx, d, network, to) }
	p.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		b.in = bufio.NewReaderSize(r, bufferSize)
		return pgproto3.NewFrontend(&messages{r: b.in}, w)
	}
	ctx, cancel := context.WithTimeout(ctx, d.Connect)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, p)
	if err != nil {
		return nil, err
	}
	if b.hi, err = conn.Hijack(); err != nil {
		return nil, err
	}
	b.Conn = b.hi.Conn
	return b, nil
}

// messages gives its reader no more than the message that it is in: what follows the login
// is for somebody else.
type messages struct {
	r    *bufio.Reader
	left int
}

func (m *messages) Read(p []byte) (int, error) {
	if m.left == 0 {
		head, err := m.r.Peek(5)
		if err != nil {
			return 0, err
		}
		n := binary.BigEndian.Uint32(head[1:])
		if n < 4 || n > maxLoginMessage {
			return 0, fmt.Errorf("a message of %d bytes during the login", n)
		}
		m.left = 1 + int(n)
	}
	n, err := m.r.Read(p[:min(len(p), m.left)])
	m.left -= n
	return n, err
}

const maxLoginMessage = 64 << 10 // bytes

// greet tells the agent that it is logged in.
func (c *session) greet(s *startup, b *backend) error {
	var out []byte
	add := func(m pgproto3.BackendMessage) (err error) {
		out, err = m.Encode(out)
		return err
	}
	var errs []error
	if s.minor > 0 || len(s.extensions) > 0 {
		errs = append(errs, add(&pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: version3, UnrecognizedOptions: s.extensions}))
	}
	errs = append(errs, add(&pgproto3.AuthenticationOk{}))
	for name, value := range b.hi.ParameterStatuses {
		errs = append(errs, add(&pgproto3.ParameterStatus{Name: name, Value: value}))
	}
	errs = append(errs,
		add(&pgproto3.BackendKeyData{ProcessID: uint32(c.id), SecretKey: b.mine[:]}),
		add(&pgproto3.ReadyForQuery{TxStatus: b.hi.TxStatus}))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.write(out)
}

// cancelOther has the database cancel the statement of another connection, if the daemon
// says that the two are the same's. The protocol has no answer to it.
func (c *session) cancelOther(s *startup) error {
	c.server.mu.Lock()
	other := c.server.open[uint64(s.pid)]
	var b *backend
	if other != nil {
		b = other.postgres
	}
	c.server.mu.Unlock()
	var secret [4]byte
	binary.BigEndian.PutUint32(secret[:], s.secret)
	if b == nil || other.name != c.name || subtle.ConstantTimeCompare(b.mine[:], secret[:]) != 1 {
		return nil
	}
	if _, err := c.ask(&link.Connect{Cancel: other.id}); err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(c.ctx, c.definition.Connect)
	defer stop()
	if err := b.cancel(ctx, other.definition); err != nil {
		return unreachable(other.definition, nil, err)
	}
	c.connected = true
	return nil
}

// cancel sends the database's own key to where the connection goes.
func (b *backend) cancel(ctx context.Context, d *database.Definition) error {
	to := b.RemoteAddr()
	place := to.String()
	if d.OnSocket() {
		place = d.Host() + "/.s.PGSQL." + d.Port()
	}
	conn, err := dial(ctx, d, to.Network(), place)
	if err != nil {
		return err
	}
	defer conn.Close()
	if by, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(by); err != nil {
			return err
		}
	}
	if b.tls != nil {
		request := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), codeTLS)
		if _, err := conn.Write(request); err != nil {
			return err
		}
		var answer [1]byte
		if _, err := io.ReadFull(conn, answer[:]); err != nil {
			return err
		}
		if answer[0] != 'S' {
			return errors.New("the server declines TLS")
		}
		conn = tls.Client(conn, b.tls)
	}
	m := binary.BigEndian.AppendUint32(nil, uint32(12+len(b.hi.SecretKey)))
	m = binary.BigEndian.AppendUint32(m, codeCancel)
	m = binary.BigEndian.AppendUint32(m, b.hi.PID)
	m = append(m, b.hi.SecretKey...)
	if _, err := conn.Write(m); err != nil {
		return err
	}
	conn.Read(make([]byte, 1)) // the server closes once it has read it, and says nothing
	return nil
}
