package daemon

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/reload"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/brokers"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/credential/sshca"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/state"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/credentialapi"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// leases are the credentials of this host: their definitions, the engine that grants leases of
// them, the secrets that are sealed here, and the pins that report when a holder has ended.
type leases struct {
	dir         string // of the definitions
	machine     *machine
	log         *records
	slog        *slog.Logger
	secrets     *sealed.Store
	definitions *reload.Value[*credential.Definitions]
	units       *systemd.Units
	invocations *systemd.Invocations // nil where systemd is not PID 1
	pins        *credentialapi.Pins
	recorder    *gate.Recorder
	engine      *lease.Manager
	drills      *drills
}

// openLeases loads the definitions and resumes the leases of the last run: those
// without a holder are ended. Invalid definitions do not keep the daemon from
// starting: no credential is granted until they are repaired, and the leases
// there are wait for that too.
func openLeases(ctx context.Context, dir string, m *machine, log *records, logger *slog.Logger) (*leases, error) {
	l := &leases{dir: dir, machine: m, log: log, slog: logger, units: new(systemd.Units), recorder: gate.NewRecorder(log.Log, gate.Share{Bytes: int64(m.config.Log.MaxMiB) << 20, Keep: m.config.Log.KeepFor})}
	if err := l.open(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *leases) open(ctx context.Context) (err error) {
	m := l.machine
	if l.secrets = sealed.Open(ctx, m.state, m.node); l.secrets.Err() != nil {
		l.slog.Error("cannot open any sealed secret", "err", l.secrets.Err())
	}
	l.definitions = reload.New(l.source())
	if _, err := l.definitions.Reload(ctx); err != nil {
		return err
	}
	if err := l.openPins(); err != nil {
		return err
	}
	defs := l.definitions.State().Value
	if defs == nil {
		defs = new(credential.Definitions)
	}
	l.engine, err = lease.Open(ctx, lease.Config{
		Journal:     m.state.Path("leases"),
		Sealer:      m.node,
		Recorder:    credentialapi.NewRecorder(l.recorder),
		Processes:   l.pins,
		Definitions: defs,
		Log:         l.slog,
	})
	if err != nil {
		return fmt.Errorf("opening the lease journal: %w", err)
	}
	l.drills = &drills{engine: l.engine, state: m.state, log: l.log, slog: l.slog, going: make(map[string]drill)}
	return l.drills.load()
}

// openPins makes the pins, which report when the processes and units with leases end.
func (l *leases) openPins() (err error) {
	if systemd.IsManager() {
		if l.invocations, err = systemd.NewInvocations(l.units); err != nil {
			return err
		}
	}
	l.pins, err = credentialapi.NewPins(l.invocations)
	return err
}

// close leaves the leases as they are, for the next start.
func (l *leases) close() {
	l.recorder.Close()
	if l.engine != nil {
		l.engine.Close()
	}
	if l.pins != nil {
		l.pins.Close()
	}
	if l.secrets != nil {
		if err := l.secrets.Close(); err != nil {
			l.slog.Error("saving which identities used which secret; the log still has it", "err", err)
		}
	}
	if l.invocations != nil {
		l.invocations.Close()
	}
	if err := l.units.Close(); err != nil {
		l.slog.Warn("closing the connection to systemd", "err", err)
	}
}

// source is where definitions come from.
func (l *leases) source() reload.Source[*credential.Definitions] {
	return reload.Source[*credential.Definitions]{
		Name: "credentials", Place: l.dir,
		Parse: func(files []config.File) (*credential.Definitions, error) {
			return credential.ParseDefinitions(files, brokers.All(brokers.Deps{
				Keys: l.machine.node, Secrets: credential.NewSecrets(l.machine.state, l.machine.node), Sealed: l.secrets,
				JWTAlgorithms: l.machine.config.Authority.JWTAlgorithms,
			}))
		},
		Digest: (*credential.Definitions).Digest,
		Record: func(ctx context.Context, next *credential.Definitions, problem error) error {
			if problem != nil {
				return l.log.reloaded(ctx, audit.Record{}, problem)
			}
			digest := next.Digest()
			return l.log.reloaded(ctx, audit.Record{
				Reason: count(len(next.All()), "credential", "credentials"),
				Config: &audit.Config{SHA256: hex.EncodeToString(digest[:])},
			}, nil)
		},
		Apply: func(defs *credential.Definitions) {
			if l.engine != nil { // else it is opened with them
				l.engine.SetDefinitions(defs)
			}
		},
		Logger: l.slog,
	}
}

// A grant is of a credential to an identity.
type grant struct {
	id   spiffeid.ID
	name string
}

func grants(es []identity.Entry) map[grant]bool {
	granted := make(map[grant]bool)
	for _, e := range es {
		for _, name := range e.Credentials {
			granted[grant{e.ID, name}] = true
		}
	}
	return granted
}

// endUngranted ends the leases of identities that no entry grants the credential. While a
// file is lost that may grant it, only those that were granted until now.
func (l *leases) endUngranted(now, before []identity.Entry, lost bool) {
	granted, was := grants(now), grants(before)
	for _, lease := range l.engine.Leases() {
		g := grant{lease.Identity, lease.Credential}
		if !granted[g] && (was[g] || !lost) {
			l.engine.Abandon(lease.ID, "no entry grants it to the identity")
		}
	}
}

// admin is what administrators may do about leases.
func (l *leases) admin() *admin.Leases {
	return &admin.Leases{
		List: l.engine.Leases,
		Hash: l.engine.LeaseHash,
		Revoke: func(ctx context.Context, by admin.Asker, w credential.Where) (int, error) {
			if err := l.log.asked(ctx, by, "revoke "+whereText(w)); err != nil {
				return 0, err
			}
			return l.engine.RevokeWhere(ctx, w, fmt.Sprintf("revoked by an administrator (user %d)", by.UID))
		},
		SSHCA:      l.sshCA,
		BeginDrill: l.drills.begin,
		EndDrill:   l.drills.end,
		Drill:      l.engine.Drill,
	}
}

const (
	drillsFile    = "drills"
	drillsVersion = 1
)

// drills has those that go on in the log and the state directory: should the daemon end, the
// next start records that they are over.
type drills struct {
	engine *lease.Manager
	state  *state.Dir
	log    *records
	slog   *slog.Logger
	going  map[string]drill // by credential; changed in the engine's steps alone
}

// A drill is one that goes on, and who began it.
type drill struct {
	lease.Drill
	By admin.Asker
}

func (d drill) of() string {
	if d.Identity.IsZero() {
		return "credential " + d.Credential
	}
	return "credential " + d.Credential + " from " + d.Identity.String()
}

// begin has a credential withheld. That is recorded, with until when, before it is, and
// its end before that.
func (s *drills) begin(ctx context.Context, by admin.Asker, r view.DrillRequest) error {
	return s.engine.BeginDrill(ctx, r.Credential, r.Identity, r.For, r.Anyway, lease.DrillSteps{
		Begin: func(began lease.Drill) error {
			d := drill{began, by}
			what := fmt.Sprintf("withhold %s for a drill of %v, until %s", d.of(), r.For, d.Until.UTC().Format(time.RFC3339))
			if err := s.log.asked(ctx, by, what); err != nil {
				return err
			}
			s.going[d.Credential] = d
			if err := s.save(); err != nil {
				delete(s.going, d.Credential)
				return err
			}
			return nil
		},
		End: func(d lease.Drill) {
			s.recordOver(s.going[d.Credential], "the drill is over")
			delete(s.going, d.Credential)
			if err := s.save(); err != nil {
				s.slog.Error("saving that a drill is over", "credential", d.Credential, "err", err)
			}
		},
	})
}

// end gives a credential back before the time.
func (s *drills) end(ctx context.Context, by admin.Asker, name string) error {
	if err := s.log.asked(ctx, by, "end the drill of credential "+name); err != nil {
		return err
	}
	return s.engine.EndDrill(name)
}

// recordOver records that a credential is about to be granted again. Should that fail, it is
// all the same: an outage on purpose ends.
func (s *drills) recordOver(d drill, why string) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := s.log.asked(ctx, d.By, why+": "+d.of()+" is granted again"); err != nil {
		s.slog.Error("recording that a drill is over", "credential", d.Credential, "err", err)
	}
}

