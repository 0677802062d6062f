package admin

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Entries disables and re-enables identities. The asker is recorded before anything is done.
type Entries struct {
	Disable func(ctx context.Context, by Asker, id spiffeid.ID, reason string) (view.Disabling, error)
	Enable  func(ctx context.Context, by Asker, id spiffeid.ID) (view.Disabling, error)
}

// maxDisableReason bounds an administrator's words, in bytes.
const maxDisableReason = 256

func (a *Entries) routes(mux *http.ServeMux) {
	if a == nil {
		return
	}
	mux.HandleFunc("POST /v1/entries/disable", func(w http.ResponseWriter, r *http.Request) {
		reason := r.URL.Query().Get("reason")
		if len(reason) > maxDisableReason || strings.ContainsFunc(reason, unicode.IsControl) {
			http.Error(w, fmt.Sprintf("the reason is not one line of at most %d bytes", maxDisableReason), http.StatusBadRequest)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), revokeWait)
		defer cancel()
		a.answer(w, r, "disabling", func(by Asker, id spiffeid.ID) (view.Disabling, error) { return a.Disable(ctx, by, id, reason) })
	})
	mux.HandleFunc("POST /v1/entries/enable", func(w http.ResponseWriter, r *http.Request) {
		a.answer(w, r, "enabling", func(by Asker, id spiffeid.ID) (view.Disabling, error) { return a.Enable(r.Context(), by, id) })
	})
}

func (a *Entries) answer(w http.ResponseWriter, r *http.Request, what string, do func(Asker, spiffeid.ID) (view.Disabling, error)) {
	id, err := spiffeid.FromString(r.URL.Query().Get("spiffe_id"))
	if err != nil {
		http.Error(w, fmt.Sprintf("%s %.80q: %v", what, r.URL.Query().Get("spiffe_id"), err), http.StatusBadRequest)
		return
	}
	done, err := do(askerOf(r), id)
	if err != nil {
		http.Error(w, fmt.Sprintf("%s %s: %v", what, id, err), http.StatusConflict)
		return
	}
	reply(w, done)
}
