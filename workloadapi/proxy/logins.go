package proxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/gate"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// maxLogins is how many connections to databases are decided at a time.
const maxLogins = 64

// lookAgain is how often it is looked whether who has a connection to a database is still
// entitled to it, besides at each change of the rules.
const lookAgain = 30 * time.Second

// logins are the connections to databases that one process has.
type logins struct {
	session *session
	turns   *semaphore.Weighted
	work    sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	open  map[uint64]*login
	ended bool
}

// A login is one connection to a database, from its question on.
type login struct {
	*session
	id     uint64
	ask    *link.Connect
	conn   *conn
	who    *caller
	caller *gate.Caller
	entry  identity.Entry
	def    *credential.Definition
	call   audit.Call
	holder credential.Holder
	lease  *lease.Call // nil for one that cancels a statement of another
	over   chan struct{}
}

func newLogins(s *session) *logins {
	return &logins{session: s, turns: semaphore.NewWeighted(maxLogins), open: make(map[uint64]*login)}
}

// handle takes a message about connections to databases, and its descriptor.
func (ls *logins) handle(ctx context.Context, m *link.Database, f *os.File) {
	switch {
	case m.Connect != nil && f != nil:
		ls.work.Go(func() {
			if ls.turns.Acquire(ctx, 1) != nil {
				f.Close()
				return
			}
			defer ls.turns.Release(1)
			ls.answer(ctx, m.ID, m.Connect, f)
		})
		return
	case m.Ended != nil:
		ls.mu.Lock()
		l := ls.open[m.ID]
		delete(ls.open, m.ID)
		ls.mu.Unlock()
		if l != nil {
			l.end(ctx, m.Ended)
		}
	}
	if f != nil {
		f.Close()
	}
}

// answer decides whether a connection is made, and tells the process.
func (ls *logins) answer(ctx context.Context, id uint64, ask *link.Connect, f *os.File) {
	within, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	l := &login{session: ls.session, id: id, ask: ask, over: make(chan struct{})}
	a, err := ls.decide(within, l, f)
	if err != nil {
		a = &link.DatabaseAnswer{Refused: l.refusal(&question{caller: l.caller, call: l.call}, err)}
		if l.conn != nil {
			l.conn.close()
		}
	} else if !ls.enter(l) {
		l.end(ctx, &link.DatabaseEnded{Problem: "the proxy ended before the connection had"})
		return
	}
	if err := l.link.Send(&link.Message{Database: &link.Database{ID: id, Answer: a}}, nil); err != nil {
		l.Logger.Error("answering the proxy", "err", err)
	}
	if err == nil && l.lease != nil {
		ls.work.Go(func() { l.keep(ctx) })
	}
}

// enter notes a connection that was allowed. It reports false once the process is gone.
func (ls *logins) enter(l *login) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.ended || ls.open[l.id] != nil {
		return false
	}
	ls.open[l.id] = l
	return true
}

// decide takes a connection the whole way: who connected, by which entry; then the proof, a
// lease of its own, and the record.
func (ls *logins) decide(ctx context.Context, l *login, f *os.File) (*link.DatabaseAnswer, error) {
	peer, err := peerOf(f)
	if err != nil {
		return nil, err
	}
	l.conn = &conn{peer: peer, holders: make(map[string]*holder)}
	d, ok := l.Leases.Definitions().Get(l.ask.Name)
	if !ok || d.Database == nil {
		return nil, errUnknown
	}
	l.def = d
	l.call = audit.Call{Door: string(d.Database.Protocol), Method: "CONNECT", Path: d.Database.Name()}
	var other *login
	if l.ask.Cancel != 0 {
		l.call.Method = "CANCEL"
		ls.mu.Lock()
		other = ls.open[l.ask.Cancel]
		ls.mu.Unlock()
		if other == nil || other.def.Name != d.Name {
			return nil, errNoStatement
		}
	}
	l.who = &caller{session: l.session, process: peer}
	if l.ask.Handle != "" {
		p, err := l.holderOf(l.conn, l.ask.Handle, d.Name)
		if err == nil && d.Database.MainOnly && p != peer {
			err = fmt.Errorf("%w: process %d has it, and its definition is for that process alone (who: main)", errHandle, p.PID())
		}
		if err != nil {
			l.caller = l.Gate.Begin(gate.Request{Peer: l.who, Event: audit.EventCall, Credential: d.Name, Call: &l.call})
			return nil, l.caller.Refuse(ctx, audit.EventCall, err)
		}
		l.who.process, l.who.handle = p, true
	}
	l.caller, err = l.Gate.Admit(ctx, gate.Request{
		Peer: l.who, Event: audit.EventCall, Credential: d.Name, Call: &l.call,
		Counts: func(e identity.Entry) bool { return l.counts(e, other) },
		Lacks:  l.lacks,
	})
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(l.caller.Entries, func(e identity.Entry) bool { return l.counts(e, other) })
	if i < 0 {
		return nil, l.caller.Refuse(ctx, audit.EventCall, gate.ErrNotEntitled)
	}
	l.entry = l.caller.Entries[i]
	l.caller.As(l.entry)
	if err := l.caller.Prove(ctx); err != nil {
		return nil, err
	}
	if other != nil {
		return &link.DatabaseAnswer{}, l.caller.Record(ctx, l.describe(audit.EventCall))
	}
	return l.lend(ctx)
}

