package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi"
)

const (
	disabledFile    = "disabled-identities"
	disabledVersion = 1
	maxDisabled     = 10_000
)

// entryAdmin is what administrators may do about identities.
func (d *daemon) entryAdmin() *workloadapi.EntryAdmin {
	return &workloadapi.EntryAdmin{Disable: d.disable, Enable: d.enable}
}

// loadDisabled takes up which identities are cut off, before anything is issued,
// and goes on with the end of their leases.
func (d *daemon) loadDisabled() error {
	b, _, err := d.state.Load(disabledFile, disabledVersion)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("loading disabled identities: %w", err)
	}
	var list []workloadapi.Disabled
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("loading disabled identities: %s: %w", d.state.Path(disabledFile), err)
	}
	d.server.SetDisabled(list)
	for _, l := range d.credentials.Leases() {
		if isIn(list, l.Identity) {
			d.credentials.Abandon(l.ID, "the identity is disabled")
		}
	}
	return nil
}

func isIn(list []workloadapi.Disabled, id spiffeid.ID) bool {
	return slices.ContainsFunc(list, func(other workloadapi.Disabled) bool { return other.SPIFFEID == id.String() })
}

// disable cuts an identity off: that is recorded, then durable, then in force.
// Its leases end whether it was cut off before or not.
func (d *daemon) disable(ctx context.Context, by workloadapi.Asker, id spiffeid.ID, reason string) (workloadapi.DisabledView, error) {
	view, err := d.cutOff(ctx, by, id, reason)
	if err != nil {
		return view, err
	}
	n, err := d.credentials.RevokeWhere(ctx, credential.Where{Identity: id}, fmt.Sprintf("the identity is disabled by an administrator (user %d)", by.UID))
	view.Leases = n
	if err != nil {
		view.Unfinished = err.Error()
	}
	return view, nil
}

// cutOff adds an identity to those that are disabled.
func (d *daemon) cutOff(ctx context.Context, by workloadapi.Asker, id spiffeid.ID, reason string) (workloadapi.DisabledView, error) {
	d.disabling.Lock()
	defer d.disabling.Unlock()
	list := d.server.Disabled()
	view := workloadapi.DisabledView{SPIFFEID: id.String(), Disabled: true, Changed: !isIn(list, id)}
	if view.Changed {
		if !slices.ContainsFunc(d.server.Entries(), func(e identity.Entry) bool { return e.ID == id }) {
			return view, errors.New("no entry in force has this identity; vouch entry list shows them")
		}
		if len(list) >= maxDisabled {
			return view, fmt.Errorf("%d identities are disabled already; remove their entries", len(list))
		}
		list = append(list, workloadapi.Disabled{SPIFFEID: id.String(), Since: time.Now().UTC().Truncate(time.Second), By: by.UID, Reason: reason})
	}
	return view, d.setDisabled(ctx, by, id, "disable the identity", reason, list)
}

// enable takes an identity up again.
func (d *daemon) enable(ctx context.Context, by workloadapi.Asker, id spiffeid.ID) (workloadapi.DisabledView, error) {
	d.disabling.Lock()
	defer d.disabling.Unlock()
	list := d.server.Disabled()
	view := workloadapi.DisabledView{SPIFFEID: id.String(), Changed: isIn(list, id)}
	if !view.Changed {
		return view, nil
	}
	list = slices.DeleteFunc(list, func(other workloadapi.Disabled) bool { return other.SPIFFEID == id.String() })
	return view, d.setDisabled(ctx, by, id, "enable the identity", "", list)
}

// setDisabled records who wants it, makes the list durable and puts it in force.
func (d *daemon) setDisabled(ctx context.Context, by workloadapi.Asker, id spiffeid.ID, what, reason string, list []workloadapi.Disabled) error {
	if reason != "" {
		what += ": " + reason
	}
	err := d.log.Append(ctx, audit.Record{
		Event: audit.EventAdmin, Outcome: audit.Success, Reason: what, SPIFFEID: id.String(),
		Workload: &audit.Workload{PID: by.PID, UID: by.UID, GID: by.GID},
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
	d.server.SetDisabled(list)
	return nil
}
