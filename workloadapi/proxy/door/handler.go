package door

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
	"github.com/vouchd/vouchd/workloadapi/proxy/relay"
)

// A refusal is why a request goes no further, and its answer.
type refusal struct{ link.Refuse }

func (r *refusal) Error() string { return r.Message }

func refuse(status int, code, format string, args ...any) *refusal {
	return &refusal{link.Refuse{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}}
}

// ServeHTTP implements [http.Handler].
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	over, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		panic("door: a request without its connection")
	}
	w.Header()["Date"] = nil // the upstream's, or none
	says, err := relay.Of(r)
	switch {
	case err != nil:
		err = refuse(http.StatusBadRequest, "relay", "%v", err)
	case says != nil:
		err = s.switchOver(w, r, over, says)
	default:
		err = s.serve(w, r, over)
	}
	var no *refusal
	switch {
	case err == nil:
		return
	case errors.As(err, new(brokenOff)):
		panic(http.ErrAbortHandler)
	case !errors.As(err, &no):
		no = refuse(http.StatusBadGateway, "proxy", "%v", err)
	}
	answer(w, r, &no.Refuse)
}

// serve takes a request from its parts to the upstream's response. An error is to be
// told to the caller; once the response has begun there is none.
func (s *server) serve(w http.ResponseWriter, r *http.Request, over *conn) error {
	if !over.user.requests.TryAcquire(1) {
		return refuse(http.StatusTooManyRequests, "busy", "user %d makes %d calls already, the most at a time; wait for some to end", over.uid, maxRequestsEach)
	}
	defer over.user.requests.Release(1)
	daemon := s.linked()
	if daemon == nil {
		return refuse(http.StatusServiceUnavailable, "no_daemon", "%v; is vouchd running?", errNoDaemon)
	}
	known, err := daemon.inForce(r.Context())
	if err != nil {
		return refuse(http.StatusServiceUnavailable, "no_daemon", "%v; is vouchd running?", err)
	}
	t, err := find(r, known, over.says)
	if to := (nowhere)(relay.Attempt{}); errors.As(err, &to) {
		return s.attempted(r.Context(), over, (*relay.Attempt)(&to))
	}
	if err != nil {
		return err
	}
	if len(t.names) > 1 {
		if err := which(daemon, r, over, t); err != nil {
			return err
		}
	}
	if r.Method == http.MethodConnect {
		return s.connect(w, r, over, daemon, t)
	}
	p := t.policy
	if err := t.parse(); err != nil {
		return denied(daemon, r, over, t, err)
	}
	handle, err := places(p, r, t.target)
	if err != nil {
		return denied(daemon, r, over, t, err)
	}
	if handle == "" && over.says != nil {
		handle = over.says.Handles[t.names[0]]
	}
	content, release, err := s.content(w, r, over, p, t.target)
	if err != nil {
		return err
	}
	defer release()
	q := &policy.Request{Method: r.Method, Target: t.target, Type: r.Header.Get("Content-Type"), Size: r.ContentLength, JSON: content}
	upgrade := upgradeOf(r)
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	a, id, err := daemon.ask(ctx, cancel, over, &link.Ask{
		Conn: over.id, Definitions: t.names, Handle: handle, HTTP2: over.challenged(r), Upgrade: upgrade != "", Request: q,
	})
	switch {
	case errors.Is(err, link.ErrTooLong):
		return refuse(http.StatusRequestEntityTooLarge, "request_too_large", "the request's target and what its rules look at are too long")
	case err != nil:
		return refuse(http.StatusServiceUnavailable, "no_daemon", "%v; is vouchd running?", err)
	case a.Refused != nil:
		return &refusal{*a.Refused}
	}
	c := &call{server: s, daemon: daemon, w: w, r: r, policy: p, target: t.target, answer: a, id: id, handle: handle, upgrade: upgrade}
	defer daemon.finished(a.Lease, id)
	return c.make(ctx, cancel)
}

