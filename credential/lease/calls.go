package lease

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/secret"
)

// HandleField is the field that a holder gets of a credential which is delivered by
// the proxy.
const HandleField = "handle"

// A Call is what one call is made with.
type Call struct {
	Lease  credential.Lease
	Fields []credential.Field // not to be wiped: other calls are made with them
	Over   <-chan struct{}    // closed when the lease begins to end
	New    bool               // it was granted for this call

	why func() string
}

// Reason returns why the lease has ended, once Over is closed. Only the call of
// [Manager.Connect] knows.
func (c *Call) Reason() string { return c.why() }

// calls finds the lease by which a holder makes calls. Each holder has a seat, on which
// one lease follows the other.
type calls struct {
	*engine
	grants    *grants
	handleKey []byte

	mu    sync.Mutex // guards seats
	seats map[seatKey]*seat
}

// seatKey names what a lease is bound to. It is comparable.
type seatKey struct {
	identity   spiffeid.ID
	credential string
	process    credential.Process
}

// A seat is where a holder's calls find their lease.
type seat struct {
	mu    sync.Mutex // held while a lease is granted; guards the field below
	lease *lease     // nil at first

	connections []*lease // to a database; guarded by mu
}

// spare is how long before its end a lease is followed by the next, so that a call
// under way does not see it expire.
const spare = 5 * time.Second

// call is [Manager.Call].
func (c *calls) call(ctx context.Context, h credential.Holder, a credential.Ask) (*Call, error) {
	d, ok := c.book.definitions().Get(a.Name)
	if !ok {
		return nil, fmt.Errorf("%w: %s; add it to the credentials directory", credential.ErrUndefined, a.Name)
	}
	if d.Proxy == nil {
		return nil, fmt.Errorf("%w: %s has no proxy block, and no calls are made with it; add one to its definition", credential.ErrNotGranted, a.Name)
	}
	s := c.seatOf(h, d)
	s.mu.Lock()
	defer s.mu.Unlock()
	granted, err := c.sit(ctx, s, h, a, d, false)
	if err != nil {
		return nil, err
	}
	call, err := c.use(ctx, s.lease, h.ID)
	if err != nil {
		return nil, err
	}
	call.New = granted
	return call, nil
}

// grant is [Manager.Grant] for a credential that calls are made with. Who asks anew
// gets a lease even after one that was revoked.
func (c *calls) grant(ctx context.Context, h credential.Holder, a credential.Ask, d *credential.Definition) (*credential.Grant, error) {
	if d.Database != nil {
		return c.grantHandle(ctx, h, a, d)
	}
	s := c.seatOf(h, d)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := c.sit(ctx, s, h, a, d, true); err != nil {
		return nil, err
	}
	used, err := c.use(ctx, s.lease, h.ID)
	if err != nil {
		return nil, err
	}
	g := &credential.Grant{Lease: used.Lease}
	if d.Deliver == credential.DeliverBoth {
		g.Fields = cloned(used.Fields)
	}
	handle := c.handle(d.Proxy.Prefix, d.Name, h.Process)
	g.Fields = append(g.Fields, credential.Field{Name: HandleField, Value: secret.Of([]byte(handle))})
	return g, nil
}

// sit sees to it that the seat has a lease that lasts, and reports whether it had to be
// granted. The seat's mu is held.
func (c *calls) sit(ctx context.Context, s *seat, h credential.Holder, a credential.Ask, d *credential.Definition, anew bool) (granted bool, err error) {
	c.book.mu.Lock()
	if s.lease == nil {
		s.lease = c.find(h, d)
	}
	l := s.lease
	lasts := l != nil && l.stage == active && !l.ending() && c.clock.now().Add(min(spare, l.Expires.Sub(l.Granted)/8)).Before(l.Expires)
	revoked, reason := l != nil && l.cutOff(), ""
	if revoked {
		reason = l.Reason
	}
	c.book.mu.Unlock()
	switch {
	case lasts && a.TTL == 0 && len(a.Params) == 0:
		return false, nil
	case revoked && !anew:
		return false, fmt.Errorf("%w: %s: %s", credential.ErrRevoked, d.Name, reason)
	}
	g, err := c.grants.grantAs(ctx, h, a, seated(d))
	if err != nil {
		return false, err
	}
	g.Wipe()
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	if s.lease = c.book.leases[g.Lease.ID]; s.lease == nil {
		return false, fmt.Errorf("%w: %s", credential.ErrHolderGone, d.Name)
	}
	return true, nil
}

