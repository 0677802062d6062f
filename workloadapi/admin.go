package workloadapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/identity"
)

// A Status is the daemon's state as an administrator sees it.
type Status struct {
	Version     string            `json:"version"`
	TrustDomain string            `json:"trust_domain"`
	Started     time.Time         `json:"started"`
	TPM         TPMStatus         `json:"tpm"`
	Node        NodeStatus        `json:"node"`
	Authority   AuthorityStatus   `json:"authority"`
	Entries     EntriesStatus     `json:"entries"`
	Log         LogStatus         `json:"log"`
	Credentials CredentialsStatus `json:"credentials"`
	Secrets     SecretsStatus     `json:"secrets"`
	Streams     int64             `json:"streams"`   // open on the agent socket
	Reminders   []string          `json:"reminders"` // what is not wrong yet, each one sentence with what to do
	Problems    []string          `json:"problems"`  // each one sentence with the way out; empty: all is well
}

// TPMStatus says which TPM holds the keys.
type TPMStatus struct {
	Address  string `json:"address"`
	EKSHA256 string `json:"ek_sha256"` // of the EK's public key, hexadecimal
	AKName   string `json:"ak_name"`   // hexadecimal

	EKCertificate bool `json:"ek_certificate"` // whether its maker certified the EK
}

// AuthorityStatus says how long the authority's keys go on.
type AuthorityStatus struct {
	RootNotAfter      time.Time `json:"root_not_after"`
	IssuingCAKeyID    string    `json:"issuing_ca_key_id"`
	IssuingCANotAfter time.Time `json:"issuing_ca_not_after"`
	JWTKeyID          string    `json:"jwt_key_id"`
	JWTKeyUntil       time.Time `json:"jwt_key_until,omitzero"` // missing: without end
	BundleSequence    uint64    `json:"bundle_sequence"`
}

// EntriesStatus says which registrations are in force.
type EntriesStatus struct {
	Dir      string    `json:"dir"`
	Count    int       `json:"count"`
	Disabled int       `json:"disabled"` // identities that an administrator has cut off
	Loaded   time.Time `json:"loaded"`
	Error    string    `json:"error,omitempty"` // why what is on disk now is not in force
}

// LogStatus says how far the attestation log has come.
type LogStatus struct {
	Dir        string    `json:"dir"`
	Records    uint64    `json:"records"`
	RootSHA256 string    `json:"root_sha256"` // of the Merkle tree, hexadecimal
	LastAnchor time.Time `json:"last_anchor"`
	Anchored   uint64    `json:"anchored"` // records that the last anchor covers
	Error      string    `json:"error,omitempty"`

	DiskBytes int64           `json:"disk_bytes"`
	MaxBytes  int64           `json:"max_bytes"`
	Witnesses []WitnessStatus `json:"witnesses,omitempty"`
}

// WitnessStatus says what a witness has signed of the log.
type WitnessStatus struct {
	Name    string    `json:"name"`
	URL     string    `json:"url"`
	Records uint64    `json:"records"`       // that it signed last
	Time    time.Time `json:"time,omitzero"` // when, by its clock
	Error   string    `json:"error,omitempty"`
}

// An EntryView is a registration entry as it is listed.
type EntryView struct {
	SPIFFEID  string   `json:"spiffe_id"`
	Selectors []string `json:"selectors"`
	Position  string   `json:"position"` // file:line
	X509TTL   string   `json:"x509_svid_ttl"`
	JWTTTL    string   `json:"jwt_svid_ttl"`
	Hint      string   `json:"hint,omitempty"`

	Disabled *Disabled `json:"disabled,omitempty"` // missing: the identity is in use
}

// An Explanation says what a process is, and what that entitles it to.
type Explanation struct {
	PID       int            `json:"pid"`
	Path      string         `json:"path"`
	Selectors []SelectorView `json:"selectors"`
	Matches   []EntryView    `json:"matches"`
	Nearest   []NearMissView `json:"nearest"` // entries that do not match, those that lack least first
	Gaps      []string       `json:"gaps"`    // facts that could not be established, and why
}

// A SelectorView is a selector and who vouches for it.
type SelectorView struct {
	Selector string `json:"selector"`
	Trust    string `json:"trust"`
}

// A NearMissView is an entry and what the process lacks for it.
type NearMissView struct {
	EntryView
	Missing []string `json:"missing"`
}

