package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/gate"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// answerTimeout bounds a decision, with the grant of a lease in it.
const answerTimeout = 40 * time.Second

// A question is a request that is being decided, and afterwards made.
type question struct {
	id     uint64
	ask    *link.Ask
	conn   *conn
	caller *gate.Caller
	entry  identity.Entry
	def    *credential.Definition
	call   audit.Call // as it is recorded
	lease  *lease.Call
	window string // request ID of the call whose record stands for this one, if any

	counts  func(identity.Entry) bool // whether an entry could be why it is allowed
	changed <-chan struct{}           // closed if the rules are others than it was decided by
}

// answer decides a request, and tells the process.
func (s *session) answer(ctx context.Context, m *link.Message) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	q := &question{id: m.ID, ask: m.Ask}
	a, err := s.decide(ctx, q)
	if err != nil {
		a = &link.Answer{Refused: s.refusal(q, err)}
	}
	if q.def != nil {
		a.Definition = q.def.Name
	}
	if err := s.link.Send(&link.Message{ID: m.ID, Answer: a}, nil); err != nil {
		s.Logger.Error("answering the proxy", "err", err)
	}
	if a.Lease == "" {
		return
	}
	select {
	case <-q.lease.Over: // and its cut may have come before the answer
		s.link.Send(&link.Message{Cut: a.Lease}, nil) // a link that has failed ends elsewhere
	default:
	}
}

// Errors for whose calls go no further.
var (
	errUnknown   = errors.New("no credential of that name is used by the proxy")
	errAmbiguous = errors.New("several credentials fit")
	errRule      = errors.New("the rules refuse the request")
	errUpgrade   = errors.New("the definition allows no WebSocket or other upgrade")
	errNowhere   = errors.New("nothing that this process is granted leads there")
)

// decide takes a request the whole way: who asks, by which entry, for which
// definition, whether its rules allow it; then the proof, the lease, and the record.
func (s *session) decide(ctx context.Context, q *question) (*link.Answer, error) {
	s.mu.Lock()
	q.conn = s.conns[q.ask.Conn]
	s.mu.Unlock()
	if q.conn == nil {
		return nil, process.ErrPeerGone
	}
	if q.ask.Attempt != nil {
		return nil, s.refuseAttempt(ctx, q)
	}
	defs := s.definitions(q.ask.Definitions)
	if len(defs) == 0 {
		return nil, errUnknown
	}
	who := &caller{session: s, id: q.id, process: q.conn.peer, http2: q.ask.HTTP2}
	if q.ask.Handle != "" {
		p, err := s.holderOf(q.conn, q.ask.Handle, defs[0].Name)
		if err != nil {
			return nil, s.refuseUnknown(ctx, q, who, defs[0], err)
		}
		who.process, who.handle, who.http2 = p, true, false
	}
	if r := q.ask.Request; r != nil {
		q.call = q.conn.describe(q.ask)
		q.call.Method, q.call.Path = r.Method, r.Target.Path
	}
	var err error
	q.changed = s.Gate.Changed()
	q.counts = func(e identity.Entry) bool { return grants(e, defs) && (who.handle || who.http2 || outlastsExec(e)) }
	q.caller, err = s.Gate.Admit(ctx, gate.Request{
		Peer: who, Event: audit.EventCall, Credential: defs[0].Name, Call: &q.call, Counts: q.counts,
		Lacks: func(at *process.Attested) string { return s.lacks(at, defs, who) },
	})
	if no := q.ask.Refused; no != nil {
		return nil, s.refuseDenied(ctx, q, defs, no, err)
	}
	if err != nil {
		return nil, err
	}
	if err := q.choose(defs); err != nil {
		return nil, q.caller.Refuse(ctx, audit.EventCall, err)
	}
	if q.ask.Request == nil {
		return &link.Answer{}, nil // it will ask again, now that the definition is known
	}
	if err := q.judge(); err != nil {
		return nil, q.caller.Refuse(ctx, audit.EventCall, err)
	}
	if err := q.caller.Prove(ctx); err != nil {
		return nil, err
	}
	if err := s.lend(ctx, q); err != nil {
		return nil, err
	}
	if err := s.begin(ctx, q); err != nil {
		return nil, err
	}
	s.watch(q)
	a := &link.Answer{Lease: s.Leases.LeaseHash(q.lease.Lease.ID)}
	for _, f := range q.lease.Fields {
		a.Fields = append(a.Fields, link.Field{Name: f.Name, Value: f.Value.Reveal(), Public: f.Public})
	}
	return a, nil
}