// denied has the daemon record what is refused here, and returns the refusal.
func denied(daemon *client, r *http.Request, over *conn, t *target, err error) error {
	var no *refusal
	if !errors.As(err, &no) {
		return err
	}
	a := &link.Ask{Conn: over.id, Definitions: t.names, HTTP2: over.challenged(r), Refused: &no.Refuse}
	a.Request = &policy.Request{Method: r.Method, Target: policy.Target{Path: clip(t.raw, maxDeniedPath)}}
	if over.says != nil {
		a.Handle = over.says.Handles[t.names[0]]
	}
	answer, _, askErr := daemon.ask(r.Context(), nil, over, a)
	if askErr != nil || answer.Refused == nil {
		return err // refused it is in any case
	}
	return &refusal{*answer.Refused}
}

// maxDeniedPath bounds how much of a target that is refused is recorded, in bytes.
const maxDeniedPath = 200

// clip returns the path of a target in origin form, as text of at most n bytes.
func clip(raw string, n int) string {
	path, _, _ := strings.Cut(raw, "?")
	return strings.ToValidUTF8(path[:min(len(path), n)], "\ufffd")
}

// A target is which definition a request is for, and what of it.
type target struct {
	names  []string // of definitions
	policy *policy.Policy
	raw    string // the request's target, without the definition's name
	host   string // of CONNECT, with its port
	target policy.Target
}

// nowhere is where a request is for, if no definition is.
type nowhere relay.Attempt

func (n nowhere) Error() string { return "no credential leads to " + n.Target }

// find tells from a request which definition it is for: by its host, or by the first
// segment of its path. Of a relay's connection, what that says of it counts too.
func find(r *http.Request, in *routes, says *relay.Hello) (*target, error) {
	if r.Method == http.MethodTrace || strings.ContainsFunc(r.Method, func(c rune) bool { return c < 'A' || c > 'Z' }) {
		return nil, refuse(http.StatusMethodNotAllowed, "method_not_allowed", "method %.20q is not served", r.Method)
	}
	if r.Method == http.MethodConnect {
		return findTunnel(r, in, says)
	}
	host, raw, err := split(r)
	if err != nil {
		return nil, err
	}
	if says != nil && says.Host != "" && host != says.Host {
		return nil, nowhere{Kind: "host", Target: host + " over TLS to " + says.Host}
	}
	if names := prefer(says, in.byHost[host]); len(names) > 0 {
		return &target{names: names, policy: in.byName[names[0]], raw: raw}, nil
	}
	if !strings.HasPrefix(r.RequestURI, "/") || says != nil && (says.Host != "" || says.Door == relay.Sandbox) {
		return nil, nowhere{Kind: "http", Target: host}
	}
	name, rest := raw[1:], "/"
	if i := strings.IndexAny(name, "/?"); i >= 0 {
		name, rest = name[:i], name[i:]
		if rest[0] == '?' {
			rest = "/" + rest
		}
	}
	p := in.byName[name]
	if p == nil {
		return nil, refuse(http.StatusNotFound, "unknown_credential",
			"no credential named %.60q is used by the proxy, nor one for host %.60q; vouch get --list shows what this process is granted", name, r.Host)
	}
	return &target{names: []string{name}, policy: p, raw: rest}, nil
}

// hostOf returns a host without the port that goes without saying.
func hostOf(host string) string {
	if of, ok := strings.CutSuffix(host, ":443"); ok {
		return of
	}
	return strings.TrimSuffix(host, ":80")
}

