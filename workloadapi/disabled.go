package workloadapi

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/identity"
)

// A Disabled is an identity that an administrator has cut off. Whoever an entry
// entitles to it gets nothing by that entry.
type Disabled struct {
	SPIFFEID string    `json:"spiffe_id"`
	Since    time.Time `json:"since"`
	By       uint32    `json:"by"` // the administrator's user ID
	Reason   string    `json:"reason,omitempty"`
}

// SetDisabled replaces the identities that are cut off. When it returns, no call
// that is yet to pass its last check gets an answer under one of them, and open
// streams under them are about to end or to be sent what is left.
func (s *Server) SetDisabled(list []Disabled) {
	m := make(map[string]Disabled, len(list))
	for _, d := range list {
		m[d.SPIFFEID] = d
	}
	s.disabled.Store(&m)
	s.tellChanged()
}

// Disabled returns the identities that are cut off, by name.
func (s *Server) Disabled() []Disabled {
	return slices.SortedFunc(maps.Values(*s.disabled.Load()), func(a, b Disabled) int { return strings.Compare(a.SPIFFEID, b.SPIFFEID) })
}

// isDisabled reports whether an identity is cut off.
func (s *Server) isDisabled(id spiffeid.ID) bool {
	_, ok := (*s.disabled.Load())[id.String()]
	return ok
}

// entitled parts the entries that a process matches: those by which it is
// entitled, and those whose identity is cut off.
func (s *Server) entitled(p *process.Attested) (entries, disabled []identity.Entry) {
	for _, e := range s.matching(p) {
		if s.isDisabled(e.ID) {
			disabled = append(disabled, e)
		} else {
			entries = append(entries, e)
		}
	}
	return entries, disabled
}

// cutOff returns an error if one of the caller's identities was disabled since
// it was attested.
func (s *Server) cutOff(c *caller) error {
	for _, e := range c.entries {
		if s.isDisabled(e.ID) {
			return fmt.Errorf("%w: %s", errDisabled, e.ID)
		}
	}
	return nil
}

// An EntryAdmin cuts identities off, and takes them up again. Who asks is
// recorded before anything is done.
type EntryAdmin struct {
	Disable func(ctx context.Context, by Asker, id spiffeid.ID, reason string) (DisabledView, error)
	Enable  func(ctx context.Context, by Asker, id spiffeid.ID) (DisabledView, error)
}

// A DisabledView says what became of an identity.
type DisabledView struct {
	SPIFFEID   string `json:"spiffe_id"`
	Disabled   bool   `json:"disabled"`
	Changed    bool   `json:"changed"`              // it was not before
	Leases     int    `json:"leases"`               // of it that ended or are about to
	Unfinished string `json:"unfinished,omitempty"` // why not all of them have ended yet; that goes on
}

// maxDisableReason bounds an administrator's words, in bytes.
const maxDisableReason = 256

func (a *EntryAdmin) routes(mux *http.ServeMux) {
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
		a.answer(w, r, "disabling", func(by Asker, id spiffeid.ID) (DisabledView, error) { return a.Disable(ctx, by, id, reason) })
	})
	mux.HandleFunc("POST /v1/entries/enable", func(w http.ResponseWriter, r *http.Request) {
		a.answer(w, r, "enabling", func(by Asker, id spiffeid.ID) (DisabledView, error) { return a.Enable(r.Context(), by, id) })
	})
}

func (a *EntryAdmin) answer(w http.ResponseWriter, r *http.Request, what string, do func(Asker, spiffeid.ID) (DisabledView, error)) {
	id, err := spiffeid.FromString(r.URL.Query().Get("spiffe_id"))
	if err != nil {
		http.Error(w, fmt.Sprintf("%s %.80q: %v", what, r.URL.Query().Get("spiffe_id"), err), http.StatusBadRequest)
		return
	}
	by, _ := r.Context().Value(askerKey{}).(Asker)
	view, err := do(by, id)
	if err != nil {
		http.Error(w, fmt.Sprintf("%s %s: %v", what, id, err), http.StatusConflict)
		return
	}
	reply(w, view)
}

// Disable cuts an identity off: streams under it end, its leases are revoked
// and nothing is issued under it until it is enabled again, restarts of the
// daemon included.
func (c *AdminClient) Disable(ctx context.Context, id spiffeid.ID, reason string) (DisabledView, error) {
	return post[DisabledView](ctx, c, "/v1/entries/disable", url.Values{"spiffe_id": {id.String()}, "reason": {reason}}, nil)
}

// Enable takes an identity up again.
func (c *AdminClient) Enable(ctx context.Context, id spiffeid.ID) (DisabledView, error) {
	return post[DisabledView](ctx, c, "/v1/entries/enable", url.Values{"spiffe_id": {id.String()}}, nil)
}
