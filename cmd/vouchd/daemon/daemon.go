// Package daemon is vouchd as a component: it opens the machine, the log, the
// leases and the identities in that order, serves them until its context ends,
// and says how they are.
//
// It relies on every other folder and is where they meet; nothing imports it
// but cmd/vouchd and tests. What belongs to a process stays out: flags, signals,
// exit codes, the sockets that systemd passes, and core dumps.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vouchd/vouchd/cmd/vouchd/reload"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/credentialapi"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// stopTimeout bounds what happens after the signal to stop: answering calls in
// progress, the last record and its anchor.
const stopTimeout = 10 * time.Second

// Options are what a daemon is run with.
type Options struct {
	Config  *config.Config
	Logger  *slog.Logger
	Sockets map[string]*net.UnixListener // that systemd has opened: "agent", "admin" and "systemd"; the others are made
	// Measured is systemd's log of what it measured, which root alone may open; nil: it is opened.
	Measured *os.File
	Reload   <-chan os.Signal // asks for a look at the files that can be reloaded; may be nil
	Proxy    StartProxy       // where systemd does not start it; may be nil
}

// A daemon is everything that runs, in the order it is started. Its fields do
// not change once it serves.
type daemon struct {
	config  *config.Config
	started time.Time
	slog    *slog.Logger

	machine    *machine
	log        *records
	leases     *leases
	enrolment  *enrolment
	identities *identities
	federation *federation
	programs   *reload.Value[definedPrograms]
	appraiser  *appraiser
	proxy      *proxying
}

// Run serves until the context ends.
func Run(ctx context.Context, o Options) (err error) {
	d := &daemon{config: o.Config, started: time.Now(), slog: o.Logger}
	agent, admins, err := gate.Listen(o.Sockets, d.config.AgentSocket, d.config.AdminSocket)
	if err != nil {
		return err
	}
	defer agent.Close()
	defer admins.Close()
	if d.machine, err = openMachine(ctx, d.config, o.Measured); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.machine.close()) }()
	for _, object := range d.machine.node.Ignored() {
		d.slog.Warn("ignored an object in the TPM", "object", object)
	}
	if err := d.openLog(ctx, agent, admins); err != nil || d.log == nil {
		return err
	}
	defer d.log.lastWords(ctx)
	defer func() { err = errors.Join(err, d.log.stop(ctx, err)) }()
	if err := d.log.openWitnesses(); err != nil {
		return err
	}
	defer d.log.closeExports()
	if err := d.log.openExports(ctx); err != nil {
		return err
	}
	if d.leases, err = openLeases(ctx, d.config.CredentialsDir, d.machine, d.log, d.slog); err != nil {
		return err
	}
	defer d.leases.close()
	if err := d.openIdentities(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.identities.close()) }()
	if err := d.identities.selfCheck(ctx); err != nil {
		return fmt.Errorf("self-check: %w", err)
	}
	d.proxy = newProxying(d.config.ProxySocket, o.Proxy, d.identities, d.leases, d.slog)
	return d.serve(ctx, o, agent, admins)
}

// openIdentities makes what issues, loads what is in force, and appraises the
// machine, whatever comes of it. Status says what is wrong: invalid entries, or
// a machine that does not pass, must not keep an administrator from asking.
func (d *daemon) openIdentities(ctx context.Context) (err error) {
	d.enrolment = &enrolment{config: d.config, machine: d.machine, log: d.log, slog: d.slog}
	d.federation = newFederation(d.config.FederationDir, d.config.TrustDomain, d.machine.state, d.log, d.slog)
	d.take(d.federation.open(ctx))
	if d.identities, err = openIdentities(ctx, d.config, d.machine, d.log, d.leases, d.enrolment, d.federation, d.slog); err != nil {
		return err
	}
	d.enrolment.authority = d.identities.issuing.authority
	d.programs = watchedPrograms(d.config.ProgramsDir, d.log, d.slog)
	d.take(d.identities.reload(ctx))
	d.take(d.programs.Reload(ctx))
	d.appraiser = newAppraiser(d.config.Node, d.machine, d.log, d.identities.gate, d.slog)
	d.appraiser.appraise(ctx, "the daemon starts")
	return nil
}

