package relay

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// maxClientHello bounds what is read before the name is known, in bytes.
const maxClientHello = 64 << 10

var errRead = errors.New("the name has been read")

// ServerName reads the name that a client of TLS asks for (RFC 6066 §3; empty if it asks
// for none), and returns what follows, the greeting itself first. It takes no longer than
// the limit.
func ServerName(c net.Conn, in io.Reader, limit time.Duration) (name string, again io.Reader, err error) {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return "", nil, err
	}
	var seen bytes.Buffer
	only := &reading{Reader: io.TeeReader(io.LimitReader(in, maxClientHello), &seen), Conn: c}
	err = tls.Server(only, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name = h.ServerName
		return nil, errRead
	}}).Handshake()
	if !errors.Is(err, errRead) {
		return "", nil, fmt.Errorf("reading the greeting of a client of TLS: %w", err)
	}
	return name, io.MultiReader(&seen, in), c.SetReadDeadline(time.Time{})
}

// A reading connection says nothing.
type reading struct {
	io.Reader
	net.Conn
}

func (r *reading) Read(p []byte) (int, error)     { return r.Reader.Read(p) }
func (*reading) Write(p []byte) (int, error)      { return len(p), nil }
func (*reading) SetWriteDeadline(time.Time) error { return nil }
