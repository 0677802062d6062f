package proxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/workloadapi/gate"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// A conn is a connection to the process that makes calls, as the daemon knows it.
type conn struct {
	peer *process.Peer // that connected

	mu      sync.Mutex // guards the fields below
	holders map[string]*holder
	closed  bool
	relay   *link.Relay // what the one who connected says of it, if it is another's; nil else
	by      func() string
}

// introduce notes whose connection the process that connected passes on.
func (c *conn) introduce(r *link.Relay) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relay = r
	c.by = sync.OnceValue(func() string { return c.descendants(r.Processes) })
}

// descendants describes processes. Those that do not descend from the one that connected
// are left out.
func (c *conn) descendants(of []relay.Process) string {
	var list []string
	for _, p := range of {
		if text, err := c.descendant(p); err == nil {
			list = append(list, text)
		}
	}
	return strings.Join(list, ", ")
}

// maxProgram bounds how much of a program's path is recorded of a descendant, in bytes.
const maxProgram = 100

// descendant describes a process that descends from the one that connected.
func (c *conn) descendant(of relay.Process) (string, error) {
	p, err := process.PinStarted(of.PID, of.Start, 0, 0)
	if err != nil {
		return "", err
	}
	defer p.Close()
	lineage, err := p.Lineage()
	if err != nil {
		return "", err
	}
	start, err := c.peer.StartTime()
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(lineage, func(a process.Ancestor) bool { return a.PID == c.peer.PID() && a.StartTime == start }) {
		return "", fmt.Errorf("process %d does not descend from process %d", of.PID, c.peer.PID())
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", of.PID))
	if err != nil {
		return "", err
	}
	if len(program) > maxProgram {
		program = "…" + strings.ToValidUTF8(program[len(program)-maxProgram:], "")
	}
	return fmt.Sprintf("%s (%d)", program, of.PID), p.Alive()
}

// A holder is the process whose handle was shown, pinned for as long as the connection
// lasts.
type holder struct{ peer *process.Peer }

func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, h := range c.holders {
		h.peer.Close()
	}
	c.holders = nil
	c.peer.Close()
}

var errHandle = errors.New("the handle is not one that this process, or one that it descends from, was given")

// maxHolders bounds the handles that are shown over one connection.
const maxHolders = 16

// holderOf returns the process that a handle was given to: the one that connected, or
// an ancestor of it that lives.
func (s *session) holderOf(c *conn, handle, name string) (*process.Peer, error) {
	lineage, err := c.peer.Lineage()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", gate.ErrAttestation, err)
	}
	for i, a := range lineage {
		if !s.Leases.IsHandle(handle, name, credential.Process{PID: a.PID, StartTime: a.StartTime, BootID: s.BootID}) {
			continue
		}
		if i == 0 {
			return c.peer, nil
		}
		if d, ok := s.Leases.Definitions().Get(name); ok && d.Proxy != nil && d.Proxy.MainOnly {
			return nil, fmt.Errorf("%w: process %d has it, and its definition is for that process alone (who: main)", errHandle, a.PID)
		}
		return c.pin(handle, a)
	}
	return nil, errHandle
}

func (c *conn) pin(handle string, a process.Ancestor) (*process.Peer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, process.ErrPeerGone
	}
	if h := c.holders[handle]; h != nil {
		if start, err := h.peer.StartTime(); err == nil && h.peer.PID() == a.PID && start == a.StartTime {
			return h.peer, nil
		}
		h.peer.Close()
		delete(c.holders, handle)
	}
	if len(c.holders) >= maxHolders {
		return nil, fmt.Errorf("%w: %d handles were shown over one connection", errHandle, len(c.holders))
	}
	p, err := process.PinStarted(a.PID, a.StartTime, a.UID, a.GID)
	if err != nil {
		return nil, err
	}
	c.holders[handle] = &holder{p}
	return p, nil
}

// A caller is a process that calls over a connection: the one at its other end, or one
// that it descends from. It is a [gate.Peer].
type caller struct {
	*session
	id      uint64 // of the request
	process *process.Peer
	http2   bool // it is at the connection itself, and can be challenged
	handle  bool // it was given the handle, or is a parent of who shows it
}

// Process implements [gate.Peer].
func (c *caller) Process() *process.Peer { return c.process }

// Attest implements [gate.Peer]. Without a handle or a challenge, a process that has
// become another user than the one that connected is not believed: it may run a program
// that is entitled to more, while the request is from before.
func (c *caller) Attest(ctx context.Context, a *process.Attester) (*process.Attested, error) {
	at, err := c.sightings.attest(ctx, a, c.process)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", gate.ErrAttestation, err)
	}
	if !c.handle && !c.http2 && (at.UID != c.process.UID() || at.GID != c.process.GID()) {
		return nil, fmt.Errorf("%w: it connected as user %d and group %d, and is user %d and group %d now", gate.ErrAttestation, c.process.UID(), c.process.GID(), at.UID, at.GID)
	}
	return at, nil
}

// Unchanged implements [gate.Observer].
func (c *caller) Unchanged(a *process.Attester, at *process.Attested) error {
	return c.looks.unchanged(a, c.process, at)
}

// Challenge implements [gate.Peer].
func (c *caller) Challenge() (func(context.Context) error, error) {
	if !c.http2 {
		return func(context.Context) error { return c.process.Alive() }, nil
	}
	answered := make(chan *link.Present, 1)
	c.mu.Lock()
	if c.waiting == nil {
		c.mu.Unlock()
		return nil, errors.New("the proxy has ended")
	}
	c.waiting[c.id] = answered
	c.mu.Unlock()
	if err := c.link.Send(&link.Message{ID: c.id, Challenge: true}, nil); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.waiting, c.id)
		}()
		select {
		case p := <-answered:
			switch {
			case p == nil:
				return errors.New("the proxy has ended")
			case p.Problem != "":
				return errors.New(p.Problem)
			}
			return c.process.Alive()
		case <-ctx.Done():
			return ctx.Err()
		}
	}, nil
}
