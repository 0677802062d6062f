// Package dns answers a sandbox's questions for names.
//
// Every granted name is at 127.0.0.1, where the relay listens; no other exists. Nothing is
// asked of anybody else, so a name carries nothing out.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A Server answers for some names.
type Server struct {
	// Names are those that exist, in lower case and without a final dot.
	Names map[string]bool
	// Refused gets what may be told of a name that does not exist; see [Remains]. It is called
	// by several goroutines, must not block, and may be nil.
	Refused func(remains string)
}

// Bounds of what is served.
const (
	maxQuery   = 4096 // bytes
	maxConns   = 32   // over TCP at a time
	maxQueries = 100  // over one connection
	idle       = 10 * time.Second
	ttl        = 5 // seconds: a new grant counts soon
)

// Serve answers on both until the context ends, and closes them.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { udp.Close(); tcp.Close() })()
	defer udp.Close()
	defer tcp.Close()
	failed := make(chan error, 2)
	work.Go(func() { failed <- s.serveUDP(ctx, udp) })
	work.Go(func() { failed <- s.serveTCP(ctx, tcp, &work) })
	select {
	case err := <-failed:
		if ctx.Err() != nil {
			return nil
		}
		cancel()
		return fmt.Errorf("serving DNS: %w", err)
	case <-ctx.Done():
		return nil
	}
}

func (s *Server) serveUDP(ctx context.Context, c net.PacketConn) error {
	b := make([]byte, maxQuery)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return err
		}
		if err != nil {
			continue // of a datagram sent before
		}
		if answer := s.Answer(b[:n]); answer != nil {
			c.WriteTo(answer, from)
		}
	}
}

func (s *Server) serveTCP(ctx context.Context, l net.Listener, work *sync.WaitGroup) error {
	turns := make(chan struct{}, maxConns)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return err
		}
		if err != nil {
			select { // descriptors may come free
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case turns <- struct{}{}:
		default:
			c.Close()
			continue
		}
		work.Go(func() {
			defer func() { <-turns }()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			s.converse(c)
		})
	}
}

// converse answers over one connection (RFC 1035 §4.2.2).
func (s *Server) converse(c net.Conn) {
	for range maxQueries {
		c.SetDeadline(time.Now().Add(idle))
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n > maxQuery {
			return
		}
		query := make([]byte, n)
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		answer := s.Answer(query)
		if answer == nil {
			return
		}
		binary.BigEndian.PutUint16(length[:], uint16(len(answer)))
		if _, err := c.Write(append(length[:], answer...)); err != nil {
			return
		}
	}
}

// Answer returns the answer to a message, or nil for one that is no query. It is never
// longer than 512 bytes.
func (s *Server) Answer(query []byte) []byte {
	var p dnsmessage.Parser
	asked, err := p.Start(query)
	if err != nil || asked.Response {
		return nil
	}
	h := dnsmessage.Header{ID: asked.ID, Response: true, OpCode: asked.OpCode, RecursionDesired: asked.RecursionDesired, RecursionAvailable: true}
	if asked.OpCode != 0 {
		h.RCode = dnsmessage.RCodeNotImplemented
		return pack(h, nil, false)
	}
	questions, err := p.AllQuestions()
	if err != nil || len(questions) != 1 {
		h.RCode = dnsmessage.RCodeFormatError
		return pack(h, nil, false)
	}
	q := questions[0]
	if q.Class != dnsmessage.ClassINET {
		h.RCode = dnsmessage.RCodeRefused
		return pack(h, &q, false)
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	h.Authoritative = true
	if !s.Names[name] {
		h.RCode = dnsmessage.RCodeNameError
		if s.Refused != nil {
			s.Refused(Remains(name))
		}
		return pack(h, &q, false)
	}
	return pack(h, &q, q.Type == dnsmessage.TypeA)
}

// pack returns an answer that repeats the question, with the address if it is asked for.
func pack(h dnsmessage.Header, q *dnsmessage.Question, address bool) []byte {
	m := dnsmessage.Message{Header: h}
	if q != nil {
		m.Questions = []dnsmessage.Question{*q}
	}
	if address {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: ttl},
			Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
		}}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// maxRemains bounds a label of what may be told, in bytes.
const maxRemains = 24

// Remains returns what may be told of a name: its last two labels, how many it has, and its
// length. The others are where data is put that is to be smuggled out by a question.
func Remains(name string) string {
	labels := strings.Split(name, ".")
	last := labels[max(0, len(labels)-2):]
	for i, l := range last {
		last[i] = plain(l)
	}
	return fmt.Sprintf("%s (labels: %d, bytes: %d)", strings.Join(last, "."), len(labels), len(name))
}

// plain returns a label with what no host's name has replaced, and clipped.
func plain(label string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '?'
	}, label)
	if len(clean) > maxRemains {
		return clean[:maxRemains] + "~"
	}
	return clean
}
