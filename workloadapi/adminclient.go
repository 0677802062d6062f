package workloadapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// An AdminClient asks a running daemon.
type AdminClient struct {
	socket string
	http   http.Client
}

// NewAdminClient returns a client of the daemon on this admin socket. It
// connects at the first call.
func NewAdminClient(socket string) *AdminClient {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &AdminClient{socket: socket, http: http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}}
}

// Status returns the daemon's state.
func (c *AdminClient) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status", nil)
}

// Entries returns the registration entries in force.
func (c *AdminClient) Entries(ctx context.Context) ([]EntryView, error) {
	return get[[]EntryView](ctx, c, "/v1/entries", nil)
}

// Explain attests a process and says what it is entitled to and what it lacks.
func (c *AdminClient) Explain(ctx context.Context, pid int) (Explanation, error) {
	return get[Explanation](ctx, c, "/v1/explain", url.Values{"pid": {strconv.Itoa(pid)}})
}

const maxReplyLen = 64 << 20

func get[T any](ctx context.Context, c *AdminClient, path string, query url.Values) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return ask[T](ctx, c, http.MethodGet, path, query, nil)
}

// post asks for something that the TPM may take its time for.
func post[T any](ctx context.Context, c *AdminClient, path string, query url.Values, body []byte) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout+15*time.Second)
	defer cancel()
	return ask[T](ctx, c, http.MethodPost, path, query, body)
}

func ask[T any](ctx context.Context, c *AdminClient, method, path string, query url.Values, body []byte) (T, error) {
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
		return v, fmt.Errorf("asking the daemon on %s: %w", c.socket, err)
	}
	defer resp.Body.Close()
	answer := io.LimitReader(resp.Body, maxReplyLen)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer, 16<<10))
		return v, errors.New(strings.TrimSpace(string(text)))
	}
	if err := json.NewDecoder(answer).Decode(&v); err != nil {
		return v, fmt.Errorf("reading the daemon's answer: %w", err)
	}
	return v, nil
}
