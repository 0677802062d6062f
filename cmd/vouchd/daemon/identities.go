package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/reload"
	"github.com/vouchd/vouchd/cmd/vouchd/spireagent"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/credentialapi"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// identities are who may be issued what: the attester of processes, the authority,
// the entries in force and the identities that are cut off.
type identities struct {
	config   *config.Config
	log      *records
	leases   *leases
	slog     *slog.Logger
	attester *process.Attester
	watcher  *process.Watcher
	issuing  *issuing
	gate     *gate.Gate
	leasing  *credentialapi.API
	disabled *disabled
	entries  *reload.Value[*identity.Entries] // of files; not used where a SPIRE server has them
}

// openIdentities makes the authority and the gate. Entries are loaded afterwards, so
// until then no process has an identity.
func openIdentities(ctx context.Context, c *config.Config, m *machine, log *records, l *leases, e *enrolment, f *federation, logger *slog.Logger) (*identities, error) {
	i := &identities{config: c, log: log, leases: l, slog: logger}
	if err := i.open(ctx, m, e, f); err != nil {
		return nil, errors.Join(err, i.close())
	}
	return i, nil
}

func (i *identities) open(ctx context.Context, m *machine, e *enrolment, f *federation) (err error) {
	l := i.leases
	o := process.Options{
		Wants:  func(have attest.Selectors, upTo attest.Stage) attest.KindSet { return i.gate.Wants(have, upTo) },
		Person: l.recorder.Person,
	}
	if systemd.IsManager() {
		o.Manager = l.units
	} else {
		i.slog.Info("systemd is not PID 1, so systemd and script selectors and vouch run are unavailable")
	}
	i.attester = process.NewAttester(o)
	if i.watcher, err = process.NewWatcher(); err != nil {
		return err
	}
	i.gate = gate.New(gate.Options{Attester: i.attester, Recorder: l.recorder, Logger: i.slog, Contact: i.config.Contact})
	i.entries = reload.New(i.source())
	if i.issuing, err = i.openIssuing(ctx, m, e, f); err != nil {
		return err
	}
	i.leasing = credentialapi.New(credentialapi.Options{
		Gate: i.gate, Attester: i.attester, Authority: i.issuing, Leases: l.engine, Pins: l.pins,
		Sockets: filepath.Dir(i.config.ProxySocket),
	})
	i.disabled = &disabled{gate: i.gate, state: m.state, log: i.log, leases: l.engine}
	return i.disabled.load()
}

func (i *identities) openIssuing(ctx context.Context, m *machine, e *enrolment, f *federation) (*issuing, error) {
	if i.config.Authority.Mode != config.ModeSPIRE {
		return openAuthority(ctx, i.config, m, i.log, e, i.slog)
	}
	return openAgent(ctx, m, spireagent.Options{Config: i.config, Log: i.log, Announce: i.log.announce, Local: f.keeper, Apply: i.putInForce, Tell: i.tell, Logger: i.slog})
}

// reload looks at who is entitled to what.
func (i *identities) reload(ctx context.Context) (changed bool, err error) {
	if i.issuing.agent != nil {
		return i.issuing.agent.Grants.Reload(ctx)
	}
	return i.entries.Reload(ctx)
}

func (i *identities) close() error {
	if i.watcher == nil {
		return nil
	}
	return i.watcher.Close()
}

// source is where entries come from. Those that come into force end the leases
// that they no longer grant.
func (i *identities) source() reload.Source[*identity.Entries] {
	return reload.Source[*identity.Entries]{
		Name: "entries", Place: i.config.EntriesDir,
		Parse: func(files []config.File) (*identity.Entries, error) {
			limits := identity.Limits{MaxX509TTL: i.config.Authority.MaxX509TTL(), JWTAlgorithms: i.config.Authority.JWTAlgorithms, LeaveOutUnanchored: true}
			return identity.ParseEntries(files, i.config.TrustDomain, limits)
		},
		Digest: (*identity.Entries).Digest,
		Record: func(ctx context.Context, next *identity.Entries, problem error) error {
			if problem != nil {
				return i.log.reloaded(ctx, audit.Record{}, problem)
			}
			digest := next.Digest()
			return i.log.reloaded(ctx, audit.Record{
				Config: &audit.Config{SHA256: hex.EncodeToString(digest[:]), Entries: next.Len()},
			}, nil)
		},
		Apply: func(es *identity.Entries) {
			i.putInForce(es, i.entries.State().Problem)
			for _, why := range es.LeftOut() {
				i.slog.Error("an entry is not in force", "err", why)
			}
		},
		Tell:   i.tell,
		Logger: i.slog,
	}
}

// putInForce has entries be what processes are matched with.
func (i *identities) putInForce(es *identity.Entries, problem error) {
	before := i.gate.Entries()
	i.gate.SetEntries(es)
	i.leases.endUngranted(es.All(), before, lost(problem))
	i.slog.Info("entries in force", "entries", es.Len())
}

// tell says what of the files is not in force.
func (i *identities) tell(problem error) {
	i.gate.SetHeldBack(firstOf(problem))
	if problem == nil {
		i.leases.endUngranted(i.gate.Entries(), nil, false)
	}
}

// selfCheck attests this process and issues what a workload would get, and
// throws it away.
func (i *identities) selfCheck(ctx context.Context) error {
	if _, err := i.attester.AttestPID(ctx, os.Getpid()); err != nil {
		return err
	}
	return i.issuing.selfCheck(ctx)
}

// report says which entries are in force. Their number is the gate's to tell.
func (i *identities) report(st *view.Status, problem problemf) {
	i.issuing.report(st, problem)
	if i.issuing.agent == nil {
		i.reportEntries(st, problem)
	}
	if n := unanchored(i.gate.Entries()); n > 0 {
		st.Reminders = append(st.Reminders, fmt.Sprintf("%s with allow_unanchored, which is for labs: any user of this machine can have such an identity; see vouch entry list", count(n, "entry", "entries")))
	}
}

func (i *identities) reportEntries(st *view.Status, problem problemf) {
	s := i.entries.State()
	st.Entries = view.EntriesStatus{Dir: i.config.EntriesDir, Loaded: s.Loaded}
	if s.Problem != nil {
		st.Entries.Error = s.Problem.Error()
		notInForce("entries", s.Problem, problem)
	}
	if s.Value != nil {
		for _, why := range s.Value.LeftOut() {
			problem("an entry is not in force: %v", why)
		}
	}
}

func unanchored(entries []identity.Entry) (n int) {
	for _, e := range entries {
		if e.Unanchored {
			n++
		}
	}
	return n
}
