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
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/programs"
	"github.com/vouchd/vouchd/state"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/credentialapi"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// stopTimeout bounds what happens after the signal to stop: answering calls in
// progress, the last record and its anchor.
const stopTimeout = 10 * time.Second

// A daemon is everything that runs, in the order it is started.
type daemon struct {
	config  *config.Config
	started time.Time
	slog    *slog.Logger
	reloads <-chan os.Signal

	state     *state.Dir
	tpm       *node.TPM
	node      *node.Node
	log       *audit.Log
	authority *identity.Authority
	units     *systemd.Units
	attester  *process.Attester
	watcher   *process.Watcher
	recorder  *gate.Recorder
	gate      *gate.Gate
	exports   []*exported
	witnesses []*witnessed
	load      *net.UnixListener // for LoadCredential=, if systemd has passed one

	credentials *credential.Manager
	secrets     *sealed.Store
	pins        *credentialapi.Pins
	leasing     *credentialapi.API
	invocations *systemd.Invocations // nil where systemd is not PID 1

	appraiser *appraiser

	mu      sync.Mutex // guards what follows
	digest  [32]byte   // of the entries in force
	count   int        // of them
	loaded  time.Time  // when they were loaded; zero: none are yet
	refused error      // why what is on disk now is not in force

	programs           map[string]*programs.Program // the last that were in order
	programsRefused    error                        // the same of programs
	credentialsRefused error                        // the same of credentials
	granting           []string                     // credentials that the entries in force grant

	disabling sync.Mutex // held while identities are cut off or taken up again

	enrolment *view.Enrolment // that was installed; nil: none
	enrolErr  error           // why it is of no use
}

// Options are what a daemon is run with.
type Options struct {
	Config  *config.Config
	Logger  *slog.Logger
	Sockets map[string]*net.UnixListener // that systemd has opened: "agent", "admin" and "systemd"; the others are made
	Reload  <-chan os.Signal             // asks for a look at the files that can be reloaded; may be nil
}

// Run serves until the context ends.
func Run(ctx context.Context, o Options) (err error) {
	d := &daemon{
		config: o.Config, started: time.Now(), slog: o.Logger, reloads: o.Reload,
		programs: make(map[string]*programs.Program),
	}
	d.load = o.Sockets["systemd"]
	agent, admins, err := gate.Listen(o.Sockets, d.config.AgentSocket, d.config.AdminSocket)
	if err != nil {
		return err
	}
	defer agent.Close()
	defer admins.Close()
	if err := d.openNode(ctx); err != nil {
		return errors.Join(err, d.close())
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.openLog(ctx); err != nil {
		return err
	}
	defer d.lastWords(ctx)
	defer func() { err = errors.Join(err, d.closeLog(ctx, err)) }()
	if err := d.openWitnesses(); err != nil {
		return err
	}
	if err := d.openExports(ctx); err != nil {
		return err
	}
	defer d.closeExports()
	defer d.closeCredentials()
	if err := d.openCredentials(ctx); err != nil {
		return err
	}
	if err := d.openIdentity(ctx); err != nil {
		return err
	}
	if err := d.selfCheck(ctx); err != nil {
		return fmt.Errorf("self-check: %w", err)
	}
	return d.serve(ctx, agent, admins)
}

// serve runs until the context ends or a part fails.
func (d *daemon) serve(ctx context.Context, agent, admins *net.UnixListener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		api := workloadapi.New(workloadapi.Options{Gate: d.gate, Watcher: d.watcher, Authority: d.authority, Logger: d.slog})
		return workloadapi.Serve(ctx, agent, d.gate, api, d.leasing)
	})
	group.Go(func() error {
		a := &admin.Server{
			Gate: d.gate, Attester: d.attester, Recorder: d.recorder, Status: d.status, Logger: d.slog,
			Node: d.nodeAdmin(), Entries: d.entryAdmin(), Leases: d.leaseAdmin(), Secrets: d.secretAdmin(), Bundles: d.bundleAdmin(),
		}
		return a.Serve(ctx, admins)
	})
	group.Go(func() error { d.authority.Run(ctx); return nil })
	group.Go(func() error { return d.watch(ctx) })
	group.Go(func() error { return d.serveUnits(ctx) })
	group.Go(func() error { return d.serveMetrics(ctx) })
	group.Go(func() error { d.keepEnrolment(ctx); return nil })
	for _, x := range d.exports {
		group.Go(func() error { x.Run(ctx); return nil })
	}
	for _, w := range d.witnesses {
		group.Go(func() error { w.Run(ctx); return nil })
	}
	group.Go(func() error { return d.appraiser.run(ctx) })
	group.Go(func() error { return systemd.Watchdog(ctx, d.selfCheck) })
	d.slog.Info("serving", "socket", d.config.AgentSocket, "trust_domain", d.config.TrustDomain,
		"after", time.Since(d.started).Round(time.Millisecond))
	if err := systemd.Ready(d.summary()); err != nil {
		return err
	}
	err := group.Wait()
	systemd.Stopping()
	return err
}

