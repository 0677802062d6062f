// Package endpoint asks the token endpoints of OAuth 2.0 and its relatives.
//
// What comes back is somebody else's, and what goes out are secrets: answers are
// bounded in size and time, redirects are refused, since they would carry the
// assertion elsewhere, TLS is verified, and of an error only the registered code
// is repeated, never the body, which may hold what was sent.
package endpoint

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/secret"
)

const (
	timeout = 15 * time.Second
	maxBody = 1 << 20 // bytes of an answer
	// maxLifetime bounds what expires_in is believed, so that no sum overflows.
	maxLifetime = 366 * 24 * time.Hour
)

// A Client asks endpoints.
type Client struct {
	http http.Client
}

// New returns a client that trusts the machine's roots, or only the
// certificates in caFile if it is not empty. The file is read at each
// connection, and connections are then made without a proxy.
func New(caFile string) *Client {
	transport := &http.Transport{
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        time.Minute,
		ResponseHeaderTimeout:  timeout,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
	}
	if caFile == "" {
		transport.Proxy = http.ProxyFromEnvironment
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	} else {
		transport.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialTLS(ctx, network, addr, caFile)
		}
	}
	return &Client{http.Client{
		Transport:     transport,
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func dialTLS(ctx context.Context, network, addr, caFile string) (net.Conn, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", caFile)
	}
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}}
	return d.DialContext(ctx, network, addr)
}

// Close closes connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// CheckURL reports why an endpoint's URL is not one to send secrets to.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return errors.New("is not a plain URL")
	case u.Scheme != "https":
		return errors.New("is not https; an assertion sent in clear is everybody's")
	}
	return nil
}

// Form posts form values and returns the body of a 200.
func (c *Client) Form(ctx context.Context, to string, form url.Values, header http.Header) ([]byte, error) {
	return c.post(ctx, to, "application/x-www-form-urlencoded", []byte(form.Encode()), header)
}

// JSON posts a JSON value and returns the body of a 200.
func (c *Client) JSON(ctx context.Context, to string, value any, header http.Header) ([]byte, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return c.post(ctx, to, "application/json", b, header)
}

func (c *Client) post(ctx context.Context, to, contentType string, body []byte, header http.Header) ([]byte, error) {
	header = header.Clone()
	if header == nil {
		header = make(http.Header)
	}
	header.Set("Content-Type", contentType)
	status, answer, err := c.send(ctx, http.MethodPost, to, body, header)
	if err == nil && status != http.StatusOK {
		err = &StatusError{Status: status, err: fmt.Errorf("%w: %s answered with status %d", credential.ErrUpstream, host(to), status)}
	}
	return answer, err
}

// Ask sends a request and returns the body of a success, which is any 2xx. The
// body is overwritten.
func (c *Client) Ask(ctx context.Context, method, to string, body []byte, header http.Header) ([]byte, error) {
	_, answer, err := c.send(ctx, method, to, body, header)
	return answer, err
}

func (c *Client) send(ctx context.Context, method, to string, body []byte, header http.Header) (status int, answer []byte, err error) {
	defer clear(body)
	req, err := http.NewRequestWithContext(ctx, method, to, strings.NewReader(string(body)))
	if err != nil {
		return 0, nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: asking %s: %w", credential.ErrUpstream, host(to), withoutURL(err))
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("%w: reading the answer of %s: %w", credential.ErrUpstream, host(to), err)
	case len(answer) > maxBody:
		return 0, nil, fmt.Errorf("%w: %s answered with more than %d bytes", credential.ErrUpstream, host(to), maxBody)
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		return resp.StatusCode, answer, nil
	}
	var said struct{ Message string }
	json.Unmarshal(answer, &said) // none if it is not JSON
	return 0, nil, &StatusError{Status: resp.StatusCode, Message: said.Message, err: refusal(to, resp, answer)}
}

// A StatusError is an answer that is not a success. It wraps
// [credential.ErrUpstream] or [credential.ErrRefused].
type StatusError struct {
	Status  int    // of HTTP
	Message string // of a JSON answer; to compare, not to repeat
	err     error
}

func (e *StatusError) Error() string { return e.err.Error() }
func (e *StatusError) Unwrap() error { return e.err }

