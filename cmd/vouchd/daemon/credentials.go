package daemon

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/brokers"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/credential/sshca"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/credentialapi"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// openCredentials loads the definitions and goes on with the leases of the last
// run: what nobody holds any more is ended. Definitions that are not in order do
// not keep the daemon from starting: no credential is granted until they are
// mended, and the leases there are wait for that too.
func (d *daemon) openCredentials(ctx context.Context) (err error) {
	if d.secrets = sealed.Open(ctx, d.state, d.node); d.secrets.Err() != nil {
		d.slog.Error("no sealed secret can be opened", "err", d.secrets.Err())
	}
	defs, refused := d.loadCredentials()
	if refused != nil {
		defs = new(credential.Definitions)
	}
	if err := d.recordCredentials(ctx, defs, refused); err != nil {
		return err
	}
	if err := d.openPins(); err != nil {
		return err
	}
	d.recorder = gate.NewRecorder(d.log)
	d.credentials, err = credential.Open(ctx, credential.Config{
		Journal:     d.state.Path("leases"),
		Sealer:      d.node,
		Recorder:    credentialapi.NewRecorder(d.recorder),
		Processes:   d.pins,
		Definitions: defs,
		Log:         d.slog,
	})
	if err != nil {
		return fmt.Errorf("opening the lease journal: %w", err)
	}
	d.credentialsRefused = refused
	return nil
}

// openPins makes what tells when the processes and units that hold leases
// end.
func (d *daemon) openPins() (err error) {
	d.units = new(systemd.Units)
	if systemd.IsManager() {
		if d.invocations, err = systemd.NewInvocations(d.units); err != nil {
			return err
		}
	}
	d.pins, err = credentialapi.NewPins(d.invocations)
	return err
}

// closeCredentials leaves the leases as they are, for the next start.
func (d *daemon) closeCredentials() {
	if d.credentials != nil {
		d.credentials.Close()
	}
	if d.pins != nil {
		d.pins.Close()
	}
	if d.secrets != nil {
		if err := d.secrets.Close(); err != nil {
			d.slog.Error("writing down who used which secret; the log has it", "err", err)
		}
	}
	if d.invocations != nil {
		d.invocations.Close()
	}
}

func (d *daemon) loadCredentials() (*credential.Definitions, error) {
	return credential.LoadDefinitions(d.config.CredentialsDir, brokers.All(brokers.Deps{
		Keys: d.node, Secrets: credential.NewSecrets(d.state, d.node), Sealed: d.secrets,
	}), false)
}

// reloadCredentials puts the definitions on disk in force if they are in order
// and differ from those in force. Otherwise the last good ones stay, and status
// says why.
func (d *daemon) reloadCredentials(ctx context.Context) {
	defs, err := d.loadCredentials()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && defs.Digest() == d.credentials.Definitions().Digest() {
		d.credentialsRefused = nil
		return
	}
	if err != nil && d.credentialsRefused != nil && err.Error() == d.credentialsRefused.Error() {
		return
	}
	if logErr := d.recordCredentials(ctx, defs, err); logErr != nil {
		d.slog.Error("recording a reload; the last good credentials stay in force", "err", logErr)
		d.credentialsRefused = logErr
		return
	}
	if d.credentialsRefused = err; err == nil {
		d.credentials.SetDefinitions(defs)
	}
}

// recordCredentials records which definitions come into force, or why they do
// not.
func (d *daemon) recordCredentials(ctx context.Context, defs *credential.Definitions, refused error) error {
	r := audit.Record{Event: audit.EventReload, Outcome: audit.Success, Reason: fmt.Sprintf("%d credentials", len(defs.All()))}
	if refused != nil {
		d.slog.Error("credentials are not in order; the last good ones stay in force", "err", refused)
		r.Outcome, r.Reason = audit.Failed, refused.Error()
	} else {
		digest := defs.Digest()
		r.Config = &audit.Config{SHA256: hex.EncodeToString(digest[:])}
	}
	return d.log.Append(ctx, r)
}

