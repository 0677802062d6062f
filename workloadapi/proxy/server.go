package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/gate"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// Options are what calls are decided with. All are required.
type Options struct {
	Gate     *gate.Gate
	Recorder *gate.Recorder
	Leases   *lease.Manager
	Logger   *slog.Logger
	BootID   string
	Dir      string // below which sockets for databases are made, each in its protocol's
	// Holder returns the caller as the holder of a lease under one of its entries.
	Holder func(context.Context, *gate.Caller, identity.Entry, credential.Bind) (credential.Holder, error)
}

// A Server decides calls. Its methods are safe for concurrent use.
type Server struct {
	Options
	outcomes outcomes
	windows  windows
	sockets  sockets

	mu   sync.Mutex // guards the field below
	link *session   // nil while no process is there
}

// Close returns once what is known of calls has been recorded.
func (s *Server) Close() {
	s.outcomes.work.Wait()
	s.sockets.close()
}

// Problems says which databases nobody can connect to.
func (s *Server) Problems() []error { return s.sockets.problems() }

// New returns a server.
func New(o Options) *Server { return &Server{Options: o, sockets: sockets{dir: o.Dir}} }

// A session is one process that makes calls, for as long as it is linked.
type session struct {
	*Server
	link      *link.Conn
	sightings sightings
	looks     looks
	logins    *logins

	mu      sync.Mutex // guards the fields below
	conns   map[uint64]*conn
	asked   map[uint64]*question          // requests that were allowed, and not over
	waiting map[uint64]chan *link.Present // challenges
	cuts    map[string]bool               // leases whose end is waited for
}

// maxAsked is how many requests are decided at a time.
const maxAsked = 256

// Serve decides what the process at the other end of the link asks, until it ends or
// the context does. It closes the link.
func (s *Server) Serve(ctx context.Context, l *link.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	of := &session{
		Server: s, link: l,
		conns: make(map[uint64]*conn), asked: make(map[uint64]*question),
		waiting: make(map[uint64]chan *link.Present), cuts: make(map[string]bool),
	}
	of.logins = newLogins(of)
	s.mu.Lock()
	s.link = of
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.link = nil
		s.mu.Unlock()
		of.end(ctx)
		of.logins.close(ctx)
		of.logins.work.Wait()
	}()
	if err := of.sendRoutes(); err != nil {
		return err
	}
	turns := semaphore.NewWeighted(maxAsked)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel() // first
	work.Go(func() { of.sightings.forgetAt(ctx, s.Gate.Changed) })
	work.Go(func() { of.cutAtChanges(ctx) })
	for {
		m, f, err := l.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return err
		}
		if m.Ask == nil {
			of.handle(ctx, m, f)
			continue
		}
		if f != nil {
			f.Close()
		}
		work.Go(func() {
			// Not before: those who have a turn may wait for what comes next.
			if turns.Acquire(ctx, 1) == nil {
				defer turns.Release(1)
				of.answer(ctx, m)
			}
		})
	}
}

// Refresh tells the process which definitions there are now.
func (s *Server) Refresh() {
	s.mu.Lock()
	of := s.link
	s.mu.Unlock()
	if of == nil {
		return
	}
	if err := of.sendRoutes(); err != nil {
		s.Logger.Error("telling the proxy of the credentials in force", "err", err)
	}
}

func (s *session) sendRoutes() error {
	for _, d := range s.Leases.Definitions().All() {
		if d.Proxy == nil {
			continue
		}
		err := s.link.Send(&link.Message{Route: &link.Route{Name: d.Name, Policy: d.Proxy}}, nil)
		if errors.Is(err, link.ErrTooLong) {
			s.Logger.Error("a credential has too many rules for the proxy; it makes no calls with it", "credential", d.Name, "err", err)
			continue
		}
		if err != nil {
			return err
		}
	}
	if err := s.link.Send(&link.Message{Route: &link.Route{}}, nil); err != nil {
		return err
	}
	return s.sendDatabases()
}

// handle takes a message that is no question.
func (s *session) handle(ctx context.Context, m *link.Message, f *os.File) {
	switch {
	case m.Database != nil:
		s.logins.handle(ctx, m.Database, f)
		return
	case m.Open:
		s.open(m.ID, f)
		return
	case m.Relay != nil:
		s.mu.Lock()
		c := s.conns[m.ID]
		s.mu.Unlock()
		if c != nil {
			c.introduce(m.Relay)
		}
	case m.Close:
		s.mu.Lock()
		c := s.conns[m.ID]
		delete(s.conns, m.ID)
		s.mu.Unlock()
		if c != nil {
			c.close()
		}
	case m.Present != nil:
		s.mu.Lock()
		w := s.waiting[m.ID]
		delete(s.waiting, m.ID)
		s.mu.Unlock()
		if w != nil {
			w <- m.Present
		}
	case m.Outcomes != nil:
		for i := range m.Outcomes {
			o := &m.Outcomes[i]
			s.mu.Lock()
			q := s.asked[o.ID]
			delete(s.asked, o.ID)
			s.mu.Unlock()
			if q != nil {
				s.record(ctx, q, o)
			}
		}
	}
	if f != nil {
		f.Close()
	}
}

// open learns from the kernel who is at the other end of a connection.
func (s *session) open(id uint64, f *os.File) {
	if f == nil {
		return
	}
	p, err := peerOf(f)
	if err != nil && !errors.Is(err, process.ErrPeerGone) {
		s.Logger.Error("a connection of the proxy's", "err", err)
	}
	if err != nil {
		return // requests over it are refused
	}
	c := &conn{peer: p, holders: make(map[string]*holder)}
	s.mu.Lock()
	old := s.conns[id]
	s.conns[id] = c
	s.mu.Unlock()
	if old != nil {
		old.close()
	}
}

// peerOf pins the process that connected, and closes the file.
func peerOf(f *os.File) (*process.Peer, error) {
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("a connection of type %T is not a Unix socket", c)
	}
	return process.PeerOf(u)
}

// end lets go of what a process that has gone had, and records that nobody knows what
// became of the calls that it was making.
func (s *session) end(ctx context.Context) {
	s.mu.Lock()
	conns, asked, waiting := s.conns, s.asked, s.waiting
	s.conns, s.asked, s.waiting = nil, nil, nil
	s.mu.Unlock()
	for _, c := range conns {
		c.close()
	}
	for _, w := range waiting {
		close(w)
	}
	for _, q := range asked {
		s.record(context.WithoutCancel(ctx), q, &link.Outcome{Problem: "the proxy ended before the call had"})
	}
}
