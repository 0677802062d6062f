package databases

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential/database"
)

// aConn is a connection to nowhere, which has what was written.
type aConn struct {
	net.Conn
	bytes.Buffer
}

func (c *aConn) Read(p []byte) (int, error) { return c.Buffer.Read(p) }

func (c *aConn) Write(p []byte) (int, error) { return c.Buffer.Write(p) }

func (c *aConn) Close() error { return nil }

// FuzzCommands: what goes on to the database is whole commands, each of them allowed, or
// one that fails. The last may be cut off.
func FuzzCommands(f *testing.F) {
	for _, s := range []string{
		"*1\r\n$4\r\nPING\r\n", "*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n", "*3\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n",
		"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n", "*2\r\n$6\r\nclient\r\n$4\r\nkill\r\n", "*1\r\n$4\r\nAUTH\r\n", "PING\r\n", "*2\r\n$3\r\nGET\r\n$5\r\na\r\nb\n\r\n",
	} {
		f.Add([]byte(s))
	}
	d := definition(f, database.Definition{Protocol: database.Redis, Upstream: "redis://localhost", Statements: []string{"GET", "SET"}})
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &session{definition: d, ctx: context.Background()}
		r := &redisRelay{session: c, mark: "VOUCHD.mark.", why: make(map[string]string)}
		up := new(aConn)
		r.fromAgent(bufio.NewReaderSize(bytes.NewReader(in), 256), nil, up)
		out := bufio.NewReader(up)
		for {
			words, err := whole(out)
			if err != nil {
				return // it ends, or is cut off
			}
			name, second := strings.ToUpper(words[0]), ""
			if len(words) > 1 {
				second = words[1]
			}
			if strings.HasPrefix(name, "VOUCHD.MARK.") && len(words) == 1 {
				continue
			}
			if err := d.JudgeCommand(name, second); err != nil {
				t.Fatalf("%q becomes %q: %v", in, words, err)
			}
		}
	})
}

// whole reads a command as a server does.
func whole(in *bufio.Reader) (words []string, err error) {
	number := func(sign byte) (int, error) {
		line, err := in.ReadString('\n')
		if err != nil || line[0] != sign {
			return 0, io.ErrUnexpectedEOF
		}
		return strconv.Atoi(strings.TrimSpace(line[1:]))
	}
	n, err := number('*')
	if err != nil || n < 1 {
		return nil, io.ErrUnexpectedEOF
	}
	for range n {
		length, err := number('$')
		if err != nil {
			return nil, err
		}
		b := make([]byte, length+2)
		if _, err := io.ReadFull(in, b); err != nil {
			return nil, err
		}
		words = append(words, string(b[:length]))
	}
	return words, nil
}

// FuzzAnswers: whatever a database answers, it passes as it is, but for refusals.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{"+OK\r\n", "-ERR x\r\n", "$3\r\nabc\r\n", "*2\r\n:1\r\n$-1\r\n", "%1\r\n+a\r\n#t\r\n", "=7\r\ntxt:abc\r\n", "$?\r\n;3\r\nabc\r\n;0\r\n", ">2\r\n+a\r\n+b\r\n", "$5\r\na\r\n"} {
		f.Add([]byte(s))
	}
	d := definition(f, database.Definition{Protocol: database.Redis, Upstream: "redis://localhost"})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := &redisRelay{session: &session{definition: d, ctx: context.Background()}, mark: "VOUCHD.mark.", why: make(map[string]string)}
		var out bytes.Buffer
		p := &pipe{bufio.NewReaderSize(bytes.NewReader(in), 64), bufio.NewWriter(&out)}
		for r.line(p) == nil {
		}
		p.out.Flush()
		if !bytes.HasPrefix(in, out.Bytes()) && !bytes.Contains(in, []byte(r.mark)) {
			t.Fatalf("%q becomes %q", in, out.Bytes())
		}
	})
}
