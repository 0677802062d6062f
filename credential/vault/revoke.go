package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/openbao/openbao/api/v2"

	"github.com/vouchd/vouchd/credential"
)

// Revoke ends the server's lease, and with it the token.
func (b *Broker) Revoke(ctx context.Context, at credential.Handle) (credential.Use, error) {
	h, err := decodeHandle(at)
	if err != nil {
		return credential.Use{}, err
	}
	c, err := b.client(h.Token)
	if err != nil {
		return credential.Use{}, err
	}
	if h.Lease != "" {
		// Where the policy lets the workload, this waits until the engine has
		// revoked. Without, the server revokes with the token, in its own time.
		_, err := c.Logical().WriteWithContext(ctx, "sys/leases/revoke", map[string]any{"lease_id": h.Lease, "sync": true})
		if err != nil && status(err) != http.StatusForbidden && status(err) != http.StatusBadRequest {
			return credential.Use{}, failure("revoking the lease", err)
		}
	}
	return credential.Use{}, b.revokeToken(ctx, c)
}

// Recover revokes the token, and so whatever it was given.
func (b *Broker) Recover(ctx context.Context, at credential.Handle) error {
	_, err := b.Revoke(ctx, at)
	return err
}

// revokeToken revokes the token. The server answers in the same words for a
// token that has ended and for one whose policy allows nothing: after two
// refusals, only the token's own end tells.
func (b *Broker) revokeToken(ctx context.Context, c *api.Client) error {
	err := c.Auth().Token().RevokeSelfWithContext(ctx, "")
	if err == nil {
		return nil
	}
	if status(err) != http.StatusForbidden {
		return failure("revoking the token", err)
	}
	switch err := b.lookUp(ctx, c); {
	case err == nil:
		return fmt.Errorf("%w: role %s may not revoke its own token; allow auth/token/revoke-self, as the policy default does", credential.ErrRefused, b.settings.Role)
	case status(err) == http.StatusForbidden:
		return fmt.Errorf("%w: whether the token has ended is unknown until it expires: it may be neither revoked nor looked up; revoke its accessor by hand, or let role %s have the policy default", credential.ErrUpstream, b.settings.Role)
	default:
		return failure("looking the token up", err)
	}
}

// lookUp returns nil if the server knows the token, and lets it ask.
func (b *Broker) lookUp(ctx context.Context, c *api.Client) error {
	answer, err := c.Auth().Token().LookupSelfWithContext(ctx)
	if err == nil && (answer == nil || len(answer.Data) == 0) {
		err = errors.New("the answer is empty")
	}
	return err
}

// status is the HTTP status of the server's refusal, or 0.
func status(err error) int {
	if e, ok := errors.AsType[*api.ResponseError](err); ok {
		return e.StatusCode
	}
	return 0
}

// failure distinguishes a refusal from a failure. The server's own words are left out: they
// may repeat what was sent.
func failure(what string, err error) error {
	switch s := status(err); {
	case s == 0:
		return fmt.Errorf("%s: %w: %w", what, credential.ErrUpstream, withoutURL(err))
	case s >= 400 && s < 500 && s != http.StatusTooManyRequests && s != http.StatusRequestTimeout && s != http.StatusPreconditionFailed:
		return fmt.Errorf("%s: %w with status %d", what, credential.ErrRefused, s)
	default:
		return fmt.Errorf("%s: %w: status %d", what, credential.ErrUpstream, s)
	}
}
