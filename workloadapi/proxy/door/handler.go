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
	began := time.Now()
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
	case errors.As(err, new(brokenOff)) && r.ProtoMajor == 2 && isGRPC(w.Header()):
		endGRPC(w.Header(), r.Header.Get("Grpc-Timeout"), time.Since(began))
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
	if askErr != nil || answer.Refused == nil || answer.Refused.Code != no.Code {
		return err // refused it is in any case, and for this reason
	}
	return &refusal{*answer.Refused} // which names the record
}

// maxDeniedPath bounds how much of a target that is refused is recorded, in bytes.
const maxDeniedPath = 200

// clip returns the path of a target in origin form, as text of at most n bytes.
func clip(raw string, n int) string {
	path, _, _ := strings.Cut(raw, "?")
	return strings.ToValidUTF8(path[:min(len(path), n)], "\ufffd")
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