// find returns a lease that the holder has from before the daemon started. The book's
// mu is held.
func (c *calls) find(h credential.Holder, d *credential.Definition) *lease {
	key := keyOf(h.ID, d.Name, d.Bind, h.Process)
	for _, l := range c.book.leases {
		if l.purpose == seated(d) && l.Credential == d.Name && l.Bind == d.Bind && l.stage == active && keyOf(l.Identity, l.Credential, l.Bind, l.Process) == key {
			return l
		}
	}
	return nil
}

// use returns what a call by a lease is made with. The value of a secret that was
// replaced in the meantime is opened again. The seat's mu is held.
func (c *calls) use(ctx context.Context, l *lease, by spiffeid.ID) (*Call, error) {
	c.book.mu.Lock()
	source, fields, handle := l.source, l.fields, l.Handle
	c.book.mu.Unlock()
	if r, ok := source.Source().(credential.Reopener); ok {
		current, err := r.Current()
		if err != nil {
			return nil, err
		}
		if current != handle || fields == nil {
			if fields, handle, err = r.Reopen(ctx, by); err != nil {
				return nil, err
			}
		}
	}
	if len(fields) == 0 && !source.Traits.Nothing {
		return nil, fmt.Errorf("%w: nothing is left of the value of %s; revoke its lease, for the next call to get another", credential.ErrUpstream, l.Credential)
	}
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	if l.ending() {
		return nil, fmt.Errorf("%w: %s: %s", credential.ErrHolderGone, l.Credential, l.Reason)
	}
	l.fields, l.Handle = fields, handle
	return &Call{Lease: l.Lease, Fields: fields, Over: l.overChannel()}, nil
}

// seatOf returns the seat of a holder, which has one until it ends.
func (c *calls) seatOf(h credential.Holder, d *credential.Definition) *seat {
	key := keyOf(h.ID, d.Name, d.Bind, h.Process)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.seats[key]
	if s == nil {
		s = new(seat)
		c.seats[key] = s
		if end := h.End(d.Bind); end != nil {
			c.work.Go(func() {
				select {
				case <-end:
				case <-c.ctx.Done():
				}
				c.mu.Lock()
				defer c.mu.Unlock()
				delete(c.seats, key)
			})
		}
	}
	return s
}

// keyOf leaves of a process what a lease with that bind ends with.
func keyOf(id spiffeid.ID, name string, b credential.Bind, p credential.Process) seatKey {
	switch b {
	case credential.BindUnit:
		p.PID, p.StartTime = 0, 0
	case credential.BindLease:
		p = credential.Process{}
	default:
		p.Unit, p.Invocation = "", ""
	}
	return seatKey{id, name, p}
}

// Within is the part of a handle that is the same in all: no prefix of a vendor's keys
// makes one.
const within = "vouch"

var handleText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// handle returns the text by which a process, and those that it starts, make calls with
// a credential. It is of no use to any other, and follows from nothing that a process
// could know.
func (c *calls) handle(prefix, name string, p credential.Process) string {
	mac := hmac.New(sha256.New, c.handleKey)
	for _, part := range []string{name, p.BootID} {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		mac.Write([]byte(part))
	}
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(p.PID)))
	mac.Write(binary.BigEndian.AppendUint64(nil, p.StartTime))
	return prefix + within + handleText.EncodeToString(mac.Sum(nil)[:20])
}

// isHandle is [Manager.IsHandle]. The prefix is for the client to look at.
func (c *calls) isHandle(handle, name string, p credential.Process) bool {
	want := c.handle("", name, p)
	i := len(handle) - len(want)
	return i >= 0 && hmac.Equal([]byte(handle[i:]), []byte(want))
}

func cloned(fields []credential.Field) []credential.Field {
	list := make([]credential.Field, 0, len(fields))
	for _, f := range fields {
		f.Value = secret.Of(append([]byte(nil), f.Value.Reveal()...))
		list = append(list, f)
	}
	return list
}
