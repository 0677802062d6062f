package daemon

import (
	"context"
	"fmt"
	"reflect"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/programs"
)

// reloadPrograms looks at the definitions of programs, which the service of vouch
// run puts in force, a process of its own: what changed is recorded, and what is
// not in order status says.
func (d *daemon) reloadPrograms(ctx context.Context) {
	defined, err := programs.Load(d.config.ProgramsDir, false)
	d.mu.Lock()
	defer d.mu.Unlock()
	if fmt.Sprint(err) == fmt.Sprint(d.programsRefused) && (err != nil || reflect.DeepEqual(defined, d.programs)) {
		return
	}
	r := audit.Record{Event: audit.EventReload, Outcome: audit.Success, Reason: fmt.Sprintf("%d programs", len(defined))}
	if err != nil {
		d.slog.Error("programs are not in order; the last good ones stay in force", "err", err)
		r.Outcome, r.Reason = audit.Failed, err.Error()
	}
	if logErr := d.log.Append(ctx, r); logErr != nil {
		d.slog.Error("recording a change of programs", "err", logErr)
		d.programsRefused = logErr
		return
	}
	if d.programsRefused = err; err == nil {
		d.programs = defined
	}
}