// serveUnits answers systemd, which loads credentials for units.
func (d *daemon) serveUnits(ctx context.Context) error {
	if !systemd.IsManager() {
		return nil
	}
	l, err := gate.ListenUnits(d.load, d.config.SystemdSocket)
	if err != nil {
		return err
	}
	units := &credentialapi.Units{API: d.leasing, Manager: d.units, Logger: d.slog}
	return units.Serve(ctx, l)
}

// endUngranted ends the leases of identities that no entry grants the
// credential any more.
func (d *daemon) endUngranted(es *identity.Entries) {
	type grant struct {
		id   spiffeid.ID
		name string
	}
	granted := make(map[grant]bool)
	for _, e := range es.All() {
		for _, name := range e.Credentials {
			granted[grant{e.ID, name}] = true
		}
	}
	for _, l := range d.credentials.Leases() {
		if !granted[grant{l.Identity, l.Credential}] {
			d.credentials.Abandon(l.ID, "no entry grants it to the identity any more")
		}
	}
}

// leaseAdmin is what administrators may do about leases.
func (d *daemon) leaseAdmin() *admin.Leases {
	return &admin.Leases{
		List: d.credentials.Leases,
		Hash: d.credentials.LeaseHash,
		Revoke: func(ctx context.Context, by admin.Asker, w credential.Where) (int, error) {
			if err := d.asked(ctx, by, "revoke "+whereText(w)); err != nil {
				return 0, err
			}
			return d.credentials.RevokeWhere(ctx, w, fmt.Sprintf("revoked by an administrator (user %d)", by.UID))
		},
		SSHCA: d.sshCA,
	}
}

// sshCA tells the public key of an authority, if a definition names it: no key
// is made for a name that nothing uses.
func (d *daemon) sshCA(ctx context.Context, by admin.Asker, name string) (view.SSHCA, error) {
	var known []string
	for _, def := range d.credentials.Definitions().All() {
		if def.Broker == sshca.Kind {
			known = append(known, sshca.Name(def.Traits.Upstream))
		}
	}
	if !slices.Contains(known, name) {
		slices.Sort(known)
		return view.SSHCA{}, fmt.Errorf("no credential in force has the ssh authority %.40q; those that have one name: %s",
			name, cmp.Or(strings.Join(slices.Compact(known), ", "), "none"))
	}
	if err := d.asked(ctx, by, "public key of ssh authority "+name); err != nil {
		return view.SSHCA{}, err
	}
	key, err := sshca.PublicKey(ctx, d.node, name)
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

// reportCredentials says what is in force and what is wrong with it. The
// daemon's mu is held.
func (d *daemon) reportCredentials(st *view.Status, problem func(string, ...any)) {
	leases := d.credentials.Leases()
	st.Credentials = view.CredentialsStatus{
		Dir: d.config.CredentialsDir, Count: len(d.credentials.Definitions().All()), Leases: len(leases),
	}
	if err := d.credentialsRefused; err != nil {
		st.Credentials.Error = err.Error()
		problem("the credentials on disk are not in force, the last good ones are: %v", err)
	}
	for _, l := range leases {
		if l.State == credential.Stuck {
			st.Credentials.Stuck++
		}
	}
	if n := st.Credentials.Stuck; n > 0 {
		problem("%d leases could not be ended, which is tried again; vouch lease list says why", n)
	}
	for _, name := range d.undefined() {
		problem("an entry grants credential %s, which is not defined; define it in %s or remove it from the entry", name, d.config.CredentialsDir)
	}
}

// undefined returns what entries grant and nothing defines, some of it at most.
// The daemon's mu is held.
func (d *daemon) undefined() (names []string) {
	const most = 5
	defs := d.credentials.Definitions()
	for _, name := range d.granting {
		if _, ok := defs.Get(name); !ok && len(names) < most {
			names = append(names, name)
		}
	}
	return names
}

// grantedNames returns every credential that entries grant, once.
func grantedNames(es *identity.Entries) (names []string) {
	for _, e := range es.All() {
		names = append(names, e.Credentials...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