func (s *drills) save() error {
	if len(s.going) == 0 {
		return s.state.Remove(drillsFile)
	}
	b, err := json.Marshal(s.going)
	if err != nil {
		return err
	}
	return s.state.Save(drillsFile, drillsVersion, b)
}

// load records the end of the drills during which the daemon ended.
func (s *drills) load() error {
	b, _, err := s.state.Load(drillsFile, drillsVersion)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var was map[string]drill
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	if err != nil { // they are over, whoever began them
		s.slog.Error("reading which drills went on", "err", err)
	}
	for _, d := range was {
		s.recordOver(d, "the drill is over, since vouchd started anew")
		s.engine.RememberDrill(d.Drill)
	}
	return s.state.Remove(drillsFile)
}

// sshCA returns the public key of an SSH CA, if a definition names it: no key is made
// for a name that nothing uses.
func (l *leases) sshCA(ctx context.Context, by admin.Asker, name string) (view.SSHCA, error) {
	var known []string
	for _, def := range l.engine.Definitions().All() {
		if ca := def.Traits.SSHCA; ca != "" {
			known = append(known, ca)
		}
	}
	if !slices.Contains(known, name) {
		slices.Sort(known)
		return view.SSHCA{}, fmt.Errorf("no credential in force uses the SSH CA %.40q; those in use: %s",
			name, cmp.Or(strings.Join(slices.Compact(known), ", "), "none"))
	}
	if err := l.log.asked(ctx, by, "public key of SSH CA "+name); err != nil {
		return view.SSHCA{}, err
	}
	key, err := sshca.PublicKey(ctx, l.machine.node, name)
	return view.SSHCA{Name: name, PublicKey: strings.TrimSpace(key)}, err
}