// split returns the host that a request is for, without a port that goes without saying,
// and its target in origin form (RFC 9112 §3.2).
func split(r *http.Request) (host, raw string, err error) {
	if strings.HasPrefix(r.RequestURI, "/") {
		return hostOf(r.Host), r.RequestURI, nil
	}
	rest, ok := strings.CutPrefix(r.RequestURI, "http://")
	if !ok {
		rest, ok = strings.CutPrefix(r.RequestURI, "https://")
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	authority := rest[:end]
	if !ok || authority == "" || strings.ContainsAny(authority, "@#\\") {
		return "", "", refuse(http.StatusBadRequest, "target", "the request's target is neither a path nor the URL of a host (RFC 9112 §3.2)")
	}
	if raw = rest[end:]; !strings.HasPrefix(raw, "/") {
		raw = "/" + raw
	}
	return hostOf(authority), raw, nil
}

// findTunnel tells which definition CONNECT is for (RFC 9110 §9.3.6).
func findTunnel(r *http.Request, in *routes, says *relay.Hello) (*target, error) {
	if r.ProtoMajor != 1 {
		return nil, refuse(http.StatusMethodNotAllowed, "no_tunnels", "CONNECT is served over HTTP/1.1 alone")
	}
	host, port, err := net.SplitHostPort(r.RequestURI)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "target", "CONNECT is for a host and a port (RFC 9110 §9.3.6)")
	}
	names := prefer(says, in.byHost[host])
	if len(names) == 0 || says != nil && says.Host != "" {
		return nil, nowhere{Kind: "connect", Target: r.RequestURI}
	}
	p := in.byName[names[0]]
	if _, own, _ := net.SplitHostPort(p.TunnelTo(host)); port != "443" && port != own {
		return nil, nowhere{Kind: "connect", Target: r.RequestURI}
	}
	return &target{names: names, policy: p, host: r.RequestURI}, nil
}

// prefer leaves of definitions those whose handle a relay holds, if it does hold one.
func prefer(says *relay.Hello, names []string) []string {
	if says == nil {
		return names
	}
	held := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return says.Handles[name] == "" })
	if len(held) == 0 {
		return names
	}
	return held
}

// which has the daemon say which of several definitions the caller is granted.
func which(daemon *client, r *http.Request, over *conn, t *target) error {
	a, _, err := daemon.ask(r.Context(), nil, over, &link.Ask{Conn: over.id, Definitions: t.names, HTTP2: over.challenged(r)})
	switch {
	case err != nil:
		return refuse(http.StatusServiceUnavailable, "no_daemon", "%v; is vouchd running?", err)
	case a.Refused != nil:
		return &refusal{*a.Refused}
	}
	known, err := daemon.inForce(r.Context())
	if err != nil {
		return refuse(http.StatusServiceUnavailable, "no_daemon", "%v; is vouchd running?", err)
	}
	p := known.byName[a.Definition]
	if p == nil {
		return refuse(http.StatusServiceUnavailable, "changed", "the credentials changed meanwhile; send the request again")
	}
	t.names, t.policy = []string{a.Definition}, p
	return nil
}

func (t *target) parse() (err error) {
	if t.target, err = policy.ParseTarget(t.raw, t.policy.Slashes); err != nil {
		return refuse(http.StatusBadRequest, "target", "%v", err)
	}
	return nil
}

// overrides are headers by which a server takes one method, or path, for another.
var overrides = []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url", "X-Original-Uri", "X-Forwarded-Uri", "X-Forwarded-Prefix"}