// refusal tells a no from a failure. Only a code of the registered form is
// repeated (RFC 6749 §5.2, and the vendors' like it).
func refusal(to string, resp *http.Response, body []byte) error {
	kind := credential.ErrUpstream
	switch s := resp.StatusCode; {
	case s >= 300 && s < 400:
		return fmt.Errorf("%w: %s redirects (status %d), and secrets do not follow; name the endpoint that it leads to", credential.ErrUpstream, host(to), s)
	case s >= 400 && s < 500 && s != http.StatusRequestTimeout && s != http.StatusTooManyRequests:
		kind = credential.ErrRefused
	}
	return fmt.Errorf("%w: %s answered with status %d%s", kind, host(to), resp.StatusCode, errorCode(resp.Header.Get("Content-Type"), body))
}

var (
	registered = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)
	xmlCode    = regexp.MustCompile(`<Code>([A-Za-z][A-Za-z0-9._-]{0,63})</Code>`)
)

func errorCode(contentType string, body []byte) string {
	if m := xmlCode.FindSubmatch(body); m != nil {
		return ": " + string(m[1])
	}
	if t, _, err := mime.ParseMediaType(contentType); err != nil || t != "application/json" && t != "application/x-amz-json-1.1" {
		return ""
	}
	var flat struct {
		Error json.RawMessage `json:"error"`
		Type  string          `json:"__type"` // AWS JSON protocol 1.1, after a namespace or without
	}
	if json.Unmarshal(body, &flat) != nil {
		return ""
	}
	if code := flat.Type[strings.LastIndexByte(flat.Type, '#')+1:]; registered.MatchString(code) {
		return ": " + code
	}
	var code string
	if json.Unmarshal(flat.Error, &code) != nil {
		var nested struct{ Type, Status, Code any }
		if json.Unmarshal(flat.Error, &nested) != nil {
			return ""
		}
		for _, v := range []any{nested.Status, nested.Type, nested.Code} {
			if s, ok := v.(string); ok && code == "" {
				code = s
			}
		}
	}
	if !registered.MatchString(code) {
		return ""
	}
	return ": " + code
}

func host(to string) string {
	if u, err := url.Parse(to); err == nil {
		return u.Host
	}
	return "the endpoint"
}

// withoutURL drops the URL that net/http puts before its errors.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// A Token is an answer as in RFC 6749 §5.1 and RFC 8693 §2.2.1.
type Token struct {
	Access   secret.Bytes
	Refresh  secret.Bytes
	Type     string
	Scope    []string // empty if it is what was asked for
	NotAfter time.Time
}

// IsToken reports whether s is of what a token may consist of: VSCHAR (RFC 6749
// appendix A.12), and no space, so that it cannot break out of a header line.
func IsToken(s string) bool {
	return s != "" && len(s) <= 64<<10 && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x21 || r > 0x7e })
}

// ParseToken reads a token and when it ends, counted from asked, the time before
// the request left.
func ParseToken(body []byte, asked time.Time) (Token, error) {
	var a struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
		Type    string `json:"token_type"`
		Scope   string `json:"scope"`
		Expires any    `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return Token{}, fmt.Errorf("%w: the answer is not JSON of a token", credential.ErrUpstream)
	}
	switch {
	case !IsToken(a.Access):
		return Token{}, fmt.Errorf("%w: the answer has no access token", credential.ErrUpstream)
	case a.Refresh != "" && !IsToken(a.Refresh):
		return Token{}, fmt.Errorf("%w: the answer's refresh token is not one", credential.ErrUpstream)
	case a.Type != "" && !registered.MatchString(a.Type):
		return Token{}, fmt.Errorf("%w: the answer's token type is not one", credential.ErrUpstream)
	}
	t := Token{Access: secret.Of([]byte(a.Access)), Refresh: secret.Of([]byte(a.Refresh)), Type: a.Type, Scope: strings.Fields(a.Scope)}
	seconds, err := lifetime(a.Expires)
	if err != nil {
		return Token{}, err
	}
	if seconds > 0 {
		t.NotAfter = asked.Add(seconds)
	}
	return t, nil
}

// lifetime reads expires_in, which some send as text; 0 for none.
func lifetime(v any) (time.Duration, error) {
	var seconds float64
	switch v := v.(type) {
	case nil:
		return 0, nil
	case float64:
		seconds = v
	case string:
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil {
			return 0, fmt.Errorf("%w: the answer's lifetime is not a number", credential.ErrUpstream)
		}
		seconds = float64(n)
	default:
		return 0, fmt.Errorf("%w: the answer's lifetime is not a number", credential.ErrUpstream)
	}
	if math.IsNaN(seconds) || seconds <= 0 || seconds > maxLifetime.Seconds() {
		return 0, fmt.Errorf("%w: the answer's lifetime of %g seconds is not one", credential.ErrUpstream, seconds)
	}
	return time.Duration(seconds) * time.Second, nil
}