// definitions returns those of the names that calls are made with.
func (s *session) definitions(names []string) (defs []*credential.Definition) {
	for _, name := range names {
		if d, ok := s.Leases.Definitions().Get(name); ok && d.Proxy != nil {
			defs = append(defs, d)
		}
	}
	return defs
}

// grants reports whether an entry grants one of the definitions.
func grants(e identity.Entry, defs []*credential.Definition) bool {
	return slices.ContainsFunc(defs, func(d *credential.Definition) bool { return slices.Contains(e.Credentials, d.Name) })
}

// outlastsExec reports whether an entry counts for a process that cannot be challenged.
func outlastsExec(e identity.Entry) bool {
	return !slices.ContainsFunc(e.Selectors, func(sel attest.Selector) bool { return !sel.OutlastsExec() })
}

// lacks says what would help a process that is entitled to none of the definitions.
func (s *session) lacks(at *process.Attested, defs []*credential.Definition, who *caller) string {
	for _, e := range s.Gate.Matching(at) {
		if grants(e, defs) && !who.handle && !who.http2 && !outlastsExec(e) {
			return fmt.Sprintf("the entry for %s narrows by the program, which HTTP/1.1 cannot prove: lease a handle (vouch exec --proxy, or vouch get) and send it in place of the key, or speak HTTP/2", e.ID)
		}
	}
	return fmt.Sprintf("none grants %s to this process; the administrator finds out why with: vouch entry explain %d", defs[0].Name, at.PID)
}

// choose finds the one definition that the caller is granted, and its entry.
func (q *question) choose(defs []*credential.Definition) error {
	var names []string
	for _, d := range defs {
		i := slices.IndexFunc(q.caller.Entries, func(e identity.Entry) bool { return slices.Contains(e.Credentials, d.Name) })
		if i >= 0 {
			q.def, q.entry = d, q.caller.Entries[i]
			names = append(names, d.Name)
		}
	}
	if len(names) != 1 {
		q.def = nil
		return fmt.Errorf("%w: %s; call by name, as http://localhost/%s/", errAmbiguous, strings.Join(names, " and "), names[0])
	}
	q.caller.As(q.entry)
	return nil
}

// judge applies the definition's rules.
func (q *question) judge() error {
	p := q.def.Proxy
	v := p.Judge(q.ask.Request)
	q.call.Rule = v.Rule
	if q.ask.Upgrade && !p.WebSocket {
		return errUpgrade
	}
	switch {
	case v.Effect == policy.Allow && p.Passthrough:
		return nil
	case v.Effect == policy.Allow:
		q.call.Path = p.PathOf(v.Rule, q.ask.Request.Target)
		return nil
	case !p.Enforce:
		q.call.Unenforced = true
		return nil
	case v.Rule != "":
		return fmt.Errorf("%w: rule %s of %s denies %s %s", errRule, v.Rule, q.def.Name, q.ask.Request.Method, q.ask.Request.Target.Path)
	}
	return fmt.Errorf("%w: no rule of %s allows %s %s", errRule, q.def.Name, q.ask.Request.Method, q.ask.Request.Target.Path)
}

// lend finds the lease that the call is made with. One that has to be granted takes a
// while, in which the caller could become another program: it is attested again.
func (s *session) lend(ctx context.Context, q *question) error {
	h, err := s.Holder(ctx, q.caller, q.entry, q.def.Bind)
	if err != nil {
		return q.caller.Refuse(ctx, audit.EventCall, err)
	}
	q.lease, err = s.Leases.Call(ctx, h, credential.Ask{
		Name: q.def.Name, Granted: q.entry.Credentials, RequestID: q.caller.RequestID,
		Asker: (*credential.Asker)(q.caller.DescribeAs("", q.entry).Workload),
	})
	if errors.Is(err, credential.ErrRevoked) {
		return q.caller.Refuse(ctx, audit.EventCall, err)
	}
	if err != nil {
		return q.caller.Fail(err)
	}
	if !q.lease.New {
		return nil
	}
	err = q.caller.Again(ctx, func(now *gate.Caller) error {
		if e, ok := now.EntryOf(q.entry.ID); !ok || !slices.Contains(e.Credentials, q.def.Name) {
			return gate.ErrNotEntitled
		}
		return nil
	})
	if err != nil {
		return q.caller.Refuse(ctx, audit.EventCall, err)
	}
	return nil
}