// places polices every place that could carry a credential. Each is empty or holds the
// caller's handle, of which there is one; it is returned. A credential of the caller's
// own would take what it sends to somebody else's account.
func places(p *policy.Policy, r *http.Request, t policy.Target) (handle string, err error) {
	headers, keys := p.Places()
	hold := func(where string, held []string) error {
		for _, h := range held {
			switch {
			case !isHandle(h):
				return refuse(http.StatusForbidden, "foreign_credential",
					"%s carries a credential of the caller's own; leave it empty, or put the handle from vouch there", where)
			case handle != "" && h != handle:
				return refuse(http.StatusForbidden, "foreign_credential", "%s carries another handle than the rest of the request", where)
			}
			handle = h
		}
		return nil
	}
	for name, values := range r.Header {
		canonical := policy.CanonicalHeader(name)
		if slices.Contains(overrides, canonical) {
			return "", refuse(http.StatusBadRequest, "override", "header %s asks to be read as another request", name)
		}
		if !headers[canonical] {
			continue
		}
		if len(values) > 1 {
			return "", refuse(http.StatusBadRequest, "duplicate", "header %s is there %d times", name, len(values))
		}
		if err := hold("header "+name, policy.Held(values[0])); err != nil {
			return "", err
		}
	}
	for name := range r.Trailer {
		if headers[policy.CanonicalHeader(name)] {
			return "", refuse(http.StatusBadRequest, "trailer", "trailer %s could carry a credential", name)
		}
	}
	for _, pair := range t.Query {
		if keys[strings.ToLower(pair.Key)] && pair.Value != "" {
			if err := hold("the query's "+pair.Key, []string{pair.Value}); err != nil {
				return "", err
			}
		}
	}
	return handle, elsewhere(r, t, headers, keys, handle)
}

// isHandle reports whether a text has the form of a handle (see credential/lease): it
// ends with the word and 32 letters and digits.
func isHandle(s string) bool {
	const word, length = "vouch", 32
	i := len(s) - length - len(word)
	return i >= 0 && s[i:i+len(word)] == word &&
		!strings.ContainsFunc(s[i+len(word):], func(c rune) bool { return (c < 'a' || c > 'z') && (c < '2' || c > '7') })
}

// elsewhere refuses a handle outside of its places: what it stands for is put into its
// slot and nowhere else.
func elsewhere(r *http.Request, t policy.Target, headers, keys map[string]bool, handle string) error {
	if handle == "" {
		return nil
	}
	no := func(where string) error {
		return refuse(http.StatusForbidden, "handle_misplaced", "the handle is in %s, where no credential belongs", where)
	}
	for name, values := range r.Header {
		if headers[policy.CanonicalHeader(name)] {
			continue
		}
		for _, v := range values {
			if strings.Contains(v, handle) {
				return no("header " + name)
			}
		}
	}
	if strings.Contains(t.Path, handle) {
		return no("the path")
	}
	for _, pair := range t.Query {
		if !keys[strings.ToLower(pair.Key)] && strings.Contains(pair.Value, handle) {
			return no("the query's " + pair.Key)
		}
	}
	return nil
}

// Bounds of content that rules look at.
const (
	maxInspected    = 8 << 20 // bytes, of one request
	maxInspectedAll = 128 << 20
	contentTimeout  = time.Minute // for it to arrive
)

// content reads the content of a request whose rules or signature look at it, and puts it
// back. The values are nil if there is none that can be read. The content counts as the
// user's until release is called.
func (s *server) content(w http.ResponseWriter, r *http.Request, over *conn, p *policy.Policy, t policy.Target) (values map[string]policy.Value, release func(), err error) {
	pointers := p.Pointers(r.Method, t)
	digest := wantsDigest(p, r)
	if r.Header.Get("Content-Encoding") != "" {
		pointers = nil
	}
	if len(pointers) == 0 && !digest || r.ContentLength == 0 {
		return nil, func() {}, nil
	}
	if r.ContentLength > maxInspected {
		return nil, nil, tooLong(r.ContentLength)
	}
	length := r.ContentLength
	if length < 0 {
		length = maxInspected
	}
	give, err := s.reserve(r.Context(), over.user, length)
	if err != nil {
		return nil, nil, refuse(http.StatusServiceUnavailable, "busy", "%v", err)
	}
	body, err := s.read(w, r)
	if err != nil {
		give(length)
		return nil, nil, err
	}
	give(length - int64(len(body)))
	length = int64(len(body))
	r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), length, nil
	if digest {
		sum := sha256.Sum256(body)
		r.Header.Set(digestHeader, hex.EncodeToString(sum[:]))
	}
	if len(pointers) == 0 {
		return nil, func() { give(length) }, nil
	}
	if values, err = policy.ReadJSON(body, pointers); err != nil {
		values = nil // rules that look at it see that it cannot be read
	}
	return values, func() { give(length) }, nil
}

