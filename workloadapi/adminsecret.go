package workloadapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/secret"
)

// A SecretAdmin does what administrators ask about sealed secrets. Values go in
// and do not come out. Who asks is recorded before anything is done.
type SecretAdmin struct {
	List   func() ([]sealed.Secret, error)
	Seal   func(ctx context.Context, by Asker, name string, value secret.Bytes, o sealed.Options) (sealed.Secret, error)
	Rotate func(ctx context.Context, by Asker, name string, value secret.Bytes, o sealed.Options) (sealed.Secret, error)
	Remove func(ctx context.Context, by Asker, name string) error
}

// A SecretsStatus says how the sealed secrets are.
type SecretsStatus struct {
	Count int    `json:"count"`
	Due   int    `json:"due"`             // of them, those that should have been rotated by now
	Error string `json:"error,omitempty"` // why none can be opened
}

// A SecretView is a sealed secret as it is listed: all but its value.
type SecretView struct {
	Name     string    `json:"name"`
	Revision uint64    `json:"revision"`
	Bytes    int       `json:"bytes"`
	Created  time.Time `json:"created"`
	Sealed   time.Time `json:"sealed"` // when this value was
	RotateBy time.Time `json:"rotate_by"`
	Due      bool      `json:"due"`
	Broad    bool      `json:"broad,omitempty"`
	Bound    bool      `json:"bound,omitempty"` // to approved boot states
	LastUse  time.Time `json:"last_use,omitzero"`
	Uses     uint64    `json:"uses"`
	UsedBy   []string  `json:"used_by"` // SPIFFE IDs, those that used it last
}

// ViewSecret returns a secret as it is listed.
func ViewSecret(s sealed.Secret, now time.Time) SecretView {
	v := SecretView{
		Name: s.Name, Revision: s.Revision, Bytes: s.Len, Created: s.Created, Sealed: s.Sealed, RotateBy: s.RotateBy(),
		Due: now.After(s.RotateBy()), Broad: s.Broad, Bound: s.Bound, LastUse: s.LastUse, Uses: s.Uses, UsedBy: s.UsedBy,
	}
	if v.UsedBy == nil {
		v.UsedBy = []string{}
	}
	return v
}

func (a *SecretAdmin) routes(mux *http.ServeMux) {
	if a == nil {
		return
	}
	mux.HandleFunc("GET /v1/secrets", a.list)
	mux.HandleFunc("POST /v1/secrets/seal", a.keep(a.Seal))
	mux.HandleFunc("POST /v1/secrets/rotate", a.keep(a.Rotate))
	mux.HandleFunc("POST /v1/secrets/remove", a.remove)
}

func (a *SecretAdmin) list(w http.ResponseWriter, _ *http.Request) {
	secrets, err := a.List()
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	views := []SecretView{}
	for _, s := range secrets {
		views = append(views, ViewSecret(s, time.Now()))
	}
	reply(w, views)
}

func (a *SecretAdmin) keep(do func(context.Context, Asker, string, secret.Bytes, sealed.Options) (sealed.Secret, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		o, err := secretOptions(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		value, err := readSecret(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		defer value.Wipe()
		ctx, cancel := adminDeadline(w, r)
		defer cancel()
		by, _ := ctx.Value(askerKey{}).(Asker)
		s, err := do(ctx, by, r.URL.Query().Get("name"), value, o)
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		reply(w, ViewSecret(s, time.Now()))
	}
}

// readSecret reads a request's body into one place, which the caller wipes.
func readSecret(r *http.Request) (secret.Bytes, error) {
	if r.ContentLength < 0 || r.ContentLength > sealed.MaxLen {
		return secret.Bytes{}, fmt.Errorf("a secret may have %d bytes", sealed.MaxLen)
	}
	b := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, b); err != nil {
		clear(b)
		return secret.Bytes{}, fmt.Errorf("reading the secret: %w", err)
	}
	return secret.Of(b), nil
}

func (a *SecretAdmin) remove(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := adminDeadline(w, r)
	defer cancel()
	by, _ := ctx.Value(askerKey{}).(Asker)
	if err := a.Remove(ctx, by, r.URL.Query().Get("name")); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	reply(w, struct{}{})
}

// adminDeadline gives a request the time that a TPM may take.
func adminDeadline(w http.ResponseWriter, r *http.Request) (context.Context, context.CancelFunc) {
	deadline := time.Now().Add(nodeTimeout)
	http.NewResponseController(w).SetWriteDeadline(deadline.Add(10 * time.Second))
	return context.WithDeadline(r.Context(), deadline)
}

// secretQuery and secretOptions carry options in a request's query.
func secretQuery(name string, o sealed.Options) (url.Values, error) {
	q := url.Values{"name": {name}}
	if o.RotateAfter != 0 {
		q.Set("rotate_after", o.RotateAfter.String())
	}
	if o.Broad != nil {
		q.Set("broad", strconv.FormatBool(*o.Broad))
	}
	if o.Same {
		q.Set("same", "true")
	}
	if o.Authority != nil {
		der, err := x509.MarshalPKIXPublicKey(o.Authority)
		if err != nil {
			return nil, err
		}
		q.Set("authority", base64.RawURLEncoding.EncodeToString(der))
	}
	return q, nil
}

func secretOptions(q url.Values) (o sealed.Options, err error) {
	o.Same = q.Get("same") == "true"
	if text := q.Get("rotate_after"); text != "" {
		if o.RotateAfter, err = time.ParseDuration(text); err != nil {
			return o, err
		}
	}
	if text := q.Get("broad"); text != "" {
		broad, err := strconv.ParseBool(text)
		if err != nil {
			return o, err
		}
		o.Broad = &broad
	}
	if text := q.Get("authority"); text != "" {
		der, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			return o, err
		}
		key, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return o, err
		}
		var ok bool
		if o.Authority, ok = key.(*ecdsa.PublicKey); !ok {
			return o, errors.New("the authority's key is not an ECDSA key")
		}
	}
	return o, nil
}

// Secrets returns every sealed secret by name.
func (c *AdminClient) Secrets(ctx context.Context) ([]SecretView, error) {
	return get[[]SecretView](ctx, c, "/v1/secrets", nil)
}

// SealSecret has a value kept under a name that has none.
func (c *AdminClient) SealSecret(ctx context.Context, name string, value secret.Bytes, o sealed.Options) (SecretView, error) {
	return c.keepSecret(ctx, "/v1/secrets/seal", name, value, o)
}

// RotateSecret has a value kept in the place of the last one.
func (c *AdminClient) RotateSecret(ctx context.Context, name string, value secret.Bytes, o sealed.Options) (SecretView, error) {
	return c.keepSecret(ctx, "/v1/secrets/rotate", name, value, o)
}

func (c *AdminClient) keepSecret(ctx context.Context, path, name string, value secret.Bytes, o sealed.Options) (SecretView, error) {
	q, err := secretQuery(name, o)
	if err != nil {
		return SecretView{}, err
	}
	return post[SecretView](ctx, c, path, q, value.Reveal())
}

// RemoveSecret has a secret forgotten.
func (c *AdminClient) RemoveSecret(ctx context.Context, name string) error {
	_, err := post[struct{}](ctx, c, "/v1/secrets/remove", url.Values{"name": {name}}, nil)
	return err
}