// errNoStatement means that there is nothing to cancel.
var errNoStatement = errors.New("there is no such connection whose statement could be cancelled")

// counts reports whether an entry counts for the connection. A connection cannot be
// challenged: without a handle, one that narrows by a program does not count, unless the
// very process that made another connection cancels a statement of its own.
func (l *login) counts(e identity.Entry, other *login) bool {
	if !slices.Contains(e.Credentials, l.def.Name) {
		return false
	}
	if other == nil {
		return l.who.handle || outlastsExec(e)
	}
	mine, theirs := l.conn.peer, other.conn.peer
	a, errA := mine.StartTime()
	b, errB := theirs.StartTime()
	same := errA == nil && errB == nil && mine.PID() == theirs.PID() && a == b
	return e.ID == other.entry.ID && mine.UID() == theirs.UID() && (same || outlastsExec(e))
}

// lacks says what would help a process that is not entitled.
func (l *login) lacks(at *process.Attested) string {
	for _, e := range l.Gate.Matching(at) {
		if slices.Contains(e.Credentials, l.def.Name) && !l.who.handle && !outlastsExec(e) {
			return fmt.Sprintf("the entry for %s narrows by the program, which a connection to a database cannot prove: lease a handle (vouch exec --proxy, or vouch get) and give it as the user's name", e.ID)
		}
	}
	return fmt.Sprintf("none grants %s to this process; the administrator finds out why with: vouch entry explain %d", l.def.Name, at.PID)
}

// lend leases the connection's own credential. Granting it takes a while, in which the
// caller could become another program: it is attested again.
func (l *login) lend(ctx context.Context) (_ *link.DatabaseAnswer, err error) {
	a := new(link.DatabaseAnswer)
	if a.Fields, err = certificate(l.def); err != nil {
		return nil, l.caller.Fail(fmt.Errorf("%w: %w", credential.ErrUpstream, err))
	}
	if l.holder, err = l.Holder(ctx, l.caller, l.entry, l.def.Bind); err != nil {
		return nil, l.caller.Refuse(ctx, audit.EventCall, err)
	}
	granted, err := l.Leases.Connect(ctx, l.holder, credential.Ask{
		Name: l.def.Name, Granted: l.entry.Credentials, RequestID: l.caller.RequestID,
		Asker: (*credential.Asker)(l.caller.DescribeAs("", l.entry).Workload),
	})
	if errors.Is(err, credential.ErrRevoked) {
		return nil, l.caller.Refuse(ctx, audit.EventCall, err)
	}
	if err != nil {
		return nil, l.caller.Fail(err)
	}
	defer func() {
		for _, f := range granted.Fields {
			f.Value.Wipe()
		}
	}()
	l.lease = granted
	if err := l.caller.Again(ctx, l.still); err != nil {
		err = l.caller.Refuse(ctx, audit.EventCall, err)
		l.Leases.Abandon(granted.Lease.ID, "its process is no longer entitled")
		return nil, err
	}
	if err := l.caller.Record(ctx, l.describe(audit.EventCall)); err != nil {
		l.Leases.Abandon(granted.Lease.ID, "the connection was not recorded")
		return nil, err
	}
	for _, f := range granted.Fields {
		a.Fields = append(a.Fields, link.Field{Name: f.Name, Value: slices.Clone(f.Value.Reveal()), Public: f.Public})
	}
	return a, nil
}

// still returns nil if the process, attested again, may still have the connection.
func (l *login) still(now *gate.Caller) error {
	if e, ok := now.EntryOf(l.entry.ID); !ok || !slices.Contains(e.Credentials, l.def.Name) {
		return gate.ErrNotEntitled
	}
	return nil
}

// certificate returns the client's certificate and its key, if the definition has them.
func certificate(d *credential.Definition) ([]link.Field, error) {
	if d.Database.CertFile == "" {
		return nil, nil
	}
	chain, err := os.ReadFile(d.Database.CertFile)
	if err != nil {
		return nil, err
	}
	key, err := credential.ReadSecret(d.Database.KeyFile)
	if err != nil {
		return nil, err
	}
	return []link.Field{{Name: link.FieldCertificate, Value: chain, Public: true}, {Name: link.FieldKey, Value: key.Reveal()}}, nil
}

