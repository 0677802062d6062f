// Package link is what the process that makes calls and the daemon say to each other.
//
// The process has the connections of agents and parses what they send; the daemon has
// the credentials and decides. They share one socket of packets (unix(7),
// SOCK_SEQPACKET), each a [Message] in JSON. A connection is announced once, with its
// descriptor: from that the daemon learns from the kernel who is at its other end, and
// takes nobody's word for it. Then each request is one question and one answer.
//
// What passes here includes credentials, from the daemon alone. Neither side trusts the
// other with more than its part: the daemon gives nothing to a process that has not
// shown the connection of somebody who is entitled to it.
package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// MaxMessage bounds a packet, in bytes.
const MaxMessage = 160 << 10

// writeTimeout ends a link whose other side does not read.
const writeTimeout = 10 * time.Second

// A Message is one of what its fields say. ID names a connection in Open and Close, and a
// request in the others.
type Message struct {
	ID uint64 `json:"id,omitempty"`

	// From the process.
	Open     bool      `json:"open,omitempty"`     // a connection, whose descriptor comes with it
	Close    bool      `json:"close,omitempty"`    // it has ended
	Relay    *Relay    `json:"relay,omitempty"`    // it is from another's: what the one who passes it on says of it
	Ask      *Ask      `json:"ask,omitempty"`      // answered by Answer, and maybe Challenge before
	Present  *Present  `json:"present,omitempty"`  // the result of a Challenge
	Outcomes []Outcome `json:"outcomes,omitempty"` // each after an Answer that allows

	// From the daemon.
	Route     *Route  `json:"route,omitempty"` // one for each definition, and a last one without a name
	Challenge bool    `json:"challenge,omitempty"`
	Answer    *Answer `json:"answer,omitempty"`
	Cut       string  `json:"cut,omitempty"` // the lease whose requests are to end now

	Database *Database `json:"database,omitempty"` // of connections to databases, from either
}

// A Route is a definition by which calls can be made.
type Route struct {
	Name   string         `json:"name,omitempty"`
	Policy *policy.Policy `json:"policy,omitempty"`
}

// A Relay is whose a connection is that a program passes on. The daemon believes of the
// processes only that they descend from that program, having looked.
type Relay struct {
	Door      string          `json:"door"`
	Processes []relay.Process `json:"processes,omitempty"`
	Authority string          `json:"authority,omitempty"`
}

// Ask is a request that came over a connection.
type Ask struct {
	Conn        uint64          `json:"conn"`
	Definitions []string        `json:"definitions"` // that it may be for; several where only its host says
	Handle      string          `json:"handle,omitempty"`
	HTTP2       bool            `json:"http2,omitempty"` // the peer can be challenged
	Upgrade     bool            `json:"upgrade,omitempty"`
	Request     *policy.Request `json:"request,omitempty"` // nil: only which definition it is for
	Refused     *Refuse         `json:"refused,omitempty"` // the process refuses it already: it is to be recorded
	Attempt     *relay.Attempt  `json:"attempt,omitempty"` // there is nothing to ask: this is to be recorded as refused
}

// Present is whether the peer was at the connection after the challenge.
type Present struct {
	Problem string `json:"problem,omitempty"` // why not
}

// Answer is what becomes of a request.
type Answer struct {
	Definition string  `json:"definition,omitempty"`
	Refused    *Refuse `json:"refused,omitempty"` // else it is allowed
	Lease      string  `json:"lease,omitempty"`   // by which Cut names it
	Fields     []Field `json:"fields,omitempty"`
}

// A Field is one of a credential.
type Field struct {
	Name   string `json:"name"`
	Value  []byte `json:"value"`
	Public bool   `json:"public,omitempty"`
}

// Refuse is why a request goes no further, for its sender to read.
type Refuse struct {
	Status  int    `json:"status"` // of HTTP
	Code    string `json:"code"`   // one word
	Message string `json:"message"`
	Rule    string `json:"rule,omitempty"`
}

// Outcome is how a request went that was allowed.
type Outcome struct {
	ID       uint64        `json:"id"`
	Status   int           `json:"status,omitempty"` // of the upstream; 0 without an answer
	Problem  string        `json:"problem,omitempty"`
	Sent     int64         `json:"sent,omitempty"`     // bytes of content to the upstream
	Received int64         `json:"received,omitempty"` // bytes of content from it
	Redacted int           `json:"redacted,omitempty"` // times that the credential was in the response
	Shapes   []string      `json:"shapes,omitempty"`   // of other secrets that were in it, sorted
	Duration time.Duration `json:"duration"`
}

// A Conn is one side of the link. Send is for any goroutine, Receive for one.
type Conn struct {
	conn *net.UnixConn
	mu   sync.Mutex // held while sending
	in   []byte
	oob  []byte
}

// New takes over a socket of packets.
func New(c *net.UnixConn) *Conn {
	c.SetWriteBuffer(1 << 20)
	return &Conn{conn: c, in: make([]byte, MaxMessage+1), oob: make([]byte, unix.CmsgSpace(4))}
}

// Close ends the link.
func (c *Conn) Close() error { return c.conn.Close() }

// ErrTooLong means a message that fits no packet.
var ErrTooLong = errors.New("message is too long for the proxy's link")

// Send sends a message, with the descriptor of a connection if that is not nil.
func (c *Conn) Send(m *Message, with syscall.Conn) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("%w: %d bytes, of at most %d", ErrTooLong, len(b), MaxMessage)
	}
	defer clear(b) // it may hold a credential
	if with == nil {
		return c.send(b, nil)
	}
	raw, err := with.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) { sendErr = c.send(b, unix.UnixRights(int(fd))) })
	return errors.Join(err, sendErr)
}

func (c *Conn) send(b, oob []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, _, err := c.conn.WriteMsgUnix(b, oob, nil); err != nil {
		c.conn.Close()
		return fmt.Errorf("sending on the proxy's link: %w", err)
	}
	return nil
}

// Receive returns the next message and the descriptor that came with it, which is the
// caller's. It returns [io.EOF] when the other side has closed.
func (c *Conn) Receive() (*Message, *os.File, error) {
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(c.in, c.oob)
	if err != nil {
		return nil, nil, err
	}
	f, err := descriptor(c.oob[:oobn])
	if err != nil {
		return nil, nil, err
	}
	defer clear(c.in[:n])
	m := new(Message)
	switch {
	case n == 0 && oobn == 0:
		return nil, nil, io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = ErrTooLong
	default:
		err = json.Unmarshal(c.in[:n], m)
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, nil, fmt.Errorf("receiving on the proxy's link: %w", err)
	}
	return m, f, nil
}

// descriptor returns the one descriptor that a packet brought, if any.
func descriptor(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var f *os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			if f != nil {
				f.Close()
			}
			unix.CloseOnExec(fd)
			f = os.NewFile(uintptr(fd), "connection")
		}
	}
	return f, nil
}

// Pair returns two ends of a link, for a process that the daemon starts itself.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the proxy's link: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link")
	c, err := FromFile(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}

// FromFile returns the link that a descriptor is one end of, and closes the file.
func FromFile(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("taking over the proxy's link: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok || u.LocalAddr().Network() != "unixpacket" {
		c.Close()
		return nil, errors.New("the proxy's link is not a Unix socket of packets")
	}
	return New(u), nil
}