// watch has the requests of a lease end when it does.
func (s *session) watch(q *question) {
	hash := s.Leases.LeaseHash(q.lease.Lease.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked == nil {
		return
	}
	s.asked[q.id] = q
	select {
	case <-q.changed: // meanwhile, and nobody has looked at this one
		go s.cutUnentitled([]*question{q})
	default:
	}
	if s.cuts[hash] {
		return
	}
	s.cuts[hash] = true
	go func() {
		<-q.lease.Over
		s.mu.Lock()
		delete(s.cuts, hash)
		gone := s.asked == nil
		s.mu.Unlock()
		if !gone {
			s.link.Send(&link.Message{Cut: hash}, nil) // a link that has failed ends elsewhere
		}
	}()
}

// cutAtChanges ends calls under way, at each change of the rules, that would not be allowed
// any longer, until the context ends.
func (s *session) cutAtChanges(ctx context.Context) {
	changed := s.Gate.Changed()
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		changed = s.Gate.Changed() // before the look, which another change may outdate
		s.mu.Lock()
		under := slices.Collect(maps.Values(s.asked))
		s.mu.Unlock()
		s.cutUnentitled(under)
	}
}

// cutUnentitled ends those of the calls whose process is no longer entitled, going by what
// it was attested as. If the rules want to know more of it now, the next call shows that.
func (s *session) cutUnentitled(calls []*question) {
	cut := make(map[string]bool)
	for _, q := range calls {
		hash := s.Leases.LeaseHash(q.lease.Lease.ID)
		entries, err := s.Gate.Entitled(q.caller.Process, q.counts)
		if cut[hash] || err == nil && s.Gate.Refusal() == nil && slices.ContainsFunc(entries, func(e identity.Entry) bool { return e.ID == q.entry.ID }) {
			continue
		}
		cut[hash] = true
		s.link.Send(&link.Message{Cut: hash}, nil) // a link that has failed ends elsewhere
	}
}

// refuseUnknown records a refusal of who is not known to hold anything.
func (s *session) refuseUnknown(ctx context.Context, q *question, who *caller, d *credential.Definition, err error) error {
	c := s.Gate.Begin(gate.Request{Peer: who, Event: audit.EventCall, Credential: d.Name, Call: &q.call})
	q.caller = c
	return c.Refuse(ctx, audit.EventCall, err)
}

// A denied request is one that the process refused by itself.
type denied struct{ *link.Refuse }

func (d denied) Error() string { return d.Message }

// refuseDenied records what the process refused, by whomever it came.
func (s *session) refuseDenied(ctx context.Context, q *question, defs []*credential.Definition, no *link.Refuse, admitted error) error {
	if admitted != nil {
		return denied{no} // recorded is that it may call nothing here
	}
	if err := q.choose(defs); err != nil {
		q.caller.As(q.caller.Entries[0])
	}
	return q.caller.Refuse(ctx, audit.EventCall, denied{no})
}

// refuseAttempt records what leads nowhere, and who tried it.
func (s *session) refuseAttempt(ctx context.Context, q *question) error {
	a := q.ask.Attempt
	q.call = q.conn.describe(q.ask)
	q.call.Method, q.call.Path, q.call.Count = a.Kind, a.Target, uint64(max(0, a.Count))
	who := &caller{session: s, id: q.id, process: q.conn.peer}
	if q.ask.Handle != "" && len(q.ask.Definitions) == 1 {
		if p, err := s.holderOf(q.conn, q.ask.Handle, q.ask.Definitions[0]); err == nil {
			who.process, who.handle = p, true
		}
	}
	var err error
	if q.caller, err = s.Gate.Admit(ctx, gate.Request{
		Peer: who, Event: audit.EventCall, Call: &q.call, Counts: func(e identity.Entry) bool { return who.handle || outlastsExec(e) },
	}); err != nil {
		return err
	}
	q.caller.As(q.caller.Entries[0])
	return q.caller.Refuse(ctx, audit.EventCall, fmt.Errorf("%w: %s %s%s", errNowhere, a.Kind, a.Target, howToAllow[a.Kind]))
}

// howToAllow says how what leads nowhere could lead somewhere, where that is possible.
var howToAllow = map[string]string{"connect": allowHost, "http": allowHost, "tls": allowHost, "dns": allowHost}

const allowHost = "; an administrator can allow a host with a definition that has it under hosts, with a credential or with broker: none"

