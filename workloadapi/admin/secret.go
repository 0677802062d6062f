package admin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Secrets does what administrators request about sealed secrets. Values go in and do not come
// out, but for what undoes a change. The asker is recorded before anything is done.
type Secrets struct {
	List   func() ([]sealed.Secret, error)
	Seal   func(ctx context.Context, by Asker, name string, value secret.Bytes, o sealed.Options) (sealed.Secret, error)
	Rotate func(ctx context.Context, by Asker, name string, value secret.Bytes, o sealed.Options) (sealed.Secret, error)
	Remove func(ctx context.Context, by Asker, name string) error
	Undo   func(ctx context.Context, by Asker, name string) (secret.Bytes, error)
}

// secretView returns a secret as it is listed.
func secretView(s sealed.Secret, now time.Time) view.Secret {
	v := view.Secret{
		Name: s.Name, Revision: s.Revision, Bytes: s.Len, Created: s.Created, Sealed: s.Sealed, RotateBy: s.RotateBy(),
		Due: now.After(s.RotateBy()), Broad: s.Broad, Bound: s.Bound, LastUse: s.LastUse, Uses: s.Uses, UsedBy: s.UsedBy,
	}
	if v.UsedBy == nil {
		v.UsedBy = []string{}
	}
	return v
}

func (a *Secrets) routes(mux *http.ServeMux) {
	if a == nil {
		return
	}
	mux.HandleFunc("GET /v1/secrets", a.list)
	mux.HandleFunc("POST /v1/secrets/seal", a.keep(a.Seal))
	mux.HandleFunc("POST /v1/secrets/rotate", a.keep(a.Rotate))
	mux.HandleFunc("POST /v1/secrets/remove", a.remove)
	mux.HandleFunc("POST /v1/secrets/undo", a.undo)
}

func (a *Secrets) list(w http.ResponseWriter, _ *http.Request) {
	secrets, err := a.List()
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	views := []view.Secret{}
	for _, s := range secrets {
		views = append(views, secretView(s, time.Now()))
	}
	reply(w, views)
}

func (a *Secrets) keep(do func(context.Context, Asker, string, secret.Bytes, sealed.Options) (sealed.Secret, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		o, err := view.ParseSecretOptions(r.URL.Query())
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
		ctx, cancel := tpmDeadline(w, r)
		defer cancel()
		s, err := do(ctx, askerOf(r), r.URL.Query().Get("name"), value, sealed.Options(o))
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		reply(w, secretView(s, time.Now()))
	}
}

// readSecret reads a request's body into one place, which the caller wipes.
func readSecret(r *http.Request) (secret.Bytes, error) {
	if r.ContentLength < 0 || r.ContentLength > sealed.MaxLen {
		return secret.Bytes{}, fmt.Errorf("a secret may have at most %d bytes", sealed.MaxLen)
	}
	b := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, b); err != nil {
		clear(b)
		return secret.Bytes{}, fmt.Errorf("reading the secret: %w", err)
	}
	return secret.Of(b), nil
}

func (a *Secrets) remove(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := tpmDeadline(w, r)
	defer cancel()
	if err := a.Remove(ctx, askerOf(r), r.URL.Query().Get("name")); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	reply(w, struct{}{})
}

func (a *Secrets) undo(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := tpmDeadline(w, r)
	defer cancel()
	value, err := a.Undo(ctx, askerOf(r), r.URL.Query().Get("name"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	defer value.Wipe()
	reply(w, view.Undo{Value: value.Reveal()})
}
