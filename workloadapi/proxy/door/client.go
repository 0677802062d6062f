package door

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// A client asks the daemon. Its methods are safe for concurrent use.
type client struct {
	link   *link.Conn
	logger *slog.Logger

	database func(*link.Database, *os.File) // takes what is said of connections to databases

	told chan struct{} // closed once the routes are known, or never will be

	mu      sync.Mutex // guards the fields below
	routes  *routes
	coming  map[string]*policy.Policy // of the routes that are being told
	pending map[uint64]*pending
	running map[string]map[uint64]context.CancelCauseFunc // requests by their lease
	next    uint64
	ended   bool
	done    []link.Outcome // not told yet
	telling bool           // that they will be is arranged
}

// A pending question waits for its answer.
type pending struct {
	conn   *conn
	ctx    context.Context
	cancel context.CancelCauseFunc // ends the call
	answer chan *link.Answer       // gets one, or is closed
}

// routes are the definitions in force. They do not change.
type routes struct {
	byName map[string]*policy.Policy
	byHost map[string][]string // names, sorted
}

func newClient(l *link.Conn, logger *slog.Logger) *client {
	return &client{
		link: l, logger: logger, told: make(chan struct{}), coming: make(map[string]*policy.Policy),
		pending: make(map[uint64]*pending), running: make(map[string]map[uint64]context.CancelCauseFunc),
	}
}

func newRoutes(by map[string]*policy.Policy) *routes {
	r := &routes{byName: by, byHost: make(map[string][]string)}
	for name, p := range by {
		for _, h := range p.Hosts {
			r.byHost[h] = append(r.byHost[h], name)
		}
	}
	for _, names := range r.byHost {
		slices.Sort(names)
	}
	return r
}

// run takes what the daemon says until the link ends.
func (c *client) run(ctx context.Context) error {
	defer c.end()
	for {
		m, f, err := c.link.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return err
		}
		if m.Database != nil {
			c.database(m.Database, f)
			continue
		}
		if f != nil {
			f.Close()
		}
		switch {
		case m.Route != nil:
			c.route(m.Route)
		case m.Challenge:
			c.challenge(m.ID)
		case m.Answer != nil:
			c.answered(m.ID, m.Answer)
		case m.Cut != "":
			c.cut(m.Cut)
		}
	}
}

// answered hands an answer over. A call that it allows can be cut from here on: the next
// message may say so.
func (c *client) answered(id uint64, a *link.Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pending[id]
	if p == nil {
		return
	}
	delete(c.pending, id)
	if a.Lease != "" {
		if c.running[a.Lease] == nil {
			c.running[a.Lease] = make(map[uint64]context.CancelCauseFunc)
		}
		c.running[a.Lease][id] = p.cancel
	}
	p.answer <- a
}

// finished notes that a call has ended.
func (c *client) finished(lease string, id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if delete(c.running[lease], id); len(c.running[lease]) == 0 {
		delete(c.running, lease)
	}
}

// end tells those who wait that nothing will come.
func (c *client) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.routes == nil {
		close(c.told)
	}
	for id, p := range c.pending {
		close(p.answer)
		delete(c.pending, id)
	}
}

func (c *client) route(r *link.Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Name == "" {
		if c.routes == nil && !c.ended {
			close(c.told)
		}
		c.routes, c.coming = newRoutes(c.coming), make(map[string]*policy.Policy)
		return
	}
	if err := r.Policy.Compile(); err != nil {
		c.logger.Error("a credential's proxy block", "credential", r.Name, "err", err)
		return
	}
	if c.routes == nil {
		c.coming[r.Name] = r.Policy
		return
	}
	if same := c.routes.byName[r.Name]; same != nil && same.Same(r.Policy) {
		r.Policy = same // its connections stay
	}
	c.coming[r.Name] = r.Policy
}

// inForce returns the definitions in force, once the daemon has told them.
func (c *client) inForce(ctx context.Context) (*routes, error) {
	select {
	case <-c.told:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.routes == nil {
		return nil, errNoDaemon
	}
	return c.routes, nil
}

// errNoDaemon means that there is nobody to decide.
var errNoDaemon = errors.New("the daemon does not answer")

// ask returns what becomes of a request, and its ID. If it is allowed, it is under way
// until [client.finished], and cancel is called when its lease ends.
func (c *client) ask(ctx context.Context, cancel context.CancelCauseFunc, over *conn, a *link.Ask) (*link.Answer, uint64, error) {
	if err := over.user.asked.Acquire(ctx, 1); err != nil {
		return nil, 0, err
	}
	defer over.user.asked.Release(1)
	p := &pending{conn: over, ctx: ctx, cancel: cancel, answer: make(chan *link.Answer, 1)}
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return nil, 0, errNoDaemon
	}
	c.next++
	id := c.next
	c.pending[id] = p
	c.mu.Unlock()
	if err := c.link.Send(&link.Message{ID: id, Ask: a}, nil); err != nil {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		if errors.Is(err, link.ErrTooLong) {
			return nil, 0, err
		}
		return nil, 0, errNoDaemon
	}
	// The answer is waited for even if the agent goes away: what it allows is recorded
	// already, and has an outcome.
	answer, ok := <-p.answer
	if !ok {
		return nil, 0, errNoDaemon
	}
	return answer, id, nil
}

// challenge has the process that asked show that it is at the connection.
func (c *client) challenge(id uint64) {
	c.mu.Lock()
	p := c.pending[id]
	c.mu.Unlock()
	if p == nil {
		return
	}
	present := func(err error) {
		m := &link.Present{}
		if err != nil {
			m.Problem = err.Error()
		}
		c.link.Send(&link.Message{ID: id, Present: m}, nil) // a link that has failed ends elsewhere
	}
	wait, err := p.conn.Challenge()
	if err != nil {
		present(err)
		return
	}
	go func() { present(wait(p.ctx)) }()
}

// tellEvery is how long outcomes wait for others, to be told together, and tellMost how
// many of them a message has.
const (
	tellEvery = 10 * time.Millisecond
	tellMost  = 128
)

// tell tells the daemon how a call went. Nothing waits for it.
func (c *client) tell(o link.Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = append(c.done, o)
	if !c.telling {
		c.telling = true
		time.AfterFunc(tellEvery, c.tellAll)
	}
}

// tellAll tells of the calls that have ended.
func (c *client) tellAll() {
	c.mu.Lock()
	done := c.done
	c.done, c.telling = nil, false
	c.mu.Unlock()
	for some := range slices.Chunk(done, tellMost) {
		c.link.Send(&link.Message{Outcomes: some}, nil) // a link that has failed ends elsewhere
	}
}

// errCut ends the calls of a lease that has ended.
var errCut = errors.New("the lease has ended")

func (c *client) cut(lease string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cancel := range c.running[lease] {
		cancel(errCut)
	}
}
