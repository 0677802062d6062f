package door

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/redact"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/proxy/address"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// A call is one request that the daemon has allowed, and recorded.
type call struct {
	server  *server
	daemon  *client // that allowed it
	w       http.ResponseWriter
	r       *http.Request
	policy  *policy.Policy
	target  policy.Target
	answer  *link.Answer
	id      uint64
	handle  string
	upgrade string

	secrets  *redact.Secrets
	began    time.Time
	idle     *time.Timer
	sent     atomic.Int64
	received int64
	redacted int
	shapes   map[string]int // of other secrets in the response
	status   int
	misused  atomic.Bool // the handle was in the content
}

// errIdle means that nothing was sent or received for too long.
var errIdle = errors.New("nothing was sent or received for too long")

// make makes the call, and tells the daemon what came of it. An error is to be told to the
// caller, who has no response yet.
func (c *call) make(ctx context.Context, cancel context.CancelCauseFunc) (err error) {
	c.began = time.Now()
	c.idle = time.AfterFunc(c.policy.Idle, func() { cancel(errIdle) })
	defer c.idle.Stop()
	defer func() { c.report(err) }()
	out, err := c.request(ctx)
	if errors.As(err, new(*refusal)) {
		return err
	}
	if err != nil {
		return refuse(http.StatusBadGateway, "injection", "the credential cannot be put into the request: %v", err)
	}
	http.NewResponseController(c.w).EnableFullDuplex() // an error means that it is anyway
	resp, err := c.server.upstreams.get(c.policy).RoundTrip(out)
	if err != nil {
		return c.failure(ctx, err)
	}
	defer resp.Body.Close()
	c.status = resp.StatusCode
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return c.tunnel(ctx, resp)
	}
	return c.respond(ctx, resp)
}

// maxProblem bounds what is said of a call that failed, in bytes.
const maxProblem = 512

// report tells the daemon how the call went.
func (c *call) report(err error) {
	o := link.Outcome{ID: c.id, Status: c.status, Sent: c.sent.Load(), Received: c.received, Redacted: c.redacted, Shapes: slices.Sorted(maps.Keys(c.shapes)), Duration: time.Since(c.began)}
	if err != nil {
		o.Problem = c.scrub(err.Error())
	}
	if len(o.Problem) > maxProblem {
		o.Problem = strings.ToValidUTF8(o.Problem[:maxProblem], "") + "…"
	}
	c.daemon.tell(o)
}

// scrub takes the credential out of text that is not from the upstream's content.
func (c *call) scrub(s string) string {
	if c.secrets == nil {
		return s
	}
	s, n := c.secrets.String(s)
	c.redacted += n
	return s
}

// failure is what a caller is told when there is no response.
func (c *call) failure(ctx context.Context, err error) error {
	var certificate *tls.CertificateVerificationError
	var private address.Error
	var content *refusal
	switch cause := context.Cause(ctx); {
	case c.misused.Load():
		return refuse(http.StatusForbidden, "handle_misplaced", "the handle is in the content, where no credential belongs")
	case errors.Is(cause, errCut):
		return refuse(http.StatusForbidden, "lease_revoked", "the lease ended during the call")
	case errors.Is(cause, errIdle):
		return refuse(http.StatusGatewayTimeout, "upstream_timeout", "%s: %v", c.policy.UpstreamHost(), errIdle)
	case errors.As(err, &content):
		return content
	case errors.As(err, &private):
		return refuse(http.StatusBadGateway, "upstream_address", "%s: %v", c.policy.UpstreamHost(), private)
	case errors.As(err, &certificate):
		return refuse(http.StatusBadGateway, "upstream_certificate", "%s: %s", c.policy.UpstreamHost(), c.scrub(err.Error()))
	case strings.Contains(err.Error(), "remote error: tls: certificate required"):
		return refuse(http.StatusBadGateway, "upstream_certificate", "%s wants a certificate of its client's, and the proxy shows none; let its TLS pass as it is, with a definition that has broker: none and passthrough: true", c.policy.UpstreamHost())
	case ctx.Err() != nil:
		return fmt.Errorf("the caller went away: %w", cause)
	}
	return refuse(http.StatusBadGateway, "upstream_unreachable", "%s: %s", c.policy.UpstreamHost(), c.scrub(err.Error()))
}

// hopByHop are headers that are about one connection (RFC 9110 §7.6.1).
var hopByHop = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// parts are headers of a request that ask for parts of a response, in which the credential
// could not be found.
var parts = []string{"If-Range", "Range"}

