package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Leases does what administrators ask about leases. Who revokes is
// recorded before anything is done.
type Leases struct {
	List   func() []credential.Lease
	Hash   func(id string) string // what the log calls a lease by
	Revoke func(ctx context.Context, by Asker, w credential.Where) (int, error)
	SSHCA  func(ctx context.Context, by Asker, name string) (view.SSHCA, error)

	BeginDrill func(ctx context.Context, by Asker, r view.DrillRequest) error
	EndDrill   func(ctx context.Context, by Asker, credential string) error
	Drill      func(credential string) (lease.Drill, error)
}

// revokeWait is how long a caller waits for sources to confirm an end, which happens either
// way.
const revokeWait = 20 * time.Second

func (l *Leases) routes(mux *http.ServeMux) {
	if l == nil {
		return
	}
	mux.HandleFunc("GET /v1/leases", l.list)
	mux.HandleFunc("POST /v1/leases/revoke", l.revoke)
	l.drillRoutes(mux)
	mux.HandleFunc("POST /v1/ssh-ca", func(w http.ResponseWriter, r *http.Request) { // which may make the key
		name := r.URL.Query().Get("name")
		answerTPM(w, r, func(ctx context.Context, by Asker, _ []byte) (view.SSHCA, error) { return l.SSHCA(ctx, by, name) })
	})
}

func (l *Leases) list(w http.ResponseWriter, _ *http.Request) {
	views := []view.Lease{}
	for _, lease := range l.List() {
		views = append(views, view.Lease{
			Lease: l.Hash(lease.ID), Credential: lease.Credential, SPIFFEID: lease.Identity.String(),
			State: string(lease.State), Bind: string(lease.Bind), PID: lease.Process.PID, Unit: lease.Process.Unit,
			Upstream: lease.Upstream, Handle: lease.Handle, Revocation: string(lease.Revocation),
			Granted: lease.Granted, Expires: lease.Expires, Reason: lease.Reason, Attempts: lease.Attempts, Failure: lease.Failure,
		})
	}
	reply(w, views)
}

func (l *Leases) revoke(w http.ResponseWriter, r *http.Request) {
	where, err := whereOf(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), revokeWait)
	defer cancel()
	n, err := l.Revoke(ctx, askerOf(r), where)
	if err != nil && n == 0 {
		http.Error(w, fmt.Sprintf("revoking leases: %v", err), http.StatusConflict)
		return
	}
	done := view.Revoked{Leases: n}
	if err != nil {
		done.Unfinished = err.Error()
	}
	reply(w, done)
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
		return w, fmt.Errorf("all excludes identity and credential")
	case !w.All && !narrow:
		return w, fmt.Errorf("give an identity, a credential or both, or all")
	}
	return w, nil
}
