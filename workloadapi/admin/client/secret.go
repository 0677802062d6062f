package client

import (
	"context"
	"net/url"

	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Secrets asks about sealed secrets.
type Secrets struct{ c *Client }

// List returns every sealed secret by name.
func (s Secrets) List(ctx context.Context) ([]view.Secret, error) {
	return get[[]view.Secret](ctx, s.c, "/v1/secrets", nil)
}

// Seal has a value kept under a name that has none.
func (s Secrets) Seal(ctx context.Context, name string, value secret.Bytes, o view.SecretOptions) (view.Secret, error) {
	return s.keep(ctx, "/v1/secrets/seal", name, value, o)
}

// Rotate has a value kept in the place of the last one.
func (s Secrets) Rotate(ctx context.Context, name string, value secret.Bytes, o view.SecretOptions) (view.Secret, error) {
	return s.keep(ctx, "/v1/secrets/rotate", name, value, o)
}

func (s Secrets) keep(ctx context.Context, path, name string, value secret.Bytes, o view.SecretOptions) (view.Secret, error) {
	q, err := o.Query(name)
	if err != nil {
		return view.Secret{}, err
	}
	return post[view.Secret](ctx, s.c, path, q, value.Reveal())
}

// Remove has a secret forgotten.
func (s Secrets) Remove(ctx context.Context, name string) error {
	_, err := post[struct{}](ctx, s.c, "/v1/secrets/remove", url.Values{"name": {name}}, nil)
	return err
}

// Undo returns what undoes a change, and has it recorded that it did.
func (s Secrets) Undo(ctx context.Context, name string) (secret.Bytes, error) {
	u, err := post[view.Undo](ctx, s.c, "/v1/secrets/undo", url.Values{"name": {name}}, nil)
	return secret.Of(u.Value), err
}