// describe begins the record of a call over a connection.
func (c *conn) describe(a *link.Ask) audit.Call {
	c.mu.Lock()
	r, by := c.relay, c.by
	c.mu.Unlock()
	switch {
	case r != nil:
		return audit.Call{Door: r.Door, Processes: by(), Authority: r.Authority}
	case a.HTTP2:
		return audit.Call{Door: "http2"}
	}
	return audit.Call{Door: "unix"}
}

// A meaning is what a caller is told of an error.
type meaning struct {
	err    error
	status int
	code   string
	help   string // what to do about it; empty: the error says
}

// meanings are in the order in which they are looked for.
var meanings = []meaning{
	{errRule, http.StatusForbidden, "request_not_allowed", ""},
	{errUpgrade, http.StatusForbidden, "request_not_allowed", ""},
	{errHandle, http.StatusForbidden, "handle_not_yours", ""},
	{errNowhere, http.StatusForbidden, "not_granted", ""},
	{errUnknown, http.StatusNotFound, "unknown_credential", ""},
	{errAmbiguous, http.StatusMisdirectedRequest, "ambiguous_host", ""},
	{credential.ErrRevoked, http.StatusForbidden, "lease_revoked", "start again once you may"},
	{credential.ErrNotGranted, http.StatusForbidden, "not_granted", ""},
	{credential.ErrUndefined, http.StatusForbidden, "not_granted", ""},
	{credential.ErrHours, http.StatusForbidden, "outside_hours", ""},
	{credential.ErrHolderGone, http.StatusForbidden, "lease_ended", ""},
	{credential.ErrLimit, http.StatusTooManyRequests, "limit", ""},
	{credential.ErrUnrecorded, http.StatusServiceUnavailable, "log_unavailable", "the attestation log cannot be written"},
	{credential.ErrRefused, http.StatusBadGateway, "source_refused", "the credential's source refused to issue it"},
	{credential.ErrUpstream, http.StatusServiceUnavailable, "source_unavailable", "the credential's source cannot be reached"},
	{gate.ErrTooManyRefusals, http.StatusTooManyRequests, "too_many_refusals", "wait a second"},
	{gate.ErrShare, http.StatusTooManyRequests, "log_share", ""},
	{gate.ErrBusy, http.StatusTooManyRequests, "busy", ""},
	{gate.ErrNode, http.StatusForbidden, "host_not_trusted", "this host does not pass its appraisal"},
	{gate.ErrDisabled, http.StatusForbidden, "identity_disabled", ""},
	{gate.ErrLost, http.StatusForbidden, "no_identity", ""},
	{gate.ErrNoIdentity, http.StatusForbidden, "no_identity", ""},
	{gate.ErrNotEntitled, http.StatusForbidden, "no_identity", ""},
	{gate.ErrAttestation, http.StatusForbidden, "not_attested", ""},
	{process.ErrPeerGone, http.StatusForbidden, "not_attested", ""},
	{audit.ErrUnwritable, http.StatusServiceUnavailable, "log_unavailable", "the attestation log cannot be written"},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, "timeout", ""},
}

// maxMessage bounds what a caller is told, in bytes.
const maxMessage = 600

// refusal says what a caller is told of an error. Which rule failed is no secret, and
// who reads it may be the agent that has to ask for more.
func (s *session) refusal(q *question, err error) *link.Refuse {
	if d, ok := errors.AsType[denied](err); ok {
		no := *d.Refuse
		no.Message = s.whomToAsk(q, no.Status, no.Message)
		return &no
	}
	m := meaning{status: http.StatusInternalServerError, code: "internal", help: "the daemon could not answer"}
	if i := slices.IndexFunc(meanings, func(m meaning) bool { return errors.Is(err, m.err) }); i >= 0 {
		m = meanings[i]
	} else {
		s.Logger.Error("deciding a call", "err", err)
	}
	text := m.help
	switch {
	case errors.Is(err, credential.ErrDrill):
		text = credential.WithheldText + "; " + m.help
	case m.help == "":
		text = err.Error()
	case m.status == http.StatusForbidden:
		text = err.Error() + "; " + m.help
	}
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "…"
	}
	return &link.Refuse{Status: m.status, Code: m.code, Message: s.whomToAsk(q, m.status, text), Rule: q.call.Rule}
}

// whomToAsk adds to a refusal who can change it, where that is a matter of rules, and what
// to tell them.
func (s *session) whomToAsk(q *question, status int, text string) string {
	if status == http.StatusForbidden {
		text += "; ask " + s.Gate.Contact
	}
	if q.caller != nil {
		text += " (request " + q.caller.RequestID + ")"
	}
	return text
}