// An Admin answers on the admin socket, in JSON over HTTP. It is for root and
// the daemon's own user; the socket's mode keeps others out and the kernel's
// word on who connected is checked besides.
type Admin struct {
	Server  *Server
	Status  func() Status // of all but the server's own part
	Node    *NodeAdmin
	Entry   *EntryAdmin
	Leases  *LeaseAdmin  // nil where there are no credentials
	Secrets *SecretAdmin // the same
	Bundles *BundleAdmin
	Logger  *slog.Logger
}

// Serve answers on l until the context ends.
func (a *Admin) Serve(ctx context.Context, l *net.UnixListener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", a.status)
	mux.HandleFunc("GET /v1/entries", a.entries)
	mux.HandleFunc("GET /v1/explain", a.explain)
	mux.HandleFunc("POST /v1/programs/start", a.programStart)
	a.Node.routes(mux)
	a.Leases.routes(mux)
	a.Entry.routes(mux)
	a.Secrets.routes(mux)
	a.Bundles.routes(mux)
	h := &http.Server{
		Handler:           mux,
		ConnContext:       rememberAsker,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		MaxHeaderBytes:    maxHeaderLen,
		ErrorLog:          slog.NewLogLogger(a.Logger.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		h.Shutdown(ctx)
	})
	defer stop()
	if err := h.Serve(adminListener{l}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// An adminListener drops connections of other users.
type adminListener struct{ *net.UnixListener }

func (l adminListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if by, err := askerOf(c); err == nil && (by.UID == 0 || int(by.UID) == os.Geteuid()) {
			return askerConn{c, by}, nil
		}
		c.Close()
	}
}

// An askerConn is a connection with who made it.
type askerConn struct {
	*net.UnixConn
	by Asker
}

func rememberAsker(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, askerKey{}, c.(askerConn).by)
}

func askerOf(c *net.UnixConn) (by Asker, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Asker{}, err
	}
	var cred *unix.Ucred
	if ctlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); ctlErr != nil {
		return Asker{}, ctlErr
	}
	if err != nil {
		return Asker{}, err
	}
	return Asker{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}

func (a *Admin) status(w http.ResponseWriter, _ *http.Request) {
	st := a.Status()
	a.Server.FillStatus(&st)
	reply(w, st)
}

// FillStatus sets the server's own part of a status.
func (s *Server) FillStatus(st *Status) {
	st.Streams = s.streams.Load()
	st.Entries.Count = s.entries.Load().Len()
	st.Entries.Disabled = len(*s.disabled.Load())
}

func (a *Admin) entries(w http.ResponseWriter, _ *http.Request) {
	views := []EntryView{}
	for _, e := range a.Server.entries.Load().All() {
		views = append(views, a.Server.entryView(e))
	}
	reply(w, views)
}

func (a *Admin) explain(w http.ResponseWriter, r *http.Request) {
	pid, err := strconv.Atoi(r.FormValue("pid"))
	if err != nil || pid <= 0 {
		http.Error(w, fmt.Sprintf("pid %q is not a process ID", r.FormValue("pid")), http.StatusBadRequest)
		return
	}
	p, err := a.Server.o.Attester.AttestPID(r.Context(), pid)
	if err != nil {
		http.Error(w, fmt.Sprintf("explaining process %d: %v", pid, err), http.StatusNotFound)
		return
	}
	reply(w, a.Server.explanation(p))
}

const nearestShown = 5

func (s *Server) explanation(p *process.Attested) Explanation {
	x := Explanation{PID: p.PID, Path: p.Path, Selectors: []SelectorView{}, Matches: []EntryView{}, Nearest: []NearMissView{}, Gaps: []string{}}
	for _, sel := range s.selectors(p) {
		x.Selectors = append(x.Selectors, SelectorView{sel.String(), sel.Trust().String()})
	}
	for _, gap := range p.Gaps {
		x.Gaps = append(x.Gaps, gap.Error())
	}
	for _, e := range s.matching(p) {
		x.Matches = append(x.Matches, s.entryView(e))
	}
	for _, m := range s.entries.Load().NearMisses(s.selectors(p), nearestShown) {
		x.Nearest = append(x.Nearest, NearMissView{s.entryView(m.Entry), m.Missing.Strings()})
	}
	return x
}

func (s *Server) entryView(e identity.Entry) EntryView {
	v := EntryView{
		SPIFFEID: e.ID.String(), Selectors: e.Selectors.Strings(), Position: e.Pos.String(),
		X509TTL: e.X509TTL.String(), JWTTTL: e.JWTTTL.String(), Hint: e.Hint,
	}
	if d, ok := (*s.disabled.Load())[v.SPIFFEID]; ok {
		v.Disabled = &d
	}
	return v
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v) // an error here is the client's connection going away
}
