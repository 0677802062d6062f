package daemon

import (
	"context"
	"crypto/x509"
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
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/vaultca"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/credentialapi"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// identities are who may be issued what: the attester of processes, the authority,
// the entries in force and the identities that are cut off.
type identities struct {
	config    *config.Config
	log       *records
	leases    *leases
	slog      *slog.Logger
	attester  *process.Attester
	watcher   *process.Watcher
	authority *identity.Authority
	gate      *gate.Gate
	leasing   *credentialapi.API
	vault     *vaultca.Keeper // nil unless it certifies this host
	disabled  *disabled
	entries   *reload.Value[*identity.Entries] // nil until some are loaded
}

// openIdentities makes the authority and the gate. Entries are loaded afterwards, so
// until then no process has an identity.
func openIdentities(ctx context.Context, c *config.Config, m *machine, log *records, l *leases, e *enrolment, logger *slog.Logger) (*identities, error) {
	i := &identities{config: c, log: log, leases: l, slog: logger}
	if err := i.open(ctx, m, e); err != nil {
		return nil, errors.Join(err, i.close())
	}
	return i, nil
}

func (i *identities) open(ctx context.Context, m *machine, e *enrolment) (err error) {
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
	if i.authority, err = i.openAuthority(ctx, m, e); err != nil {
		return err
	}
	i.gate = gate.New(gate.Options{Attester: i.attester, Recorder: l.recorder, Logger: i.slog, Contact: i.config.Contact})
	i.leasing = credentialapi.New(credentialapi.Options{
		Gate: i.gate, Attester: i.attester, Authority: i.authority, Leases: l.engine, Pins: l.pins,
		Sockets: filepath.Dir(i.config.ProxySocket),
	})
	i.disabled = &disabled{gate: i.gate, state: m.state, log: i.log, leases: l.engine}
	if err := i.disabled.load(); err != nil {
		return err
	}
	i.entries = reload.New(i.source())
	return nil
}

func (i *identities) openAuthority(ctx context.Context, m *machine, e *enrolment) (*identity.Authority, error) {
	a := i.config.Authority
	o := identity.Options{
		TrustDomain:   i.config.TrustDomain,
		NodeKey:       m.node.Signer(),
		Store:         m.state,
		Sealer:        m.node,
		IssuingCATTL:  a.IssuingCATTL,
		Overlap:       a.RotationOverlap,
		JWTKeyTTL:     a.JWTKeyTTL,
		JWTIssuer:     a.JWTIssuer,
		JWTAlgorithms: a.JWTAlgorithms,
		Announce:      i.log.announce,
		Logger:        i.slog,
	}
	switch a.Mode {
	case config.ModeEnrolled:
		o.Upstream, o.HowToEnrol = e.load(), "enrol it with vouch node request"
	case config.ModeVault:
		e.load() // to log in with
		var err error
		if i.vault, err = newVault(i.config, m, i.log, e, i.nodeJWT, i.slog); err != nil {
			return nil, err
		}
		o.Upstream, o.HowToEnrol = i.vault.Load(), "vouch status says why "+a.Vault.Address+" does not certify it"
		i.vault.Apply = func(ctx context.Context, u identity.Upstream) error { return i.authority.SetUpstream(ctx, u) }
	}
	if a.JWTKey == config.JWTKeyTPM {
		key, err := m.node.Key(ctx, "jwt")
		if err != nil {
			return nil, err
		}
		o.JWTKey = key
	}
	return identity.NewAuthority(ctx, o)
}

func (i *identities) nodeJWT(ctx context.Context, audience string) (secret.Bytes, error) {
	return i.authority.NodeJWT(ctx, audience)
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
			before := i.gate.Entries()
			i.gate.SetEntries(es)
			i.leases.endUngranted(es.All(), before, lost(i.entries.State().Problem))
			i.slog.Info("entries in force", "entries", es.Len())
			for _, why := range es.LeftOut() {
				i.slog.Error("an entry is not in force", "err", why)
			}
		},
		Tell: func(problem error) {
			i.gate.SetHeldBack(firstOf(problem))
			if problem == nil {
				i.leases.endUngranted(i.gate.Entries(), nil, false)
			}
		},
		Logger: i.slog,
	}
}

// selfCheck attests this process and issues what a workload would get, and
// throws it away.
func (i *identities) selfCheck(ctx context.Context) error {
	if _, err := i.attester.AttestPID(ctx, os.Getpid()); err != nil {
		return err
	}
	err := i.authority.SelfCheck(ctx)
	if errors.Is(err, identity.ErrNotEnrolled) {
		return nil // nothing is issued until it is, and status says so
	}
	return err
}

// report says which entries are in force. Their number is the gate's to tell.
func (i *identities) report(st *view.Status, problem problemf) {
	a := i.authority.Status()
	st.Authority = view.AuthorityStatus{
		RootNotAfter:      a.RootNotAfter,
		IssuingCAKeyID:    a.IssuingCAKeyID,
		IssuingCANotAfter: a.IssuingCANotAfter,
		JWTKeyID:          a.JWTKeyID,
		JWTKeyUntil:       a.JWTKeyUntil,
		BundleSequence:    a.BundleSequence,
	}
	if roots, err := x509.ParseCertificates(i.authority.Bundle().X509); err == nil { // always: they were made here
		st.Authority.RootSHA256 = fingerprints(roots)
	}
	i.reportVault(st, problem)
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
	if n := unanchored(i.gate.Entries()); n > 0 {
		st.Reminders = append(st.Reminders, fmt.Sprintf("%s with allow_unanchored, which is for labs: any user of this machine can have such an identity; see vouch entry list", count(n, "entry", "entries")))
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
