package databases

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vouchd/vouchd/credential/database"
)

// A postgresRelay passes messages both ways.
type postgresRelay struct {
	session  *session
	database *backend
	refused  refusals
	leaving  atomic.Bool // the agent has said so
}

// refusals are the statements that were not sent, by what was sent in their place.
type refusals struct {
	mark string // in what the database says of such a one

	mu   sync.Mutex // guards the fields below
	why  map[string]string
	next int
}

// maxRefusals bounds how many refusals wait for the database's answer.
const maxRefusals = 1024

// instead returns a statement that fails, for one that is refused. Where the transaction has
// failed already, it fails as every other statement does.
func (r *refusals) instead(why error) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.why) >= maxRefusals {
		clear(r.why)
	}
	r.next++
	key := r.mark + strconv.Itoa(r.next) + "."
	r.why[key] = why.Error()
	return "SELECT CAST('" + key + "' AS pg_catalog.int4)"
}

// reason returns why the statement was refused that an error of the database's is about.
func (r *refusals) reason(message []byte) (string, bool) {
	i := bytes.Index(message, []byte(r.mark))
	if i < 0 {
		return "", false
	}
	n := bytes.IndexByte(message[i+len(r.mark):], '.')
	if n < 0 {
		return "", false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := string(message[i : i+len(r.mark)+n+1])
	why, ok := r.why[key]
	delete(r.why, key)
	if !ok {
		why = "the statement is not allowed"
	}
	return why, true
}

// relayPostgres passes messages on until either side ends, or the lease does. It tells the
// agent why where it can.
func (c *session) relayPostgres(b *backend) error {
	p := &postgresRelay{session: c, database: b, refused: refusals{mark: "vouchd." + rand.Text() + ".", why: make(map[string]string)}}
	defer context.AfterFunc(c.ctx, func() {
		b.Close()
		c.agent.SetWriteDeadline(time.Now().Add(2 * time.Second)) // one that does not read is not waited for
	})()
	up := make(chan error, 1)
	go func() {
		up <- p.fromAgent()
		b.Close()
	}()
	between, err := p.fromDatabase()
	why := err
	select {
	case first := <-up:
		up <- first
		why = first // it ended first
	default:
	}
	if p.leaving.Load() {
		why = errGone
	}
	cause := context.Cause(c.ctx)
	if cause != nil {
		why = refuse("lease_revoked", "%v", cause)
	}
	var no *refusal
	switch {
	case !between || errors.Is(why, errGone):
	case errors.As(why, &no):
		c.write(fatal(no))
	case !errors.Is(why, errTold):
		c.write(fatal(refuse("upstream_unreachable", "%s: the connection ended: %v", c.definition.Place(), err)))
	}
	c.in.Close() // which ends the other direction
	<-up
	switch {
	case cause != nil:
		return cause
	case errors.Is(why, errGone), errors.Is(why, errTold):
		return nil
	}
	return why
}

// What ends a connection and is no problem.
var (
	errGone = errors.New("the agent has ended the connection")
	errTold = errors.New("the database has ended the connection, and said so")
)

// A pipe takes messages from one side to the other, within the memory of its buffers.
type pipe struct {
	in  *bufio.Reader
	out *bufio.Writer
}

// next returns the kind of the next message, and the length of its body. Before it waits,
// it lets go of what it has.
func (p *pipe) next() (kind byte, n int, err error) {
	if p.in.Buffered() < 5 {
		if err := p.out.Flush(); err != nil {
			return 0, 0, err
		}
	}
	head, err := p.in.Peek(5)
	if err != nil {
		return 0, 0, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length < 4 || length > 1<<30+4 {
		return 0, 0, refuse("protocol", "a message has a length of %d bytes", length)
	}
	return head[0], int(length) - 4, nil
}

// pass passes the next message on, whose body has n bytes.
func (p *pipe) pass(n int) error {
	for n += 5; n > 0; {
		if p.in.Buffered() == 0 {
			if err := p.out.Flush(); err != nil {
				return err
			}
			if _, err := p.in.Peek(1); err != nil {
				return err
			}
		}
		some, err := p.in.Peek(min(n, p.in.Buffered()))
		if err != nil {
			return err
		}
		if _, err := p.out.Write(some); err != nil {
			return err
		}
		if _, err := p.in.Discard(len(some)); err != nil {
			return err
		}
		n -= len(some)
	}
	return nil
}

// body reads the body of the next message whole.
func (p *pipe) body(n int) ([]byte, error) {
	if _, err := p.in.Discard(5); err != nil {
		return nil, err
	}
	if p.in.Buffered() < n {
		if err := p.out.Flush(); err != nil {
			return nil, err
		}
	}
	b := make([]byte, n)
	_, err := io.ReadFull(p.in, b)
	return b, err
}

// send sends a message.
func (p *pipe) send(kind byte, body []byte) error {
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))
	if _, err := p.out.Write(head); err != nil {
		return err
	}
	_, err := p.out.Write(body)
	return err
}

