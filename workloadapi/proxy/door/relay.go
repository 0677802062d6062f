package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"

	"github.com/vouchd/vouchd/workloadapi/proxy/link"
	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// switchOver serves what others send over a relay's connection, from here on.
func (s *server) switchOver(w http.ResponseWriter, r *http.Request, over *conn, says *relay.Hello) error {
	if over.says != nil {
		return refuse(http.StatusBadRequest, "relay", "the connection is a relay's already")
	}
	if says.Attempt != nil {
		s.say(over, says)
		return s.attempted(r.Context(), over, says.Attempt)
	}
	_, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("taking over the connection: %w", err)
	}
	s.say(over, says)
	if _, err := io.WriteString(over, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+relay.Protocol+"\r\n\r\n"); err != nil {
		return brokenOff{err}
	}
	if !s.passed.add(&passedOn{over, io.MultiReader(io.LimitReader(buffered, int64(buffered.Reader.Buffered())), over)}) {
		over.Close()
	}
	return nil
}

// say tells the daemon whose a connection is.
func (s *server) say(over *conn, says *relay.Hello) {
	s.mu.Lock()
	over.says = says
	d := s.daemon
	s.mu.Unlock()
	if d != nil {
		d.link.Send(over.introduced(), nil) // a link that has failed ends elsewhere
	}
}

// introduced is what the daemon is told of a relay's connection.
func (c *conn) introduced() *link.Message {
	return &link.Message{ID: c.id, Relay: &link.Relay{Door: c.says.Door, Processes: c.says.Processes, Authority: c.says.Authority}}
}

// attempted has the daemon record what leads nowhere, and returns its refusal.
func (s *server) attempted(ctx context.Context, over *conn, a *relay.Attempt) error {
	if len(a.Target) > relay.MaxText {
		a.Target = a.Target[:relay.MaxText]
	}
	daemon := s.linked()
	if daemon == nil {
		return refuse(http.StatusServiceUnavailable, "no_daemon", "%v; is vouchd running?", errNoDaemon)
	}
	q := &link.Ask{Conn: over.id, Attempt: a}
	if over.says != nil && len(over.says.Handles) > 0 { // any of them shows who it is
		name := slices.Min(slices.Collect(maps.Keys(over.says.Handles)))
		q.Definitions, q.Handle = []string{name}, over.says.Handles[name]
	}
	answer, _, err := daemon.ask(ctx, nil, over, q)
	switch {
	case err != nil:
		return refuse(http.StatusServiceUnavailable, "no_daemon", "%v; is vouchd running?", err)
	case answer.Refused == nil:
		return errors.New("the daemon does not refuse what leads nowhere")
	}
	return &refusal{*answer.Refused}
}

// A passedOn is a relay's connection as its other end uses it.
type passedOn struct {
	*conn
	in io.Reader // with what came with the relay's own request
}

func (p *passedOn) Read(b []byte) (int, error) { return p.in.Read(b) }

// connOf returns what a server's connection is to the daemon.
func connOf(c net.Conn) *conn {
	switch c := c.(type) {
	case *passedOn:
		return c.conn
	case *conn:
		return c
	}
	panic(fmt.Sprintf("door: a connection of type %T", c))
}

// A queue is a listener whose connections come from [server.switchOver].
type queue struct {
	net.Listener // for its address alone
	conns        chan net.Conn
	closed       chan struct{}
}

func newQueue(l net.Listener) *queue {
	return &queue{Listener: l, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// add reports whether the connection was taken.
func (q *queue) add(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.closed:
		return false
	}
}

// Accept implements [net.Listener].
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (q *queue) Close() error {
	select {
	case <-q.closed:
	default:
		close(q.closed)
	}
	return nil
}