// dropped are headers of a request that tell the upstream of somebody else, or ask for
// what cannot be searched.
var dropped = []string{"Accept-Encoding", "Expect", "Forwarded", "Grpc-Accept-Encoding", "Referer", "Sec-Websocket-Extensions", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Real-Ip"}

// request builds what is sent. The credential goes in last.
func (c *call) request(ctx context.Context) (*http.Request, error) {
	u, err := url.ParseRequestURI(c.policy.Base().EscapedPath() + c.target.String())
	if err != nil {
		return nil, err
	}
	u.Scheme, u.Host = c.policy.Base().Scheme, c.policy.Base().Host
	out := (&http.Request{
		Method: c.r.Method, URL: u, Host: u.Host, ContentLength: c.r.ContentLength,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: withoutHops(c.r.Header),
	}).WithContext(ctx)
	headers, keys := c.policy.Places()
	for name := range out.Header {
		if slices.Contains(dropped, name) || !c.exact() && slices.Contains(parts, name) || headers[policy.CanonicalHeader(name)] {
			delete(out.Header, name)
		}
	}
	if c.r.ContentLength != 0 {
		out.Body = &upload{ReadCloser: c.r.Body, call: c}
	}
	if len(c.r.Trailer) > 0 {
		out.Trailer = c.r.Trailer // filled in when the content has ended
	}
	if slices.ContainsFunc(c.r.Header.Values("Te"), func(v string) bool { return strings.EqualFold(strings.TrimSpace(v), "trailers") }) {
		out.Header.Set("Te", "trailers")
	}
	if c.upgrade != "" {
		out.Header.Set("Connection", "Upgrade")
		out.Header.Set("Upgrade", c.upgrade)
	}
	out.Header.Set("Accept-Encoding", "identity")
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header.Set("User-Agent", "") // none, rather than this program's
	}
	u.RawQuery = withoutKeys(u.RawQuery, keys)
	return out, c.inject(out)
}

// exact reports whether content comes back as it is, in the parts that are asked for and
// with its length. S3 is sent a signature and never the secret, so that there is none to
// send back, and its clients put large objects together of parts.
func (c *call) exact() bool {
	s := c.policy.Slot.SigV4
	return s != nil && s.Service == "s3"
}

func withoutHops(h http.Header) http.Header {
	of := h.Clone()
	for _, v := range h.Values("Connection") {
		for name := range strings.SplitSeq(v, ",") {
			of.Del(textproto.TrimString(name))
		}
	}
	for _, name := range hopByHop {
		of.Del(name)
	}
	return of
}

// withoutKeys drops keys that hold a handle, or nothing, in place of a credential.
func withoutKeys(query string, keys map[string]bool) string {
	if query == "" {
		return ""
	}
	parts := slices.DeleteFunc(strings.Split(query, "&"), func(part string) bool {
		k, _, _ := strings.Cut(part, "=")
		key, err := url.QueryUnescape(k)
		return err != nil || keys[strings.ToLower(key)]
	})
	return strings.Join(parts, "&")
}

// inject puts the credential into its slot.
func (c *call) inject(out *http.Request) error {
	fields := make(map[string]string, len(c.answer.Fields)+1)
	var values []secret.Bytes
	only := 0
	for _, f := range c.answer.Fields {
		fields[f.Name] = string(f.Value)
		if !f.Public {
			only++
			fields["value"] = string(f.Value)
			values = append(values, secret.Of(f.Value))
		}
	}
	if only != 1 {
		delete(fields, "value")
	}
	var err error
	if c.secrets, err = c.server.filters.get(values); err != nil {
		return err
	}
	slot := &c.policy.Slot
	if *slot == (policy.Slot{}) && len(c.answer.Fields) == 0 {
		return nil // there is no credential (broker none)
	}
	if slot.SigV4 != nil {
		return sign(out, slot.SigV4, fields)
	}
	text, err := slot.Render(fields)
	if err != nil {
		return err
	}
	switch {
	case slot.Query == "":
		out.Header.Set(slot.HeaderName(), text)
	case out.URL.RawQuery == "":
		out.URL.RawQuery = slot.Query + "=" + url.QueryEscape(text)
	default:
		out.URL.RawQuery += "&" + slot.Query + "=" + url.QueryEscape(text)
	}
	return nil
}

// An upload is the content of a request on its way.
type upload struct {
	io.ReadCloser
	call *call
	tail []byte // the end of what was read, which may be the beginning of a handle
}

var errMisused = errors.New("the handle is in the content")

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	u.call.idle.Reset(u.call.policy.Idle)
	if h := u.call.handle; h != "" && n > 0 {
		u.tail = append(u.tail, p[:n]...)
		if bytes.Contains(u.tail, []byte(h)) {
			u.call.misused.Store(true)
			return 0, errMisused
		}
		u.tail = append(u.tail[:0], u.tail[max(0, len(u.tail)-len(h)+1):]...)
	}
	u.call.sent.Add(int64(n))
	return n, err
}

// maxWhole is how long content may be that is filtered before its header is sent, with
// its exact length.
const maxWhole = 64 << 10

