package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/workloadapi/gate/wire"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// The bounds of what agents may have open.
const (
	maxConns      = 8192
	maxHeader     = 64 << 10
	headerTimeout = 30 * time.Second // for a request's header to arrive
	idleTimeout   = 5 * time.Minute  // between requests
	drainTimeout  = 30 * time.Second // for requests to end once the server is to
)

// Options are what a server works with. All are required.
type Options struct {
	Listener *net.UnixListener
	// Link returns a link to the daemon, once there is one; it is called again when that
	// has ended. [io.EOF] says that there will be none, and ends the server.
	Link   func(context.Context) (*link.Conn, error)
	Logger *slog.Logger
	// Databases serves connections to databases, which share the link.
	Databases Databases
}

// Databases is package databases, as this one needs it.
type Databases interface {
	// Linked has a daemon decide until ended is called, and returns what takes its messages.
	Linked(l *link.Conn) (receive func(*link.Database, *os.File), ended func())
	// Close ends all connections, and returns once the daemon has been told of them.
	Close()
}

// A server is the process.
type server struct {
	logger    *slog.Logger
	upstreams upstreams
	filters   filters
	databases Databases
	inspected *semaphore.Weighted // bytes of content
	passed    *queue              // connections that relays pass on

	contentTimeout time.Duration

	mu     sync.Mutex // guards the fields below
	daemon *client    // nil while there is no link
	conns  map[uint64]*conn
	users  map[uint32]*user
	next   uint64 // ID of a connection
}

// Serve makes calls until the context ends; those under way then have 30 seconds to end,
// as they do when the daemon is gone for good. It closes the listener and the link.
func Serve(ctx context.Context, o Options) error {
	s := newServer(o.Logger)
	s.databases = o.Databases
	defer s.upstreams.close()
	s.passed = newQueue(o.Listener)
	group, ctx := errgroup.WithContext(ctx)
	linked, unlink := context.WithCancel(context.WithoutCancel(ctx)) // outcomes are told until the last call has ended
	defer unlink()
	group.Go(func() error { return s.keepLinked(ctx, linked, o.Link) })
	drained := make(chan struct{}, 2)
	for _, l := range []net.Listener{&listener{o.Listener, s}, s.passed} {
		h := s.http()
		group.Go(func() error {
			if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving %s: %w", l.Addr(), err)
			}
			return nil
		})
		go func() {
			<-ctx.Done()
			drain, cancel := context.WithTimeout(linked, drainTimeout)
			defer cancel()
			if err := h.Shutdown(drain); err != nil {
				h.Close()
			}
			drained <- struct{}{}
		}()
	}
	<-drained
	<-drained
	s.databases.Close()
	if d := s.linked(); d != nil {
		d.tellAll()
	}
	unlink()
	if err := group.Wait(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// http returns a server of connections.
func (s *server) http() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: s, Protocols: protocols, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000, MaxReadFrameSize: 16 << 10, MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 256 << 10},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, connOf(c))
		},
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
}

func newServer(l *slog.Logger) *server {
	return &server{
		logger: l, inspected: semaphore.NewWeighted(maxInspectedAll), contentTimeout: contentTimeout,
		conns: make(map[uint64]*conn), users: make(map[uint32]*user),
	}
}

// keepLinked has a daemon answer, one after the other, until the server is to end.
func (s *server) keepLinked(ctx, linked context.Context, next func(context.Context) (*link.Conn, error)) error {
	for {
		l, err := next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.attach(linked, l); err != nil {
			s.logger.Error("the daemon's link", "err", err)
		}
	}
}

// attach has the daemon at the other end of a link answer, until it ends. Connections that
// are open are announced to it.
func (s *server) attach(ctx context.Context, l *link.Conn) error {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	c := newClient(l, s.logger)
	var ended func()
	c.database, ended = s.databases.Linked(l)
	defer ended()
	s.mu.Lock()
	s.daemon = c
	open := slices.Collect(maps.Values(s.conns))
	s.mu.Unlock()
	for _, o := range open {
		c.link.Send(&link.Message{ID: o.id, Open: true}, o.unix) // a link that has failed ends run
		s.mu.Lock()
		says := o.says
		s.mu.Unlock()
		if says != nil {
			c.link.Send(o.introduced(), nil)
		}
	}
	err := c.run(ctx)
	s.mu.Lock()
	s.daemon = nil
	s.mu.Unlock()
	return err
}

// linked returns the daemon to ask, or nil.
func (s *server) linked() *client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.daemon
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// A conn is a connection of an agent's.
type conn struct {
	*wire.Conn
	unix *net.UnixConn // for its descriptor alone
	id   uint64
	uid  uint32
	user *user
	says *relay.Hello // of a relay's connection; nil else. Set once, with server.mu held
}

// challenged reports whether the process that connected can be challenged: it speaks HTTP/2
// itself.
func (c *conn) challenged(r *http.Request) bool { return c.says == nil && r.ProtoMajor == 2 }

// A listener accepts connections whose every byte is from the process that connected.
type listener struct {
	*net.UnixListener
	server *server
}

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	for {
		u, err := l.AcceptUnix()
		switch {
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ECONNABORTED):
			l.server.logger.Error("accepting a connection", "err", err)
			time.Sleep(100 * time.Millisecond) // descriptors may come free
			continue
		case err != nil:
			return nil, err
		}
		c, err := l.server.admit(u)
		if err != nil {
			u.Close()
			l.server.logger.Debug("refusing a connection", "err", err)
			continue
		}
		return c, nil
	}
}

// admit pins the process that connected, and tells the daemon of it.
func (s *server) admit(u *net.UnixConn) (*conn, error) {
	peer, err := process.PeerOf(u)
	if err != nil {
		return nil, err
	}
	c := &conn{unix: u, uid: peer.UID()}
	if err := s.enter(c); err != nil {
		peer.Close()
		return nil, err
	}
	ended := func() {
		peer.Close()
		s.leave(c)
	}
	if c.Conn, err = wire.New(u, peer, ended); err != nil {
		ended()
		return nil, err
	}
	if d := s.linked(); d != nil {
		d.link.Send(&link.Message{ID: c.id, Open: true}, u) // a link that has failed ends elsewhere
	}
	return c, nil
}

// enter counts a connection, and gives it an ID.
func (s *server) enter(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.user = s.users[c.uid]; c.user == nil {
		c.user = newUser()
	}
	if len(s.conns) >= maxConns || c.user.conns >= maxConnsEach {
		return fmt.Errorf("user %d has %d connections of %d, the maximum", c.uid, c.user.conns, len(s.conns))
	}
	s.next++
	c.id = s.next
	s.conns[c.id] = c
	s.users[c.uid] = c.user
	c.user.conns++
	return nil
}

func (s *server) leave(c *conn) {
	s.mu.Lock()
	delete(s.conns, c.id)
	if c.user.conns--; c.user.conns == 0 {
		delete(s.users, c.uid)
	}
	d := s.daemon
	s.mu.Unlock()
	if d != nil {
		d.link.Send(&link.Message{ID: c.id, Close: true}, nil)
	}
}
