package admin

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// drillRoutes are those of drills. Who begins or ends one is recorded before it is done.
func (l *Leases) drillRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/drill", func(w http.ResponseWriter, r *http.Request) { l.drill(w, r.FormValue("credential")) })
	mux.HandleFunc("POST /v1/drill/begin", func(w http.ResponseWriter, r *http.Request) {
		asked, err := drillOf(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), revokeWait)
		defer cancel()
		if err := l.BeginDrill(ctx, askerOf(r), asked); err != nil {
			http.Error(w, fmt.Sprintf("beginning a drill: %v", err), http.StatusConflict)
			return
		}
		l.drill(w, asked.Credential)
	})
	mux.HandleFunc("POST /v1/drill/end", func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("credential")
		if err := l.EndDrill(r.Context(), askerOf(r), name); err != nil {
			http.Error(w, fmt.Sprintf("ending a drill: %v", err), http.StatusConflict)
			return
		}
		l.drill(w, name)
	})
}

func drillOf(r *http.Request) (asked view.DrillRequest, err error) {
	q := r.URL.Query()
	asked.Credential, asked.Anyway = q.Get("credential"), q.Get("anyway") == "true"
	if asked.For, err = time.ParseDuration(q.Get("for")); err != nil {
		return asked, fmt.Errorf("for: %w", err)
	}
	if id := q.Get("identity"); id != "" {
		if asked.Identity, err = spiffeid.FromString(id); err != nil {
			return asked, fmt.Errorf("identity %.80q: %w", id, err)
		}
	}
	return asked, nil
}

func (l *Leases) drill(w http.ResponseWriter, name string) {
	d, err := l.Drill(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	v := view.Drill{Credential: d.Credential, Began: d.Began, Until: d.Until, Ended: d.Ended, Leases: d.Leases, Interrupted: d.Interrupted, Unconfirmed: d.Unconfirmed, Holders: []view.DrillHolder{}}
	if !d.Identity.IsZero() {
		v.Identity = d.Identity.String()
	}
	for _, h := range d.Holders {
		v.Holders = append(v.Holders, view.DrillHolder{
			SPIFFEID: h.Identity.String(), PID: h.Process.PID, Unit: h.Process.Unit, Held: h.Held, Value: h.Value, Revocation: string(h.Revocation), Asks: h.Asks, Calls: h.Calls,
			First: h.First, Last: h.Last, ShortestMS: h.Shortest.Milliseconds(), Exited: h.Exited, Recovered: h.Recovered,
		})
	}
	reply(w, v)
}