// respond passes the response on, without the credential.
func (c *call) respond(ctx context.Context, resp *http.Response) error {
	body, err := c.decoded(resp)
	if err != nil {
		return err
	}
	h := c.w.Header()
	for name, values := range withoutHops(resp.Header) {
		if name == "Set-Cookie" && !c.policy.Cookies || name == "Alt-Svc" || name == "Content-Length" {
			continue
		}
		for _, v := range values {
			h.Add(c.scrub(name), c.cleaned(v))
		}
	}
	if err := c.withheld(); err != nil {
		return err
	}
	bare := c.r.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified
	length := resp.ContentLength
	if body != resp.Body {
		length = -1 // it was compressed
	}
	switch {
	case bare:
		if length >= 0 {
			h.Set("Content-Length", strconv.FormatInt(length, 10))
		}
		c.w.WriteHeader(resp.StatusCode)
		return nil
	case length >= 0 && length <= maxWhole && len(resp.Trailer) == 0:
		return c.whole(ctx, resp, body)
	}
	return c.stream(ctx, resp, body, length)
}

// decoded returns the content without its encoding.
func (c *call) decoded(resp *http.Response) (io.Reader, error) {
	if c.exact() {
		return resp.Body, nil
	}
	encoding := strings.TrimSpace(strings.Join(resp.Header.Values("Content-Encoding"), ","))
	switch strings.ToLower(encoding) {
	case "", "identity":
		return resp.Body, nil
	case "gzip", "x-gzip":
		if c.r.Method == http.MethodHead {
			return resp.Body, nil
		}
		z, err := gzip.NewReader(resp.Body)
		if err != nil {
			return nil, refuse(http.StatusBadGateway, "upstream_encoding", "the response says that it is gzip, and is not: %v", err)
		}
		resp.Header.Del("Content-Encoding")
		return z, nil
	default:
		return nil, refuse(http.StatusBadGateway, "upstream_encoding", "the response is encoded as %.40q, though it was asked for plain, and cannot be searched for the credential", c.scrub(encoding))
	}
}

// whole filters short content before it answers.
func (c *call) whole(ctx context.Context, resp *http.Response, body io.Reader) error {
	var b bytes.Buffer
	f := c.screen(&b)
	n, err := io.Copy(f, io.LimitReader(body, maxWhole+1))
	c.received += n
	if err == nil {
		err = f.Close()
	}
	f.tally()
	if err != nil {
		return c.failure(ctx, err)
	}
	if err := c.withheld(); err != nil {
		return err
	}
	c.w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	c.w.WriteHeader(resp.StatusCode)
	c.w.Write(b.Bytes()) // the caller may have gone
	return nil
}

// A brokenOff is an error after the response had begun: the caller sees that it has no
// proper end.
type brokenOff struct{ error }

// stream passes content on as it comes.
func (c *call) stream(ctx context.Context, resp *http.Response, body io.Reader, length int64) error {
	for name := range resp.Trailer {
		c.w.Header().Add("Trailer", c.scrub(name))
	}
	if c.exact() && length >= 0 {
		c.w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	}
	c.w.WriteHeader(resp.StatusCode)
	if err := c.copy(http.NewResponseController(c.w), body, length); err != nil {
		return brokenOff{c.failure(ctx, err)}
	}
	for name, values := range resp.Trailer {
		for _, v := range values {
			c.w.Header().Add(http.TrailerPrefix+c.scrub(name), c.cleaned(v))
		}
	}
	return nil
}

// copy filters content. What the filter lets go of is sent at once.
func (c *call) copy(control *http.ResponseController, body io.Reader, length int64) error {
	if err := control.Flush(); err != nil {
		return err
	}
	pool := &pieces
	if length > maxWhole {
		pool = &long
	}
	buf := pool.Get().(*[]byte)
	defer pool.Put(buf)
	to := &counting{Writer: c.w}
	f := c.screen(to)
	defer f.tally()
	f.fixed = c.exact() && length >= 0
	filter := io.Writer(f)
	if isGRPC(c.w.Header()) {
		f.fixed, filter = true, &messages{screen: f}
	}
	for {
		n, err := body.Read(*buf)
		c.received += int64(n)
		c.idle.Reset(c.policy.Idle)
		if n > 0 {
			before := to.n
			if _, err := filter.Write((*buf)[:n]); err != nil {
				return err
			}
			if err := f.withheld(); err != nil {
				return err
			}
			if to.n > before {
				if err := control.Flush(); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			if err := f.Close(); err != nil {
				return err
			}
			return f.withheld() // the end tells of what nothing follows
		}
		if err != nil {
			return err
		}
	}
}

// Buffers for content that comes piece by piece, which many may wait for, and for what is
// long.
var (
	pieces = sync.Pool{New: func() any { b := make([]byte, 4<<10); return &b }}
	long   = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}
)

// counting counts what is written.
type counting struct {
	io.Writer
	n int64
}

func (w *counting) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.n += int64(n)
	return n, err
}
