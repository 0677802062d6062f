package databases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/workloadapi/gate/wire"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// startTimeout bounds how long an agent takes to say what it wants.
const startTimeout = 30 * time.Second

// A session is one connection of an agent's.
type session struct {
	server     *Server
	name       string // of the definition
	definition *database.Definition
	id         uint64
	link       *link.Conn // to the daemon that decides
	answer     chan *link.DatabaseAnswer
	user       *user

	agent *net.UnixConn // to write to
	in    *wire.Conn    // to read from: every byte is of the process that connected

	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc

	began     time.Time
	allowed   bool // and so it is told how it went
	connected bool
	sent      atomic.Int64
	received  atomic.Int64
	counts    counts
	postgres  *backend // once it is logged in to PostgreSQL; guarded by Server.mu
}

// A refusal is why a connection goes no further, and what its agent is told.
type refusal struct{ link.Refuse }

func (r *refusal) Error() string { return r.Message }

func refuse(code, format string, args ...any) *refusal {
	return &refusal{link.Refuse{Code: code, Message: fmt.Sprintf(format, args...)}}
}

// serve serves a connection to its end.
func (c *session) serve() {
	defer c.cancel(nil)
	defer c.in.Close()
	var err error
	switch c.definition.Protocol {
	case database.Postgres:
		err = c.servePostgres()
	case database.Redis:
		err = c.serveRedis()
	}
	c.tell(err)
}

// ask has the daemon decide, and returns the fields of what to log in with.
func (c *session) ask(q *link.Connect) ([]link.Field, error) {
	q.Name = c.name
	if err := c.link.Send(&link.Message{Database: &link.Database{ID: c.id, Connect: q}}, c.agent); err != nil {
		return nil, refuse("no_daemon", "%v", errNoDaemon)
	}
	// The answer is waited for even if the agent goes away: what it allows is recorded
	// already, and has an end.
	select {
	case a := <-c.answer:
		if a.Refused != nil {
			return nil, &refusal{*a.Refused}
		}
		c.allowed = true
		return a.Fields, nil
	case <-c.ctx.Done():
		select {
		case a := <-c.answer:
			c.allowed = a.Refused == nil
		default:
		}
		return nil, refuse("no_daemon", "%v", context.Cause(c.ctx))
	}
}

// maxProblem bounds what is said of a connection that failed, in bytes.
const maxProblem = 512

// tell tells the daemon how a connection went that it allowed.
func (c *session) tell(err error) {
	if !c.allowed {
		return
	}
	o := &link.DatabaseEnded{
		Connected: c.connected, Sent: c.sent.Load(), Received: c.received.Load(), Duration: time.Since(c.began),
	}
	o.Statements, o.Rows, o.Refused = c.counts.sum()
	if cause := context.Cause(c.ctx); cause != nil && c.connected {
		err = cause
	}
	if err != nil && !errors.Is(err, io.EOF) {
		o.Problem = err.Error()
	}
	if len(o.Problem) > maxProblem {
		o.Problem = strings.ToValidUTF8(o.Problem[:maxProblem], "") + "…"
	}
	c.link.Send(&link.Message{Database: &link.Database{ID: c.id, Ended: o}}, nil) // a link that has failed ends elsewhere
}

// write writes to the agent what is not from the database, within a bound of time.
func (c *session) write(b []byte) error {
	if err := c.agent.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	_, err := c.agent.Write(b)
	return errors.Join(err, c.agent.SetWriteDeadline(time.Time{}))
}

// counts are the statements of a connection, by command.
type counts struct {
	mu      sync.Mutex // guards the fields below
	by      map[string]int64
	rows    int64
	refused int64
}

// Bounds of what is counted: commands that are told apart, and bytes of what is said of
// them, of which a record has 1024.
const (
	maxCommands   = 32
	maxStatements = 900
)

func (c *counts) add(command string, rows int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = make(map[string]int64)
	}
	if _, known := c.by[command]; !known && len(c.by) >= maxCommands {
		command = "OTHER"
	}
	c.by[command]++
	c.rows += rows
}

func (c *counts) refuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused++
}

func (c *counts) sum() (statements string, rows, refused int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	var length int
	var others int64
	for _, name := range slices.Sorted(maps.Keys(c.by)) {
		text := fmt.Sprintf("%s=%d", name, c.by[name])
		if length += len(text) + 1; name == "OTHER" || length > maxStatements {
			others += c.by[name]
			continue
		}
		list = append(list, text)
	}
	if others > 0 {
		list = append(list, fmt.Sprintf("OTHER=%d", others))
	}
	return strings.Join(list, ","), c.rows, c.refused
}

// handleOf returns the handle in a name, if it is one (see credential/lease): it ends with
// the word and 32 letters and digits.
func handleOf(name string) string {
	const word, length = "vouch", 32
	i := len(name) - length - len(word)
	if i < 0 || name[i:i+len(word)] != word ||
		strings.ContainsFunc(name[i+len(word):], func(c rune) bool { return (c < 'a' || c > 'z') && (c < '2' || c > '7') }) {
		return ""
	}
	return name
}
