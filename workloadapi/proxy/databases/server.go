package databases

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/workloadapi/gate/wire"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// The bounds of what agents may have open.
const (
	maxConns      = 4096
	maxConnsEach  = 1024     // of one user
	maxJudged     = 64 << 20 // bytes of statements that are held until they are judged
	maxJudgedEach = 16 << 20 // of one user
)

// A Server serves connections. Its methods are safe for concurrent use.
type Server struct {
	logger *slog.Logger
	work   sync.WaitGroup      // connections
	judged *semaphore.Weighted // bytes

	mu     sync.Mutex // guards the fields below
	link   *link.Conn // nil while there is none
	doors  map[string]*door
	told   map[string]bool // definitions that the daemon is telling of
	open   map[uint64]*session
	users  map[uint32]*user
	next   uint64 // ID of a connection
	closed bool
}

// A user is one who has connections open.
type user struct {
	conns  int                 // guarded by Server.mu
	judged *semaphore.Weighted // bytes
}

// A door is where agents connect by one definition.
type door struct {
	listener   *net.UnixListener
	definition *database.Definition // guarded by Server.mu
}

// New returns a server without doors.
func New(l *slog.Logger) *Server {
	return &Server{
		logger: l, judged: semaphore.NewWeighted(maxJudged),
		doors: make(map[string]*door), told: make(map[string]bool), open: make(map[uint64]*session), users: make(map[uint32]*user),
	}
}

// Linked has a daemon decide, until ended is called, and returns what takes its messages.
func (s *Server) Linked(l *link.Conn) (receive func(*link.Database, *os.File), ended func()) {
	s.mu.Lock()
	s.link = l
	s.mu.Unlock()
	return s.receive, s.unlink
}

// errNoDaemon means that there is nobody to decide any longer.
var errNoDaemon = errors.New("the daemon does not answer; is vouchd running?")

// unlink ends the connections of a daemon that has gone: nobody could end them with their
// leases.
func (s *Server) unlink() {
	s.mu.Lock()
	s.link = nil
	for name := range s.doors {
		s.shut(name)
	}
	s.mu.Unlock()
	s.endAll(errNoDaemon)
}

// Close ends all connections, and returns once the daemon has been told of them.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for name := range s.doors {
		s.shut(name)
	}
	s.mu.Unlock()
	s.endAll(errors.New("the proxy is stopping; connect again"))
	s.work.Wait()
}

func (s *Server) endAll(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		c.cancel(why)
	}
}

// receive takes a message of the daemon's.
func (s *Server) receive(m *link.Database, f *os.File) {
	switch {
	case m.Route != nil:
		s.route(m.Route, f)
		return
	case m.Answer != nil:
		if c := s.session(m.ID); c != nil {
			select {
			case c.answer <- m.Answer:
			default: // it has one
			}
		}
	case m.Cut != "":
		if c := s.session(m.ID); c != nil {
			c.cancel(fmt.Errorf("the lease has ended: %s", m.Cut))
		}
	}
	if f != nil {
		f.Close()
	}
}

func (s *Server) session(id uint64) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[id]
}

// route opens the door of a definition, or after the last shuts those that were not told of.
func (s *Server) route(r *link.DatabaseRoute, f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Name == "" {
		for name := range s.doors {
			if !s.told[name] {
				s.shut(name)
			}
		}
		s.told = make(map[string]bool)
		return
	}
	if f == nil || s.closed {
		return
	}
	defer f.Close()
	if err := r.Definition.Compile(); err != nil {
		s.logger.Error("a credential's database block", "credential", r.Name, "err", err)
		return
	}
	s.told[r.Name] = true
	if d := s.doors[r.Name]; d != nil {
		d.definition = r.Definition
		return
	}
	l, err := net.FileListener(f)
	if err != nil {
		s.logger.Error("taking over a database's socket", "credential", r.Name, "err", err)
		return
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		s.logger.Error("a database's socket is not a Unix socket", "credential", r.Name)
		return
	}
	u.SetUnlinkOnClose(false)
	d := &door{u, r.Definition}
	s.doors[r.Name] = d
	go s.accept(r.Name, d)
}

// shut closes a door. The connections that came by it stay, until their leases end. The
// mutex is held.
func (s *Server) shut(name string) {
	s.doors[name].listener.Close()
	delete(s.doors, name)
}

func (s *Server) accept(name string, d *door) {
	for {
		u, err := d.listener.AcceptUnix()
		switch {
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ECONNABORTED):
			s.logger.Error("accepting a connection to a database", "err", err)
			time.Sleep(100 * time.Millisecond) // descriptors may come free
			continue
		case err != nil:
			return // it is shut
		}
		c, err := s.admit(name, d, u)
		if err != nil {
			u.Close()
			s.logger.Debug("refusing a connection to a database", "err", err)
			continue
		}
		go func() {
			defer s.work.Done()
			c.serve()
		}()
	}
}

// admit pins the process that connected, and counts the connection.
func (s *Server) admit(name string, d *door, u *net.UnixConn) (*session, error) {
	peer, err := process.PeerOf(u)
	if err != nil {
		return nil, err
	}
	c := &session{server: s, name: name, agent: u, answer: make(chan *link.DatabaseAnswer, 1), began: time.Now()}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	uid := peer.UID()
	s.mu.Lock()
	err = s.enter(c, d, uid)
	s.mu.Unlock()
	if err != nil {
		peer.Close()
		return nil, err
	}
	if c.in, err = wire.New(u, peer, func() {
		peer.Close()
		s.leave(c, uid)
	}); err != nil {
		peer.Close()
		s.leave(c, uid)
		s.work.Done()
		return nil, err
	}
	return c, nil
}

// enter counts a connection, and gives it an ID. The mutex is held.
func (s *Server) enter(c *session, d *door, uid uint32) error {
	u := s.users[uid]
	if u == nil {
		u = &user{judged: semaphore.NewWeighted(maxJudgedEach)}
	}
	switch {
	case s.closed || s.link == nil:
		return errNoDaemon
	case len(s.open) >= maxConns || u.conns >= maxConnsEach:
		return fmt.Errorf("user %d has %d connections of %d, the maximum", uid, u.conns, len(s.open))
	}
	s.users[uid], c.user = u, u
	s.next++
	c.id, c.link, c.definition = s.next, s.link, d.definition
	s.open[c.id] = c
	u.conns++
	s.work.Add(1)
	return nil
}

func (s *Server) leave(c *session, uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c.id)
	if c.user.conns--; c.user.conns == 0 {
		delete(s.users, uid)
	}
}