// fromAgent passes on what the agent sends. What the protocol does not have here ends the
// connection: a password above all.
func (r *postgresRelay) fromAgent() error {
	c := r.session
	p := &pipe{bufio.NewReaderSize(c.in, bufferSize), bufio.NewWriterSize(counted{r.database, &c.sent}, bufferSize)}
	judged := c.definition.Judged()
	for {
		kind, n, err := p.next()
		if err != nil {
			if p.in.Buffered() == 0 {
				p.send('X', nil)
				p.out.Flush() // the database may have gone too
			}
			return gone(err)
		}
		switch kind {
		case 'Q', 'P':
			if judged {
				err = r.judge(p, kind, n)
			} else {
				err = p.pass(n)
			}
		case 'F':
			if judged {
				err = r.instead(p, 'Q', n, "", errors.New("function calls of the protocol's own are not judged; use SELECT"))
			} else {
				err = p.pass(n)
			}
		case 'B', 'C', 'D', 'E', 'H', 'S', 'c', 'd', 'f':
			err = p.pass(n)
		case 'X':
			r.leaving.Store(true)
			if err = p.pass(n); err == nil {
				err = p.out.Flush()
			}
			if err == nil {
				err = errGone
			}
			return err
		default:
			return refuse("protocol", "a message of kind %q is not part of the protocol here", kind)
		}
		if err != nil {
			return gone(err)
		}
	}
}

// gone tells the end of what an agent sends from what is wrong with it.
func gone(err error) error {
	var no *refusal
	if errors.As(err, &no) {
		return err
	}
	return fmt.Errorf("%w: %w", errGone, err)
}

// judge passes a statement on, or sends another in its place.
func (r *postgresRelay) judge(p *pipe, kind byte, n int) error {
	if n > database.MaxJudged+1<<16 {
		return r.instead(p, kind, n, "", fmt.Errorf("it has %d bytes, more than the %d that are judged", n, database.MaxJudged))
	}
	body, release, err := r.hold(p, n)
	if err != nil {
		return err
	}
	defer release()
	name, sql := "", body
	if kind == 'P' {
		i := bytes.IndexByte(body, 0)
		if i < 0 {
			return refuse("protocol", "a statement to be prepared is not closed")
		}
		name, sql = string(body[:i]), body[i+1:]
	}
	end := bytes.IndexByte(sql, 0)
	if end < 0 || kind == 'Q' && end != len(sql)-1 {
		return refuse("protocol", "a statement is not closed")
	}
	if err := r.session.definition.Judge(string(sql[:end])); err != nil {
		return r.replace(p, kind, name, err)
	}
	return p.send(kind, body)
}

// statementTimeout is how long a statement that is to be judged takes to arrive.
const statementTimeout = time.Minute

// hold reads a statement. It counts as the user's until release is called.
func (r *postgresRelay) hold(p *pipe, n int) (body []byte, release func(), err error) {
	c := r.session
	if n <= bufferSize {
		body, err = p.body(n)
		return body, func() {}, err
	}
	if err := p.out.Flush(); err != nil {
		return nil, nil, err
	}
	size := int64(n)
	if err := c.user.judged.Acquire(c.ctx, size); err != nil {
		return nil, nil, err
	}
	if err := c.server.judged.Acquire(c.ctx, size); err != nil {
		c.user.judged.Release(size)
		return nil, nil, err
	}
	release = func() {
		c.server.judged.Release(size)
		c.user.judged.Release(size)
	}
	err = c.in.SetReadDeadline(time.Now().Add(statementTimeout))
	if err == nil {
		body, err = p.body(n)
	}
	if err = errors.Join(err, c.in.SetReadDeadline(time.Time{})); err != nil {
		release()
		return nil, nil, err
	}
	return body, release, nil
}

