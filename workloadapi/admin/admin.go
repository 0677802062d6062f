// Package admin is the administrators' socket: JSON over HTTP, for root and the daemon's own
// user.
//
// It shows what the gate decides by, and passes on what administrators request. The kernel
// says who asks; each handler records that before it does anything. What crosses the socket
// is defined in package view.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// A Server answers on the admin socket. The socket's mode keeps other users out,
// and the kernel's word on who connected is checked besides.
type Server struct {
	Gate     *gate.Gate
	Attester *process.Attester
	Recorder *gate.Recorder
	Status   func() view.Status // of all but the gate's part
	Node     *Node
	Entries  *Entries
	Leases   *Leases  // nil if there are no credentials
	Secrets  *Secrets // the same
	Bundles  *Bundles
	Logger   *slog.Logger
}

const maxHeaderLen = 16 << 10 // bytes

// Serve answers on l until the context ends.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/entries", s.entries)
	mux.HandleFunc("GET /v1/explain", s.explain)
	mux.HandleFunc("POST /v1/programs/start", s.programStart)
	s.Node.routes(mux)
	s.Leases.routes(mux)
	s.Entries.routes(mux)
	s.Secrets.routes(mux)
	s.Bundles.routes(mux)
	return serve(ctx, l, mux, s.Logger)
}

// ServeStatus answers on l until the context ends, and only how the daemon is: for one
// that waits for something before it can serve.
func ServeStatus(ctx context.Context, l *net.UnixListener, status func() view.Status, logger *slog.Logger) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, status()) })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the daemon does not serve yet; vouch status says why", http.StatusServiceUnavailable)
	})
	return serve(ctx, l, mux, logger)
}

func serve(ctx context.Context, l *net.UnixListener, mux *http.ServeMux, logger *slog.Logger) error {
	h := &http.Server{
		Handler:           ofAskers(mux),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		MaxHeaderBytes:    maxHeaderLen,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		h.Shutdown(ctx)
	})
	defer stop()
	if err := h.Serve(listener{l}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	st := s.Status()
	FillStatus(&st, s.Gate, s.Attester)
	reply(w, st)
}

// FillStatus sets the part of a status that gate and attester know.
func FillStatus(st *view.Status, g *gate.Gate, a *process.Attester) {
	l, hashing := g.Limited(), a.Stats()
	st.Limited = view.LimitedStatus{
		Connections: l.Connections, Strangers: l.Strangers, Refusals: l.Refusals, TooOften: l.TooOften,
		LogShare: l.Share, Busy: l.Busy, Repeats: l.Repeats, Hashes: hashing.Refused, HashersLost: hashing.Lost,
	}
	if l.Connections+l.TooOften+l.Share+l.Busy > 0 {
		st.Reminders = append(st.Reminders, fmt.Sprintf("limits have refused %d connections and %d requests since the daemon started; vouch log show says whose", l.Connections, l.TooOften+l.Share+l.Busy))
	}
	for user, n := range hashing.LostBy {
		st.Problems = append(st.Problems, fmt.Sprintf("%d of the workers that hash programs wait for a file system of user %d's that does not answer; end that user's programs", n, user))
	}
	st.Streams = g.Streams.Open()
	st.Entries.Count = len(g.Entries())
	st.Entries.Disabled = len(g.Disabled())
}

func (s *Server) entries(w http.ResponseWriter, _ *http.Request) {
	views := []view.Entry{}
	for _, e := range s.Gate.Entries() {
		views = append(views, entryView(s.Gate, e))
	}
	reply(w, views)
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	pid, err := strconv.Atoi(r.FormValue("pid"))
	if err != nil || pid <= 0 {
		http.Error(w, fmt.Sprintf("pid %q is not a process ID", r.FormValue("pid")), http.StatusBadRequest)
		return
	}
	p, err := s.Attester.AttestPID(r.Context(), pid)
	if err != nil {
		http.Error(w, fmt.Sprintf("explaining process %d: %v", pid, err), http.StatusNotFound)
		return
	}
	reply(w, explanation(s.Gate, p))
}

const nearestShown = 5

func explanation(g *gate.Gate, p *process.Attested) view.Explanation {
	x := view.Explanation{PID: p.PID, Path: p.Path, Selectors: []view.Selector{}, Matches: []view.Entry{}, Nearest: []view.NearMiss{}, Gaps: []string{}, HeldBack: g.HeldBack()}
	for _, sel := range g.Selectors(p) {
		x.Selectors = append(x.Selectors, view.Selector{Selector: sel.String(), Trust: sel.Trust().String()})
	}
	for _, gap := range p.Gaps {
		x.Gaps = append(x.Gaps, gap.Error())
	}
	for _, e := range g.Matching(p) {
		x.Matches = append(x.Matches, entryView(g, e))
	}
	for _, m := range g.NearMisses(p, nearestShown) {
		x.Nearest = append(x.Nearest, view.NearMiss{Entry: entryView(g, m.Entry), Missing: m.Missing.Strings()})
	}
	return x
}

func entryView(g *gate.Gate, e identity.Entry) view.Entry {
	v := view.Entry{
		SPIFFEID: e.ID.String(), Selectors: e.Selectors.Strings(), Position: e.Place(),
		X509TTL: e.X509TTL.String(), JWTTTL: e.JWTTTL.String(), Hint: e.Hint,
		JWTAlgorithm: e.JWTAlgorithm, DNSNames: e.Names.DNS, CommonName: e.Names.Common,
		Credentials: e.Credentials, Unanchored: e.Unanchored, Container: e.Container(),
	}
	for _, td := range e.FederatesWith {
		v.FederatesWith = append(v.FederatesWith, td.Name())
	}
	if d, ok := g.DisabledAs(e.ID); ok {
		v.Disabled = new(view.Disabled(d))
	}
	return v
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v) // an error here is the client's connection going away
}