func whereText(w credential.Where) string {
	if w.All {
		return "all leases"
	}
	var of []string
	if !w.Identity.IsZero() {
		of = append(of, "of identity "+w.Identity.String())
	}
	if w.Credential != "" {
		of = append(of, "of credential "+w.Credential)
	}
	return "leases " + strings.Join(of, " ")
}

// report says what is in force and what is wrong with it, given the entries that
// grant it.
func (l *leases) report(st *view.Status, entries []identity.Entry, problem problemf) {
	held := l.engine.Leases()
	st.Credentials = view.CredentialsStatus{
		Dir: l.dir, Count: len(l.engine.Definitions().All()), Leases: len(held),
	}
	if err := l.definitions.State().Problem; err != nil {
		st.Credentials.Error = err.Error()
		notInForce("credentials", err, problem)
	}
	for _, lease := range held {
		if lease.State == credential.Stuck {
			st.Credentials.Stuck++
		}
	}
	if n := st.Credentials.Stuck; n > 0 {
		problem("%s could not be ended; retrying, and vouch lease list says why", count(n, "lease", "leases"))
	}
	for _, d := range l.engine.Drills() {
		problem("credential %s is withheld until %s for a drill; vouch drill end --credential %s gives it back now", d.Credential, d.Until.UTC().Format(time.RFC3339), d.Credential)
	}
	for _, name := range l.undefined(entries) {
		problem("an entry grants credential %s, which is not defined; define it in %s or remove it from the entry", name, l.dir)
	}
}

// undefined returns what entries grant and nothing defines, some of it at most.
func (l *leases) undefined(entries []identity.Entry) (names []string) {
	const most = 5
	defs := l.engine.Definitions()
	for _, name := range grantedNames(entries) {
		if _, ok := defs.Get(name); !ok && len(names) < most {
			names = append(names, name)
		}
	}
	return names
}

// grantedNames returns every credential that entries grant, once.
func grantedNames(entries []identity.Entry) (names []string) {
	for _, e := range entries {
		names = append(names, e.Credentials...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