// instead reads a message away, and sends a statement that fails.
func (r *postgresRelay) instead(p *pipe, kind byte, n int, name string, why error) error {
	if err := p.out.Flush(); err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, p.in, int64(n)+5); err != nil {
		return err
	}
	return r.replace(p, kind, name, why)
}

func (r *postgresRelay) replace(p *pipe, kind byte, name string, why error) error {
	r.session.counts.refuse()
	sql := append([]byte(r.refused.instead(why)), 0)
	if kind == 'P' {
		sql = append(append([]byte(name), 0), append(sql, 0, 0)...) // no types of parameters
	}
	return p.send(kind, sql)
}

// Bounds of messages that are looked at, in bytes.
const (
	maxErrorSeen  = 64 << 10
	maxStatusSeen = 4 << 10
)

// fromDatabase passes on what the database sends, and counts statements. It reports whether
// it ended between two messages, where the agent can be told why.
func (r *postgresRelay) fromDatabase() (between bool, err error) {
	c := r.session
	p := &pipe{r.database.in, bufio.NewWriterSize(counted{c.agent, &c.received}, bufferSize)}
	told := false
	for {
		kind, n, err := p.next()
		if err != nil {
			if flushed := p.out.Flush(); flushed != nil {
				return false, fmt.Errorf("%w: %w", errGone, flushed)
			}
			if told {
				err = errTold
			}
			return true, err
		}
		switch {
		case kind == 'C' && n <= maxStatusSeen:
			err = r.complete(p, n)
		case kind == 'E' && n <= maxErrorSeen:
			told, err = r.failed(p, n)
		case kind == 'S' && n <= maxStatusSeen:
			err = r.status(p, n)
		case kind == 'R' || kind == 'K':
			return true, refuse("protocol", "%s asks for another login", c.definition.Place())
		default:
			err = p.pass(n)
		}
		if err != nil {
			var no *refusal
			return errors.As(err, &no) && p.out.Flush() == nil, err
		}
	}
}

// complete counts a statement by its command tag.
func (r *postgresRelay) complete(p *pipe, n int) error {
	body, err := p.body(n)
	if err != nil {
		return err
	}
	r.session.counts.add(commandTag(body))
	return p.send('C', body)
}

// commandTag reads "INSERT 0 5", "SELECT 5" or "CREATE TABLE": the command, and the rows.
func commandTag(body []byte) (command string, rows int64) {
	text := strings.TrimRight(string(body), "\x00")
	i := strings.IndexFunc(text, func(c rune) bool { return (c < 'A' || c > 'Z') && c != ' ' })
	if i >= 0 {
		last := text[strings.LastIndexByte(text, ' ')+1:]
		rows, _ = strconv.ParseInt(last, 10, 64) // 0 where it is no number
		text = text[:i]
	}
	command = strings.TrimSpace(text)
	if command == "" || len(command) > 32 {
		return "OTHER", max(rows, 0)
	}
	return command, max(rows, 0)
}

// failed passes an error on, or in its place the refusal that it stands for.
func (r *postgresRelay) failed(p *pipe, n int) (ends bool, err error) {
	body, err := p.body(n)
	if err != nil {
		return false, err
	}
	if why, ok := r.refused.reason(body); ok {
		_, err := p.out.Write(errorResponse("ERROR", "42501", "vouchd: the statement is not allowed: "+why))
		return false, err
	}
	ends = bytes.Contains(body, []byte("\x00VFATAL\x00")) || bytes.Contains(body, []byte("\x00VPANIC\x00"))
	return ends, p.send('E', body)
}

// status passes the value of a setting on, unless it is one by which statements would be
// read otherwise than they are judged.
func (r *postgresRelay) status(p *pipe, n int) error {
	body, err := p.body(n)
	if err != nil {
		return err
	}
	name, rest, _ := strings.Cut(string(body), "\x00")
	value, _, _ := strings.Cut(rest, "\x00")
	if d := r.session.definition; d.Judged() && (name == "standard_conforming_strings" && value != "on" || name == "client_encoding" && value != "UTF8") {
		return refuse("request_not_allowed", "%s was changed, where statements are judged", name)
	}
	return p.send('S', body)
}

// A counted writer counts what is written.
type counted struct {
	to interface{ Write([]byte) (int, error) }
	n  interface{ Add(int64) int64 }
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.to.Write(b)
	c.n.Add(int64(n))
	return n, err
}
