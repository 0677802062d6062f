package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/lease"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/state"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

const (
	disabledFile    = "disabled-identities"
	disabledVersion = 1
	maxDisabled     = 10_000
)

// disabled is the list of identities that administrators have cut off. The gate
// has the list in force, and the state directory a copy.
type disabled struct {
	gate   *gate.Gate
	state  *state.Dir
	log    *records
	leases *lease.Manager

	changing sync.Mutex // held from reading the list to putting another in force
}

// admin is what administrators may do about identities.
func (d *disabled) admin() *admin.Entries {
	return &admin.Entries{Disable: d.disable, Enable: d.enable}
}

// load puts the list in force before anything is issued, and resumes ending the
// leases of those on it.
func (d *disabled) load() error {
	b, _, err := d.state.Load(disabledFile, disabledVersion)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("loading disabled identities: %w", err)
	}
	var list []gate.Disabled
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("loading disabled identities: %s: %w", d.state.Path(disabledFile), err)
	}
	d.gate.SetDisabled(list)
	for _, l := range d.leases.Leases() {
		if isIn(list, l.Identity) {
			d.leases.Abandon(l.ID, "the identity is disabled")
		}
	}
	return nil
}

func isIn(list []gate.Disabled, id spiffeid.ID) bool {
	return slices.ContainsFunc(list, func(other gate.Disabled) bool { return other.SPIFFEID == id.String() })
}

// disable cuts an identity off: that is recorded, then durable, then in force.
// Its leases end whether it was cut off before or not.
func (d *disabled) disable(ctx context.Context, by admin.Asker, id spiffeid.ID, reason string) (view.Disabling, error) {
	view, err := d.cutOff(ctx, by, id, reason)
	if err != nil {
		return view, err
	}
	n, err := d.leases.RevokeWhere(ctx, credential.Where{Identity: id}, fmt.Sprintf("the identity is disabled by an administrator (user %d)", by.UID))
	view.Leases = n
	if err != nil {
		view.Unfinished = err.Error()
	}
	return view, nil
}

// cutOff adds an identity to those that are disabled.
func (d *disabled) cutOff(ctx context.Context, by admin.Asker, id spiffeid.ID, reason string) (view.Disabling, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	list := d.gate.Disabled()
	view := view.Disabling{SPIFFEID: id.String(), Disabled: true, Changed: !isIn(list, id)}
	if view.Changed {
		if !slices.ContainsFunc(d.gate.Entries(), func(e identity.Entry) bool { return e.ID == id }) {
			return view, errors.New("no entry in force has this identity; vouch entry list shows them")
		}
		if len(list) >= maxDisabled {
			return view, fmt.Errorf("%d identities are already disabled; remove their entries and enable some again", len(list))
		}
		list = append(list, gate.Disabled{SPIFFEID: id.String(), Since: time.Now().UTC().Truncate(time.Second), By: by.UID, Reason: reason})
	}
	return view, d.set(ctx, by, id, "disable the identity", reason, list)
}

// enable re-enables an identity.
func (d *disabled) enable(ctx context.Context, by admin.Asker, id spiffeid.ID) (view.Disabling, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	list := d.gate.Disabled()
	view := view.Disabling{SPIFFEID: id.String(), Changed: isIn(list, id)}
	if !view.Changed {
		return view, nil
	}
	list = slices.DeleteFunc(list, func(other gate.Disabled) bool { return other.SPIFFEID == id.String() })
	return view, d.set(ctx, by, id, "enable the identity", "", list)
}

// set records who wants it, makes the list durable and puts it in force.
func (d *disabled) set(ctx context.Context, by admin.Asker, id spiffeid.ID, what, reason string, list []gate.Disabled) error {
	if reason != "" {
		what += ": " + reason
	}
	err := d.log.Append(ctx, audit.Record{
		Event: audit.EventAdmin, Outcome: audit.Success, Reason: what, SPIFFEID: id.String(),
		Workload: asker(by),
	})
	if err != nil {
		return err
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := d.state.Save(disabledFile, disabledVersion, b); err != nil {
		return err
	}
	d.gate.SetDisabled(list)
	return nil
}
