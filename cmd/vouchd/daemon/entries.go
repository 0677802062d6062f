package daemon

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/systemd"
)

func (d *daemon) loadEntries() (*identity.Entries, error) {
	limits := identity.Limits{MaxX509TTL: d.config.Authority.MaxX509TTL()}
	return identity.LoadEntries(d.config.EntriesDir, d.config.TrustDomain, limits)
}

// watch reloads entries, credentials and programs when they change on disk, and on SIGHUP.
func (d *daemon) watch(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-d.reloads:
				systemd.Reloading()
				d.reloadCredentials(ctx)
				d.reload(ctx)
				d.reloadPrograms(ctx)
				systemd.Ready(d.summary())
			case <-changed:
				d.reloadCredentials(ctx)
				d.reload(ctx)
				d.reloadPrograms(ctx)
			}
		}
	}()
	return config.Watch(ctx, []string{d.config.EntriesDir, d.config.CredentialsDir, d.config.ProgramsDir}, func() {
		select {
		case changed <- struct{}{}:
		default: // one is to come anyway
		}
	})
}

// reload puts the entries on disk in force if they are in order and differ
// from those in force. Otherwise the last good ones stay, and status says why.
func (d *daemon) reload(ctx context.Context) {
	es, err := d.loadEntries()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && !d.loaded.IsZero() && es.Digest() == d.digest {
		d.refused = nil
		return
	}
	if err != nil && d.refused != nil && err.Error() == d.refused.Error() {
		return
	}
	r := audit.Record{Event: audit.EventReload, Outcome: audit.Success}
	if err != nil {
		d.slog.Error("entries are not in order; the last good ones stay in force", "err", err)
		r.Outcome, r.Reason = audit.Failed, err.Error()
	} else {
		digest := es.Digest()
		r.Config = &audit.Config{SHA256: hex.EncodeToString(digest[:]), Entries: es.Len()}
	}
	if logErr := d.log.Append(ctx, r); logErr != nil {
		d.slog.Error("recording a reload; the last good entries stay in force", "err", logErr)
		d.refused = logErr
		return
	}
	d.refused = err
	if err != nil {
		return
	}
	d.digest, d.count, d.loaded = es.Digest(), es.Len(), time.Now()
	d.granting = grantedNames(es)
	d.gate.SetEntries(es)
	d.endUngranted(es)
	d.slog.Info("entries in force", "entries", es.Len())
}

// summary is one line on what is served.
func (d *daemon) summary() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused != nil {
		return "Serving; the entries on disk are not in order"
	}
	return fmt.Sprintf("Serving %d entries of %s", d.count, d.config.TrustDomain)
}
