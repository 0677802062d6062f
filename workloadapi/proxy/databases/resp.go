package databases

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// The bounds of commands, of which the first two words are looked at, and of HELLO and AUTH
// all.
const (
	maxCommandArgs = 1 << 20
	maxCommandArg  = 512 << 20 // bytes
	maxWord        = 256       // of a word that is looked at
	maxWords       = 16        // of a command that is looked at whole
	maxHead        = 32        // of a line that gives a length
)

// A malformed command is none of the protocol's.
type malformed struct{ what string }

func (m malformed) Error() string { return "protocol error: " + m.what }

// A command is as far as it was read.
type command struct {
	name string   // in capitals
	args []string // after it
	left int      // arguments that were not read yet
}

// encode returns the command, with what of it is still to come counted.
func (m *command) encode() []byte {
	b := fmt.Appendf(nil, "*%d\r\n$%d\r\n%s\r\n", 1+len(m.args)+m.left, len(m.name), m.name)
	for _, a := range m.args {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b
}

// readCommand reads what of a command is looked at. Commands without lengths (inline) are
// not taken: where they end is not certain.
func readCommand(in *bufio.Reader) (*command, error) {
	n, err := readHead(in, '*', maxCommandArgs)
	if err != nil {
		return nil, err
	}
	if n < 1 {
		return nil, malformed{"a command without a name"}
	}
	m := &command{left: n - 1}
	name, err := readWord(in)
	if err != nil {
		return nil, err
	}
	m.name = strings.ToUpper(name)
	if name != strings.Map(ascii, name) {
		return nil, malformed{"a command's name is not in ASCII"}
	}
	words := 0
	switch m.name {
	case "CLIENT", "SELECT":
		words = 1
	case "AUTH", "HELLO":
		if words = m.left; words > maxWords {
			return nil, malformed{m.name + " with too many words"}
		}
	}
	for range min(words, m.left) {
		a, err := readWord(in)
		if err != nil {
			return nil, err
		}
		m.args = append(m.args, a)
	}
	m.left -= len(m.args)
	return m, nil
}

func ascii(c rune) rune {
	if c > 0x7e || c < 0x21 {
		return -1
	}
	return c
}

// readHead reads a line with a length: a sign and a number without leading zeros.
func readHead(in *bufio.Reader, sign byte, most int) (int, error) {
	line, err := in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || err == nil && len(line) > maxHead {
		return 0, malformed{"a length is too long"}
	}
	if err != nil {
		return 0, err
	}
	text, ok := strings.CutSuffix(string(line), "\r\n")
	if !ok || text == "" || text[0] != sign {
		return 0, malformed{fmt.Sprintf("%.20q where %q is to be", text, sign)}
	}
	n, err := strconv.ParseUint(text[1:], 10, 31)
	if err != nil || strconv.FormatUint(n, 10) != text[1:] || int(n) > most {
		return 0, malformed{fmt.Sprintf("%.20q is no length", text[1:])}
	}
	return int(n), nil
}

// readWord reads an argument that is looked at.
func readWord(in *bufio.Reader) (string, error) {
	n, err := readHead(in, '$', maxCommandArg)
	if err != nil {
		return "", err
	}
	if n > maxWord {
		return "", malformed{fmt.Sprintf("a word of %d bytes where %d are looked at", n, maxWord)}
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(in, b); err != nil {
		return "", err
	}
	if string(b[n:]) != "\r\n" {
		return "", malformed{"an argument is longer than it says"}
	}
	return string(b[:n]), nil
}

// fromAgent passes commands on, or others in their place.
func (r *redisRelay) fromAgent(in *bufio.Reader, first *command, up net.Conn) (err error) {
	c := r.session
	p := &pipe{in, bufio.NewWriterSize(counted{up, &c.sent}, bufferSize)}
	for m := first; ; m = nil {
		if m == nil {
			if in.Buffered() == 0 {
				if err := p.out.Flush(); err != nil {
					return gone(err)
				}
			}
			if m, err = readCommand(in); err != nil {
				if errors.As(err, new(malformed)) {
					return refuse("protocol", "%v", err)
				}
				return gone(err)
			}
		}
		var to io.Writer = p.out
		out := m.encode()
		if why := r.judge(m); why != nil {
			out, to = r.instead(why), nil
		} else {
			c.counts.add(m.name, 0)
		}
		if _, err := p.out.Write(out); err != nil {
			return gone(err)
		}
		for range m.left {
			if err := p.argument(to); err != nil {
				if errors.As(err, new(malformed)) {
					return refuse("protocol", "%v", err)
				}
				return gone(err)
			}
		}
	}
}

func (r *redisRelay) judge(m *command) error {
	second := ""
	if len(m.args) > 0 {
		second = m.args[0]
	}
	if m.name == "HELLO" {
		for _, a := range m.args {
			if strings.EqualFold(a, "AUTH") {
				return errors.New("the connection is logged in already")
			}
		}
	}
	return r.session.definition.JudgeCommand(m.name, second)
}

// argument passes an argument on, or reads it away if there is nowhere to.
func (p *pipe) argument(to io.Writer) error {
	if p.in.Buffered() == 0 {
		if err := p.out.Flush(); err != nil {
			return err
		}
	}
	n, err := readHead(p.in, '$', maxCommandArg)
	if err != nil {
		return err
	}
	if to != nil {
		if _, err := fmt.Fprintf(p.out, "$%d\r\n", n); err != nil {
			return err
		}
	}
	return p.bulk(to, n)
}

// bulk passes on n bytes and the end of a line, or reads them away.
func (p *pipe) bulk(to io.Writer, n int) error {
	for left := n; left > 0; {
		if p.in.Buffered() == 0 {
			if err := p.out.Flush(); err != nil {
				return err
			}
			if _, err := p.in.Peek(1); err != nil {
				return err
			}
		}
		some, err := p.in.Peek(min(left, p.in.Buffered()))
		if err != nil {
			return err
		}
		if to != nil {
			if _, err := to.Write(some); err != nil {
				return err
			}
		}
		left -= len(some)
		if _, err := p.in.Discard(len(some)); err != nil {
			return err
		}
	}
	var end [2]byte
	if _, err := io.ReadFull(p.in, end[:]); err != nil {
		return err
	}
	if string(end[:]) != "\r\n" {
		return malformed{"an argument is longer than it says"}
	}
	if to == nil {
		return nil
	}
	_, err := to.Write(end[:])
	return err
}

// fromDatabase passes answers on. However they are nested, they are lines, some of which say
// how many bytes follow. It reports whether it ended between two of them.
func (r *redisRelay) fromDatabase(up net.Conn) (between bool, err error) {
	c := r.session
	p := &pipe{bufio.NewReaderSize(up, bufferSize), bufio.NewWriterSize(counted{c.agent, &c.received}, bufferSize)}
	for {
		if p.in.Buffered() == 0 {
			if err := p.out.Flush(); err != nil {
				return false, fmt.Errorf("%w: %w", errGone, err)
			}
		}
		if _, err := p.in.Peek(1); errors.Is(err, io.EOF) {
			return true, errTold // an end without a word is the protocol's
		} else if err != nil {
			return true, refuse("upstream_unreachable", "%s: the connection ended: %v", c.definition.Place(), err)
		}
		if err := r.line(p); err != nil {
			return false, err
		}
	}
}

// line passes a line on, with the bytes that it announces. An error that stands for a
// refusal is told as that.
func (r *redisRelay) line(p *pipe) error {
	line, err := p.in.ReadSlice('\n')
	for errors.Is(err, bufio.ErrBufferFull) { // it is text, and passes in parts
		if _, err := p.out.Write(line); err != nil {
			return err
		}
		if line, err = p.in.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			if err == nil {
				_, err = p.out.Write(line)
			}
			return err
		}
	}
	if err != nil {
		return err
	}
	switch line[0] {
	case '-':
		if why, ok := r.reason(string(line)); ok {
			line = redisError("NOPERM", fmt.Errorf("the command is not allowed: %s", why))
		}
	case '$', '=', '!', ';':
		text := strings.TrimSuffix(string(line), "\r\n")[1:]
		if _, err := p.out.Write(line); err != nil {
			return err
		}
		if text == "-1" || text == "?" || line[0] == ';' && text == "0" {
			return nil
		}
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return refuse("protocol", "%s sends a length that is none", r.session.definition.Place())
		}
		return p.bulk(p.out, int(n))
	}
	_, err = p.out.Write(line)
	return err
}
