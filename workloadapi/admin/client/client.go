// Package client asks a running daemon on its admin socket.
//
// It imports the views alone, and nothing of the daemon.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A Client asks a running daemon.
type Client struct {
	Node    Node
	Secrets Secrets

	socket string
	http   http.Client
}

// New returns a client of the daemon on this admin socket. It
// connects at the first call.
func New(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	c := &Client{socket: socket, http: http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}}
	c.Node, c.Secrets = Node{c}, Secrets{c}
	return c
}

// Status returns the daemon's state.
func (c *Client) Status(ctx context.Context) (view.Status, error) {
	return get[view.Status](ctx, c, "/v1/status", nil)
}

// Entries returns the registration entries in force.
func (c *Client) Entries(ctx context.Context) ([]view.Entry, error) {
	return get[[]view.Entry](ctx, c, "/v1/entries", nil)
}

// Explain attests a process and says what it is entitled to and what it lacks.
func (c *Client) Explain(ctx context.Context, pid int) (view.Explanation, error) {
	return get[view.Explanation](ctx, c, "/v1/explain", url.Values{"pid": {strconv.Itoa(pid)}})
}

const maxReplyLen = 64 << 20

// AnswerTime is how long a daemon may take that answers at all. systemd holds the socket, so
// that connecting succeeds even if the daemon hangs or cannot start.
const AnswerTime = 10 * time.Second

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	return within[T](ctx, c, AnswerTime, http.MethodGet, path, query, nil)
}

// post asks for something that the TPM may take its time for, of a daemon that answers.
func post[T any](ctx context.Context, c *Client, path string, query url.Values, body []byte) (T, error) {
	if _, err := c.Status(ctx); err != nil {
		var none T
		return none, err
	}
	return within[T](ctx, c, view.TPMTime+15*time.Second, http.MethodPost, path, query, body)
}

func within[T any](ctx context.Context, c *Client, limit time.Duration, method, path string, query url.Values, body []byte) (T, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v, err := ask[T](limited, c, method, path, query, body)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = fmt.Errorf("%w on %s within %s; see why with: journalctl -u vouchd", ErrNoAnswer, c.socket, limit)
	}
	return v, err
}

// ErrNoAnswer means that the daemon's socket is there, and the daemon does not answer.
var ErrNoAnswer = errors.New("no answer")

// wayOut is what to do about a daemon that cannot be asked.
func wayOut(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "only root and the daemon's user may ask: run this with sudo"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return "is vouchd running? see: systemctl status vouchd; vouch doctor"
	}
	return "see why with: journalctl -u vouchd"
}

func ask[T any](ctx context.Context, c *Client, method, path string, query url.Values, body []byte) (T, error) {
	var v T
	u := url.URL{Scheme: "http", Host: "vouchd", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return v, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if uerr := (*url.Error)(nil); errors.As(err, &uerr) {
			err = uerr.Err
		}
		return v, fmt.Errorf("asking the daemon on %s: %w; %s", c.socket, err, wayOut(err))
	}
	defer resp.Body.Close()
	answer := io.LimitReader(resp.Body, maxReplyLen)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer, 16<<10))
		return v, errors.New(strings.TrimSpace(string(text)))
	}
	if err := json.NewDecoder(answer).Decode(&v); err != nil {
		return v, fmt.Errorf("reading the daemon's answer on %s: %w; see why with: journalctl -u vouchd", c.socket, err)
	}
	return v, nil
}
