package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Disable cuts an identity off: streams under it end, its leases are revoked
// and nothing is issued under it until it is enabled again, restarts of the
// daemon included.
func (c *Client) Disable(ctx context.Context, id spiffeid.ID, reason string) (view.Disabling, error) {
	return post[view.Disabling](ctx, c, "/v1/entries/disable", url.Values{"spiffe_id": {id.String()}, "reason": {reason}}, nil)
}

// Enable takes an identity up again.
func (c *Client) Enable(ctx context.Context, id spiffeid.ID) (view.Disabling, error) {
	return post[view.Disabling](ctx, c, "/v1/entries/enable", url.Values{"spiffe_id": {id.String()}}, nil)
}

// Bundle returns the trust bundle as it is now.
func (c *Client) Bundle(ctx context.Context) (view.Bundle, error) {
	return get[view.Bundle](ctx, c, "/v1/bundle", nil)
}

// Leases returns every lease that has not ended, the oldest first.
func (c *Client) Leases(ctx context.Context) ([]view.Lease, error) {
	return get[[]view.Lease](ctx, c, "/v1/leases", nil)
}

// RevokeLeases ends leases: all of them, or those of an identity or a
// credential or both.
func (c *Client) RevokeLeases(ctx context.Context, w view.Where) (view.Revoked, error) {
	q := url.Values{}
	if w.All {
		q.Set("all", "true")
	}
	if !w.Identity.IsZero() {
		q.Set("identity", w.Identity.String())
	}
	if w.Credential != "" {
		q.Set("credential", w.Credential)
	}
	return post[view.Revoked](ctx, c, "/v1/leases/revoke", q, nil)
}

// BeginDrill has a credential withheld for a while.
func (c *Client) BeginDrill(ctx context.Context, r view.DrillRequest) (view.Drill, error) {
	return post[view.Drill](ctx, c, "/v1/drill/begin", r.Query(), nil)
}

// EndDrill gives a credential back before the time that its drill was to last.
func (c *Client) EndDrill(ctx context.Context, credential string) (view.Drill, error) {
	return post[view.Drill](ctx, c, "/v1/drill/end", url.Values{"credential": {credential}}, nil)
}

// Drill returns how a drill goes, or went if it ended within the last hour.
func (c *Client) Drill(ctx context.Context, credential string) (view.Drill, error) {
	return get[view.Drill](ctx, c, "/v1/drill", url.Values{"credential": {credential}})
}

// SSHCA returns the public key of an authority that definitions name, making
// the key on first use.
func (c *Client) SSHCA(ctx context.Context, name string) (view.SSHCA, error) {
	return post[view.SSHCA](ctx, c, "/v1/ssh-ca", url.Values{"name": {name}}, nil)
}

// RecordProgram has the daemon record a start of a program, durably once it
// returns without an error. Root alone may.
func (c *Client) RecordProgram(ctx context.Context, start view.ProgramStart) (view.ProgramRecorded, error) {
	body, err := json.Marshal(start)
	if err != nil {
		return view.ProgramRecorded{}, err
	}
	return ask[view.ProgramRecorded](ctx, c, http.MethodPost, "/v1/programs/start", nil, body)
}