// keep renews the lease of a connection for as long as its definition allows, and ends the
// connection with it.
func (l *login) keep(ctx context.Context) {
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	changed := l.Gate.Changed()
	expires := l.lease.Lease.Expires
	for {
		var due <-chan time.Time
		if l.lease.Lease.Renewable && expires.Before(l.lease.Lease.Latest) {
			due = time.After(max(time.Until(expires)*2/3, time.Second))
		}
		select {
		case <-l.over:
			return
		case <-ctx.Done():
			return
		case <-l.lease.Over:
			l.link.Send(&link.Message{Database: &link.Database{ID: l.id, Cut: l.lease.Reason()}}, nil) // a link that has failed ends elsewhere
			return
		case <-due:
			renewed, err := l.Leases.Renew(ctx, l.holder, credential.Renewal{Lease: l.lease.Lease.ID, RequestID: l.caller.RequestID})
			if err == nil {
				expires = renewed.Expires
			} else if ctx.Err() == nil {
				l.Logger.Warn("renewing the lease of a connection", "credential", l.def.Name, "err", err)
			}
		case <-changed:
			changed = l.Gate.Changed()
			l.look(ctx)
		case <-look.C:
			l.look(ctx)
		}
	}
}

// look ends the lease if its holder is no longer entitled to it.
func (l *login) look(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if err := l.caller.Again(within, l.still); err != nil && ctx.Err() == nil {
		l.Leases.Abandon(l.lease.Lease.ID, fmt.Sprintf("its process is no longer entitled: %v", err))
	}
}

// describe is the record of a connection.
func (l *login) describe(event audit.Event) audit.Record {
	r := l.caller.DescribeAs(event, l.entry)
	call := l.call
	r.Call = &call
	r.Credential = &audit.Credential{Name: l.def.Name, Kind: l.def.Broker, Upstream: l.def.Database.Place()}
	if l.lease != nil {
		r.Credential.Handle, r.Credential.NotAfter, r.Credential.Revocation = l.lease.Lease.Handle, l.lease.Lease.Expires, string(l.lease.Lease.Revocation)
	}
	return r
}

// end ends the lease of a connection that has ended, and tells the log what came of it.
func (l *login) end(ctx context.Context, o *link.DatabaseEnded) {
	close(l.over)
	r := l.describe(audit.EventCallEnd)
	r.Duration = o.Duration
	c := r.Call
	c.Sent, c.Received, c.Rows = uint64(max(0, o.Sent)), uint64(max(0, o.Received)), uint64(max(0, o.Rows))
	c.Statements = o.Statements
	if o.Refused > 0 {
		if c.Statements != "" {
			c.Statements += ","
		}
		c.Statements += fmt.Sprintf("refused=%d", o.Refused)
	}
	c.WithinTTL = true
	if l.lease != nil {
		r.Credential.Lease = l.Leases.LeaseHash(l.lease.Lease.ID)
		expires := l.lease.Lease.Expires
		if now, ok := l.Leases.Lease(l.lease.Lease.ID); ok {
			expires = now.Expires
		}
		c.WithinTTL = !time.Now().After(expires)
		l.Leases.Abandon(l.lease.Lease.ID, "its connection ended")
	}
	if o.Problem != "" {
		r.Outcome, r.Reason = audit.Failed, o.Problem
	}
	l.outcomes.add(context.WithoutCancel(ctx), l.Server, r)
	l.conn.close()
}

// close ends the leases of a process that has gone, whose connections have ended with it.
func (ls *logins) close(ctx context.Context) {
	ls.mu.Lock()
	open := ls.open
	ls.open, ls.ended = nil, true
	ls.mu.Unlock()
	for _, l := range open {
		l.end(ctx, &link.DatabaseEnded{Problem: "the proxy ended before the connection had"})
	}
}

// sendDatabases tells the process which databases there are, and has it accept on their
// sockets.
func (s *session) sendDatabases() error {
	defs := s.Leases.Definitions().All()
	s.sockets.follow(defs)
	for _, err := range s.sockets.problems() {
		s.Logger.Error("a database's socket", "err", err)
	}
	for _, d := range defs {
		if d.Database == nil {
			continue
		}
		l := s.sockets.get(d.Name)
		if l == nil {
			continue // as was said
		}
		err := s.link.Send(&link.Message{Database: &link.Database{Route: &link.DatabaseRoute{Name: d.Name, Definition: d.Database}}}, l.UnixListener)
		if errors.Is(err, link.ErrTooLong) {
			s.Logger.Error("a credential's database block is too long for the proxy; it makes no connections with it", "credential", d.Name, "err", err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return s.link.Send(&link.Message{Database: &link.Database{Route: &link.DatabaseRoute{}}}, nil)
}
