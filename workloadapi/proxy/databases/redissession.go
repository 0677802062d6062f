package databases

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// serveRedis serves a connection of an agent that speaks Redis's protocol. It is asked about
// at the first command, which may bring a handle in the place of a password.
func (c *session) serveRedis() error {
	in := bufio.NewReaderSize(c.in, bufferSize)
	r := &redisRelay{session: c, mark: "VOUCHD." + rand.Text() + ".", why: make(map[string]string)}
	first, err := readCommand(in)
	if errors.As(err, new(malformed)) {
		c.write(redisError("ERR", err))
		return err
	}
	if err != nil {
		return nil // it looked whether somebody listens
	}
	answer, handle, err := first.open()
	if err != nil {
		c.write(redisError("WRONGPASS", err))
		return err
	}
	up, err := c.loginRedis(handle)
	if err != nil {
		c.write(redisError("NOPERM", err))
		return err
	}
	defer up.Close()
	c.connected = true
	if answer {
		if err := c.write([]byte("+OK\r\n")); err != nil {
			return err
		}
		first = nil
	}
	return r.run(in, first, up)
}

// open takes a handle out of the first command of a connection: AUTH is answered here, and
// HELLO goes on without it.
func (m *command) open() (answered bool, handle string, err error) {
	find := func(args []string) {
		for _, a := range args {
			if h := handleOf(a); h != "" {
				handle = h
			}
		}
	}
	errPassword := errors.New("no password is taken here but a handle from vouch")
	switch m.name {
	case "AUTH":
		if find(m.args); handle == "" {
			return false, "", errPassword
		}
		return true, handle, nil
	case "HELLO":
		for i, a := range m.args {
			if i > 0 && strings.EqualFold(a, "AUTH") && i+2 < len(m.args) {
				if find(m.args[i+1 : i+3]); handle == "" {
					return false, "", errPassword
				}
				m.args = append(m.args[:i:i], m.args[i+3:]...)
				return false, handle, nil
			}
		}
	}
	return false, "", nil
}

// loginRedis asks the daemon, and logs in to the database.
func (c *session) loginRedis(handle string) (net.Conn, error) {
	fields, err := c.ask(&link.Connect{Handle: handle})
	if err != nil {
		return nil, err
	}
	d := c.definition
	l, err := loginOf(d, fields)
	for _, f := range fields {
		clear(f.Value)
	}
	if err != nil {
		return nil, refuse("injection", "%v", err)
	}
	conn, err := connectRedis(c.ctx, d, l)
	if cause := context.Cause(c.ctx); err != nil && cause != nil {
		return nil, refuse("lease_revoked", "%v", cause)
	}
	if err != nil {
		return nil, unreachable(d, l, err)
	}
	return conn, nil
}

func connectRedis(ctx context.Context, d *database.Definition, l *login) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.Connect)
	defer cancel()
	network, to := "tcp", net.JoinHostPort(d.Host(), d.Port())
	if d.OnSocket() {
		network, to = "unix", d.Host()
	}
	conn, err := dial(ctx, d, network, to)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	if t := tlsOf(d, l); t != nil {
		secure := tls.Client(conn, t)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = secure
	}
	if l.password != "" {
		args := []string{"AUTH", l.password}
		if l.user != "" {
			args = []string{"AUTH", l.user, l.password}
		}
		if err := redisCall(conn, args...); err != nil {
			return nil, fmt.Errorf("the login is refused: %w", err)
		}
	}
	if d.Name() != "0" {
		if err := redisCall(conn, "SELECT", d.Name()); err != nil {
			return nil, err
		}
	}
	return conn, nil
}

// redisCall sends a command whose answer is one line, and reads no more than that.
func redisCall(conn net.Conn, args ...string) error {
	if _, err := conn.Write((&command{args: args[1:], name: args[0]}).encode()); err != nil {
		return err
	}
	var line []byte
	for len(line) < 1024 {
		var b [1]byte
		if _, err := conn.Read(b[:]); err != nil {
			return err
		}
		if b[0] == '\n' {
			break
		}
		line = append(line, b[0])
	}
	if text := strings.TrimSpace(string(line)); text != "+OK" {
		return fmt.Errorf("it answers %.200q", text)
	}
	return nil
}

// redisError is an error of the protocol's.
func redisError(kind string, err error) []byte {
	text := strings.Map(func(c rune) rune {
		if c < ' ' {
			return ' '
		}
		return c
	}, err.Error())
	return []byte("-" + kind + " vouchd: " + text + "\r\n")
}

// A redisRelay passes commands and their answers.
type redisRelay struct {
	session *session
	mark    string // in what the database says of a command that was not sent

	mu   sync.Mutex // guards the fields below
	why  map[string]string
	next int
}

// instead returns a command that fails as unknown, for one that is refused. In a
// transaction, that fails as with any command that is wrong.
func (r *redisRelay) instead(why error) []byte {
	r.session.counts.refuse()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.why) >= maxRefusals {
		clear(r.why)
	}
	r.next++
	key := fmt.Sprintf("%s%d.", r.mark, r.next)
	r.why[key] = why.Error()
	return (&command{name: key}).encode()
}

func (r *redisRelay) reason(line string) (string, bool) {
	i := strings.Index(line, r.mark)
	if i < 0 {
		return "", false
	}
	n := strings.IndexByte(line[i+len(r.mark):], '.')
	if n < 0 {
		return "", false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := line[i : i+len(r.mark)+n+1]
	why, ok := r.why[key]
	delete(r.why, key)
	if !ok {
		why = "the command is not allowed"
	}
	return why, true
}

// run passes commands on until either side ends, or the lease does.
func (r *redisRelay) run(in *bufio.Reader, first *command, up net.Conn) error {
	c := r.session
	defer context.AfterFunc(c.ctx, func() {
		up.Close()
		c.agent.SetWriteDeadline(time.Now().Add(2 * time.Second)) // one that does not read is not waited for
	})()
	sent := make(chan error, 1)
	go func() {
		sent <- r.fromAgent(in, first, up)
		up.Close()
	}()
	between, err := r.fromDatabase(up)
	why := err
	select {
	case early := <-sent:
		sent <- early
		why = early // it ended first
	default:
	}
	cause := context.Cause(c.ctx)
	if cause != nil {
		why = cause
	}
	if between && !errors.Is(why, errGone) && !errors.Is(why, errTold) {
		c.write(redisError("ERR", why))
	}
	c.in.Close() // which ends the other direction
	<-sent
	if cause == nil && (errors.Is(why, errGone) || errors.Is(why, errTold)) {
		return nil
	}
	return why
}