// openNode takes the state directory and the TPM.
func (d *daemon) openNode(ctx context.Context) (err error) {
	if d.state, err = state.Open(d.config.StateDir); err != nil {
		return err
	}
	if d.tpm, err = node.Open(ctx, d.config.TPM); err != nil {
		return err
	}
	d.node, err = node.Load(ctx, d.tpm, d.state)
	return err
}

func (d *daemon) close() error {
	var errs []error
	if d.watcher != nil {
		errs = append(errs, d.watcher.Close())
	}
	if d.units != nil {
		errs = append(errs, d.units.Close())
	}
	if d.tpm != nil {
		errs = append(errs, d.tpm.Close())
	}
	if d.state != nil {
		errs = append(errs, d.state.Close())
	}
	return errors.Join(errs...)
}

// openIdentity makes the authority and the server, and loads the entries.
// Entries that are not in order do not keep the daemon from starting: nobody is
// issued anything until they are mended.
func (d *daemon) openIdentity(ctx context.Context) error {
	o := process.Options{Wants: func(have attest.Selectors, upTo attest.Stage) attest.KindSet { return d.gate.Wants(have, upTo) }}
	if systemd.IsManager() {
		o.Manager = d.units
	} else {
		d.slog.Info("systemd is not PID 1 here: there are no systemd and script selectors, and no vouch run")
	}
	d.attester = process.NewAttester(o)
	var err error
	if d.watcher, err = process.NewWatcher(); err != nil {
		return err
	}
	if d.authority, err = d.openAuthority(ctx); err != nil {
		return err
	}
	d.gate = gate.New(gate.Options{Attester: d.attester, Recorder: d.recorder, Logger: d.slog})
	d.leasing = credentialapi.New(credentialapi.Options{
		Gate: d.gate, Attester: d.attester, Authority: d.authority, Leases: d.credentials, Pins: d.pins,
	})
	if err := d.loadDisabled(); err != nil {
		return err
	}
	d.reload(ctx)
	d.reloadPrograms(ctx)
	d.appraiser = newAppraiser(d)
	d.appraiser.appraise(ctx, "the daemon starts") // what comes of it, status says
	return nil
}

func (d *daemon) openAuthority(ctx context.Context) (*identity.Authority, error) {
	a := d.config.Authority
	o := identity.Options{
		TrustDomain:  d.config.TrustDomain,
		NodeKey:      d.node.Signer(),
		Store:        d.state,
		Sealer:       d.node,
		IssuingCATTL: a.IssuingCATTL,
		Overlap:      a.RotationOverlap,
		JWTKeyTTL:    a.JWTKeyTTL,
		JWTIssuer:    a.JWTIssuer,
		Announce:     d.announce,
		Logger:       d.slog,
	}
	if a.Mode == config.ModeEnrolled {
		o.Upstream = d.loadEnrolment()
	}
	if a.JWTKey == config.JWTKeyTPM {
		key, err := d.node.Key(ctx, "jwt")
		if err != nil {
			return nil, err
		}
		o.JWTKey = key
	}
	return identity.NewAuthority(ctx, o)
}

// selfCheck attests this process and issues what a workload would get, and
// throws it away.
func (d *daemon) selfCheck(ctx context.Context) error {
	if _, err := d.attester.AttestPID(ctx, os.Getpid()); err != nil {
		return err
	}
	err := d.authority.SelfCheck(ctx)
	if errors.Is(err, identity.ErrNotEnrolled) {
		return nil // nothing is issued, which status says, until that is mended
	}
	return err
}