// serve runs until the context ends or a part fails.
func (d *daemon) serve(ctx context.Context, o Options, agent, admins *net.UnixListener) error {
	group, ctx := errgroup.WithContext(ctx)
	i := d.identities
	group.Go(func() error {
		api := workloadapi.New(workloadapi.Options{Gate: i.gate, Watcher: i.watcher, Authority: i.issuing, Foreign: i.issuing.foreign(d.federation), Logger: d.slog})
		health := &workloadapi.Health{Ill: func() error { return errors.Join(i.gate.Refusal(), d.log.Status().Err) }}
		return workloadapi.Serve(ctx, agent, i.gate, api, i.leasing, health)
	})
	group.Go(func() error { return d.admin().Serve(ctx, admins) })
	group.Go(func() error { return i.issuing.run(ctx) })
	group.Go(func() error { return d.watch(ctx, o.Reload) })
	group.Go(func() error { return d.serveUnits(ctx, o.Sockets["systemd"]) })
	group.Go(func() error { return d.serveMetrics(ctx) })
	group.Go(func() error { d.enrolment.keep(ctx); return nil })
	group.Go(func() error { d.federation.keeper.Run(ctx); return nil })
	if v := i.issuing.vault; v != nil {
		group.Go(func() error { v.Run(ctx); return nil })
	}
	group.Go(func() error { d.log.run(ctx); return nil })
	group.Go(func() error { return d.appraiser.run(ctx) })
	group.Go(func() error { return d.proxy.run(ctx) })
	group.Go(func() error { return systemd.Watchdog(ctx, i.selfCheck) })
	d.slog.Info("serving", "socket", d.config.AgentSocket, "trust_domain", d.config.TrustDomain,
		"after", time.Since(d.started).Round(time.Millisecond))
	if err := systemd.Ready(d.summary()); err != nil {
		return err
	}
	err := group.Wait()
	systemd.Stopping()
	return err
}

// admin is what administrators may do.
func (d *daemon) admin() *admin.Server {
	i := d.identities
	return &admin.Server{
		Gate: i.gate, Attester: i.attester, Recorder: d.leases.recorder, Status: d.status, Logger: d.slog,
		Node: d.nodeAdmin(), Entries: i.disabled.admin(), Leases: d.leases.admin(), Secrets: d.leases.secretAdmin(),
		Bundles: &admin.Bundles{
			TrustDomain: d.config.TrustDomain.Name(), JWTIssuer: d.config.Authority.JWTIssuer, Bundle: i.issuing.wholeBundle,
		},
	}
}

// serveUnits answers systemd, which loads credentials for units.
func (d *daemon) serveUnits(ctx context.Context, passed *net.UnixListener) error {
	if !systemd.IsManager() {
		return nil
	}
	l, err := gate.ListenUnits(passed, d.config.SystemdSocket)
	if err != nil {
		return err
	}
	units := &credentialapi.Units{API: d.identities.leasing, Manager: d.leases.units, Logger: d.slog}
	return units.Serve(ctx, l)
}

// watch reloads entries, credentials and programs when they change on disk and
// when it is asked to.
func (d *daemon) watch(ctx context.Context, asked <-chan os.Signal) error {
	changed := make(chan struct{}, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-asked:
				systemd.Reloading()
				d.reload(ctx)
				d.federation.keeper.Ask()
				systemd.Ready(d.summary())
			case <-changed:
				d.reload(ctx)
			}
		}
	}()
	return config.Watch(ctx, []string{d.config.EntriesDir, d.config.CredentialsDir, d.config.FederationDir, d.config.ProgramsDir, d.config.GrantsDir}, func() {
		select {
		case changed <- struct{}{}:
		default: // one is to come anyway
		}
	})
}

// reload looks at credentials and trust domains before entries, which name them.
func (d *daemon) reload(ctx context.Context) {
	d.take(d.leases.definitions.Reload(ctx))
	d.proxy.refresh()
	d.take(d.federation.domains.Reload(ctx))
	d.federation.keeper.Look()
	d.take(d.identities.reload(ctx))
	d.take(d.programs.Reload(ctx))
}

// take says that a reload failed; its value has the problem, for status.
func (d *daemon) take(_ bool, err error) {
	if err != nil {
		d.slog.Error("reloading", "err", err)
	}
}

// summary is one line on what is served.
func (d *daemon) summary() string {
	if d.identities.issuing.agent != nil {
		return fmt.Sprintf("Serving %s of %s, by SPIRE server %s", count(len(d.identities.gate.Entries()), "entry", "entries"), d.config.TrustDomain, d.config.Authority.SPIRE.Server)
	}
	s := d.identities.entries.State()
	if s.Value == nil {
		return "Serving; the entries on disk are not in force"
	}
	if s.Problem != nil {
		return fmt.Sprintf("Serving %s of %s; a file on disk is not in force, see vouch status", count(s.Value.Len(), "entry", "entries"), d.config.TrustDomain)
	}
	return fmt.Sprintf("Serving %s of %s", count(s.Value.Len(), "entry", "entries"), d.config.TrustDomain)
}