// read reads the content of a request, within bounds.
func (s *server) read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(s.contentTimeout)); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxInspected))
	switch tooMuch := (*http.MaxBytesError)(nil); {
	case errors.As(err, &tooMuch):
		return nil, tooLong(maxInspected + 1)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, refuse(http.StatusRequestTimeout, "content", "the content did not arrive within %v", s.contentTimeout)
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "content", "reading the content: %v", err)
	}
	return body, control.SetReadDeadline(time.Time{})
}

// reserve waits until n bytes of content may be read for a user. They are given back in
// parts.
func (s *server) reserve(ctx context.Context, u *user, n int64) (give func(int64), err error) {
	if err := u.inspected.Acquire(ctx, n); err != nil {
		return nil, err
	}
	if err := s.inspected.Acquire(ctx, n); err != nil {
		u.inspected.Release(n)
		return nil, err
	}
	return func(n int64) {
		s.inspected.Release(n)
		u.inspected.Release(n)
	}, nil
}

func tooLong(n int64) error {
	return refuse(http.StatusRequestEntityTooLarge, "request_too_large", "content of %d bytes is more than the %d that rules look at", n, maxInspected)
}

// upgradeOf returns the protocol that a request asks to go on with (RFC 9110 §7.8).
func upgradeOf(r *http.Request) string {
	if r.ProtoMajor == 1 && slices.ContainsFunc(r.Header.Values("Connection"), func(v string) bool {
		return slices.ContainsFunc(strings.Split(v, ","), func(t string) bool { return strings.EqualFold(strings.TrimSpace(t), "upgrade") })
	}) {
		return r.Header.Get("Upgrade")
	}
	return ""
}

// An explanation is a refusal as SDKs print it: OpenAI's and Anthropic's show
// error.message.
type explanation struct {
	Type  string `json:"type"`
	Error struct {
		Type    string `json:"type"`
		Code    string `json:"code"`
		Message string `json:"message"`
		Rule    string `json:"rule,omitempty"`
	} `json:"error"`
	Message string `json:"message"` // where GitHub's clients look
}

// answer tells a caller that its request went no further.
func answer(w http.ResponseWriter, r *http.Request, no *link.Refuse) {
	var e explanation
	e.Type, e.Error.Type, e.Error.Code, e.Error.Rule = "error", "vouchd_"+no.Code, no.Code, no.Rule
	e.Error.Message = "vouchd: " + no.Message
	e.Message = e.Error.Message
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		panic(err) // it holds nothing but text
	}
	h := w.Header()
	clear(h)
	h.Set("Content-Type", "application/json")
	h.Set("X-Vouchd", no.Code)
	if no.Status == http.StatusForbidden || no.Status == http.StatusBadRequest {
		h.Set("X-Should-Retry", "false")
	}
	if isGRPC(r.Header) { // a client of gRPC reads trailers alone (its status 7 is PERMISSION_DENIED, 14 UNAVAILABLE)
		code := "7"
		if no.Status >= 500 || no.Status == http.StatusTooManyRequests {
			code = "14"
		}
		h.Set("Content-Type", "application/grpc")
		h.Set("Grpc-Status", code)
		h.Set("Grpc-Message", grpcMessage(e.Message))
		w.WriteHeader(http.StatusOK)
		return
	}
	if strings.HasPrefix(r.UserAgent(), "git/") { // which shows plain text alone
		h.Set("Content-Type", "text/plain; charset=utf-8")
		b = []byte(e.Message)
	}
	w.WriteHeader(no.Status)
	if r.Method != http.MethodHead {
		w.Write(append(b, '\n')) // the caller may have gone
	}
}
