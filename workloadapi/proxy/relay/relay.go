// Package relay is how a program that passes connections of others on to the proxy's socket
// says whose they are.
//
// The first request of such a connection switches it over (RFC 9110 §7.8) and brings a
// [Hello]; what follows is what the others send, as if they had connected themselves. The
// relay speaks for processes that descend from it and for nobody else: a handle that it
// shows is its own, and of the processes that it names the daemon looks whether they are
// its descendants.
package relay

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// Protocol is what the connection switches to.
const Protocol = "vouchd-relay"

// header is the request's header that has the hello, in JSON.
const header = "Vouchd-Relay"

// A Hello is what a relay says of a connection.
type Hello struct {
	Door      string            `json:"door"`                // by which it came to the relay: one of the constants below
	Host      string            `json:"host,omitempty"`      // the only one that is called over it; empty: any
	Handles   map[string]string `json:"handles,omitempty"`   // that the relay holds, by credential
	Processes []Process         `json:"processes,omitempty"` // that have the connection's other end
	Authority string            `json:"authority,omitempty"` // SHA-256 in hexadecimal of the certificate that TLS was ended with
	Attempt   *Attempt          `json:"attempt,omitempty"`   // there is no connection: this was tried, and cannot be
}

// The doors of a relay.
const (
	Loopback = "loopback" // a port of 127.0.0.1
	Connect  = "connect"  // that port, by CONNECT
	Sandbox  = "sandbox"  // an address in a namespace that has nothing else
)

// A Process is one of the machine's.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in ticks since boot
}

// An Attempt is something that a process tried and that leads nowhere.
type Attempt struct {
	Kind   string `json:"kind"`            // such as connect, tls, udp, dns or socket
	Target string `json:"target"`          // such as an address
	Count  int    `json:"count,omitempty"` // of times, if more than one
}

// The bounds of a hello.
const (
	MaxHello     = 32 << 10 // bytes
	MaxHandles   = 64
	MaxProcesses = 8
	MaxText      = 300 // bytes of a target
)

func (h *Hello) check() error {
	switch {
	case h.Door != Loopback && h.Door != Connect && h.Door != Sandbox:
		return fmt.Errorf("door %.20q is not known", h.Door)
	case len(h.Handles) > MaxHandles || len(h.Processes) > MaxProcesses:
		return fmt.Errorf("%d handles and %d processes are more than %d and %d", len(h.Handles), len(h.Processes), MaxHandles, MaxProcesses)
	case h.Attempt != nil && (h.Attempt.Kind == "" || len(h.Attempt.Kind) > 20 || h.Attempt.Target == "" || len(h.Attempt.Target) > MaxText || h.Attempt.Count < 0):
		return errors.New("the attempt is not of a kind and a target")
	case len(h.Authority) > 64 || len(h.Host) > 253:
		return errors.New("the host or the authority is too long")
	}
	return nil
}

// Of returns what a request says that would switch its connection over, or nil if it would not.
func Of(r *http.Request) (*Hello, error) {
	if r.ProtoMajor != 1 || !strings.EqualFold(r.Header.Get("Upgrade"), Protocol) {
		return nil, nil
	}
	text := r.Header.Get(header)
	if len(text) > MaxHello {
		return nil, fmt.Errorf("header %s has %d bytes and may have %d", header, len(text), MaxHello)
	}
	h := new(Hello)
	if err := json.Unmarshal([]byte(text), h); err != nil {
		return nil, fmt.Errorf("header %s: %w", header, err)
	}
	return h, h.check()
}

// answerTimeout bounds the wait for the proxy's consent.
const answerTimeout = 30 * time.Second

// Dial connects to the proxy's socket at a path, and returns a connection that is the
// other's from here on. For an attempt there is none: it returns nil once the proxy knows.
func Dial(ctx context.Context, path string, h *Hello) (net.Conn, error) {
	says, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	conn, err := switchOver(c, h, says)
	if err != nil || conn == nil {
		c.Close()
	}
	return conn, err
}

func switchOver(c net.Conn, h *Hello, says []byte) (net.Conn, error) {
	if err := c.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: vouchd\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %s\r\n\r\n", Protocol, header, says); err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(c, 4<<10)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return nil, fmt.Errorf("switching a connection to the proxy over: %w", err)
	}
	defer resp.Body.Close()
	switch {
	case h.Attempt != nil && resp.StatusCode == http.StatusForbidden:
		return nil, nil
	case resp.StatusCode != http.StatusSwitchingProtocols || h.Attempt != nil:
		return nil, fmt.Errorf("switching a connection to the proxy over: it answers %s; is it of this version?", resp.Status)
	case in.Buffered() > 0:
		return nil, errors.New("switching a connection to the proxy over: it spoke first")
	}
	return c, c.SetDeadline(time.Time{})
}
