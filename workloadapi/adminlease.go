package workloadapi

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
)

// A LeaseAdmin does what administrators ask about leases. Who revokes is
// recorded before anything is done.
type LeaseAdmin struct {
	List   func() []credential.Lease
	Hash   func(id string) string // what the log calls a lease by
	Revoke func(ctx context.Context, by Asker, w credential.Where) (int, error)
	SSHCA  func(ctx context.Context, by Asker, name string) (SSHCAView, error)
}

// An SSHCAView is an authority that certifies SSH keys.
type SSHCAView struct {
	Name      string `json:"name"`
	PublicKey string `json:"public_key"` // a line as TrustedUserCAKeys takes it
}

// A CredentialsStatus says which credentials are in force and how many leases
// there are.
type CredentialsStatus struct {
	Dir    string `json:"dir"`
	Count  int    `json:"count"`
	Leases int    `json:"leases"`          // that have not ended
	Stuck  int    `json:"stuck"`           // of them, those that could not be ended
	Error  string `json:"error,omitempty"` // why what is on disk now is not in force
}

// A LeaseView is a lease as it is listed.
type LeaseView struct {
	Lease      string    `json:"lease"` // as the log calls it
	Credential string    `json:"credential"`
	SPIFFEID   string    `json:"spiffe_id"`
	State      string    `json:"state"`
	Bind       string    `json:"bind"`
	PID        int       `json:"pid"`
	Unit       string    `json:"unit,omitempty"`
	Upstream   string    `json:"upstream"`
	Handle     string    `json:"handle"` // its name there
	Revocation string    `json:"revocation"`
	Granted    time.Time `json:"granted"`
	Expires    time.Time `json:"expires"`
	Reason     string    `json:"reason,omitempty"` // why it is ending or stuck
	Attempts   int       `json:"attempts,omitempty"`
}

// A RevokedView says how far a revocation came.
type RevokedView struct {
	Leases     int    `json:"leases"`               // chosen
	Unfinished string `json:"unfinished,omitempty"` // why not all of them have ended yet; that goes on
}

// revokeWait is how long a caller waits for sources to confirm an end, which
// goes on without it.
const revokeWait = 20 * time.Second

func (l *LeaseAdmin) routes(mux *http.ServeMux) {
	if l == nil {
		return
	}
	mux.HandleFunc("GET /v1/leases", l.list)
	mux.HandleFunc("POST /v1/leases/revoke", l.revoke)
	mux.HandleFunc("POST /v1/ssh-ca", func(w http.ResponseWriter, r *http.Request) { // which may make the key
		name := r.URL.Query().Get("name")
		answerNode(w, r, func(ctx context.Context, by Asker, _ []byte) (SSHCAView, error) { return l.SSHCA(ctx, by, name) })
	})
}

func (l *LeaseAdmin) list(w http.ResponseWriter, _ *http.Request) {
	views := []LeaseView{}
	for _, lease := range l.List() {
		views = append(views, LeaseView{
			Lease: l.Hash(lease.ID), Credential: lease.Credential, SPIFFEID: lease.Identity.String(),
			State: string(lease.State), Bind: string(lease.Bind), PID: lease.Process.PID, Unit: lease.Process.Unit,
			Upstream: lease.Upstream, Handle: lease.Handle, Revocation: string(lease.Revocation),
			Granted: lease.Granted, Expires: lease.Expires, Reason: lease.Reason, Attempts: lease.Attempts,
		})
	}
	reply(w, views)
}

func (l *LeaseAdmin) revoke(w http.ResponseWriter, r *http.Request) {
	where, err := whereOf(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), revokeWait)
	defer cancel()
	by, _ := ctx.Value(askerKey{}).(Asker)
	n, err := l.Revoke(ctx, by, where)
	if err != nil && n == 0 {
		http.Error(w, fmt.Sprintf("revoking leases: %v", err), http.StatusConflict)
		return
	}
	view := RevokedView{Leases: n}
	if err != nil {
		view.Unfinished = err.Error()
	}
	reply(w, view)
}

// whereOf reads which leases are meant. All of them must be said outright.
func whereOf(q url.Values) (w credential.Where, err error) {
	w.All, w.Credential = q.Get("all") == "true", q.Get("credential")
	if id := q.Get("identity"); id != "" {
		if w.Identity, err = spiffeid.FromString(id); err != nil {
			return w, fmt.Errorf("identity %.80q: %w", id, err)
		}
	}
	switch narrow := w.Credential != "" || !w.Identity.IsZero(); {
	case w.All && narrow:
		return w, fmt.Errorf("all leases, or those of one identity or credential?")
	case !w.All && !narrow:
		return w, fmt.Errorf("which leases? name an identity or a credential, or say all")
	}
	return w, nil
}

// Leases returns every lease that has not ended, the oldest first.
func (c *AdminClient) Leases(ctx context.Context) ([]LeaseView, error) {
	return get[[]LeaseView](ctx, c, "/v1/leases", nil)
}

// RevokeLeases ends leases: all of them, or those of an identity or a
// credential or both.
func (c *AdminClient) RevokeLeases(ctx context.Context, w credential.Where) (RevokedView, error) {
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
	return post[RevokedView](ctx, c, "/v1/leases/revoke", q, nil)
}

// SSHCA returns the public key of an authority that definitions name, making
// the key on first use.
func (c *AdminClient) SSHCA(ctx context.Context, name string) (SSHCAView, error) {
	return post[SSHCAView](ctx, c, "/v1/ssh-ca", url.Values{"name": {name}}, nil)
}
