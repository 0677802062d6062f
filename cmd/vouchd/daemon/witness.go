package daemon

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/witness"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A witnessed is a witness that the log is submitted to.
type witnessed struct {
	*witness.Client
	url string
}

// openWitnesses makes the clients of the witnesses that the configuration names.
// Like the exports, they read the log behind every request.
func (d *daemon) openWitnesses() error {
	for _, w := range d.config.Log.Witnesses {
		c, err := witness.New(witness.Options{
			URL: w.URL, Key: w.Key, Interval: w.Interval, Timeout: w.Timeout,
			Dir:    d.state.Path("log"),
			LogKey: d.log.Status().Key,
			Refused: func(ctx context.Context, reason string) error {
				return d.log.Append(ctx, audit.Record{Event: audit.EventWitness, Outcome: audit.Denied, Reason: reason})
			},
			Logger: d.slog,
		})
		if err != nil {
			return fmt.Errorf("log.witnesses: %w", err)
		}
		d.witnesses = append(d.witnesses, &witnessed{c, w.URL})
	}
	return nil
}

// lastWords has the witnesses sign the end of the log, once it is closed, if they
// answer at once.
func (d *daemon) lastWords(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	var group errgroup.Group
	for _, w := range d.witnesses {
		group.Go(func() error {
			if err := w.Submit(ctx); err != nil {
				d.slog.Warn("the end of the attestation log is not witnessed", "err", err)
			}
			w.Close()
			return nil
		})
	}
	group.Wait()
}

// reportWitnesses tells what the witnesses signed.
func (d *daemon) reportWitnesses(st *view.Status, problem func(format string, args ...any)) {
	for _, w := range d.witnesses {
		s := w.Stats()
		view := view.WitnessStatus{Name: s.Name, URL: w.url, Records: s.Size, Time: s.Time}
		if s.Err != nil {
			view.Error = s.Err.Error()
		}
		st.Log.Witnesses = append(st.Log.Witnesses, view)
		switch {
		case s.History:
			problem("%v; unless the witness errs, the log was set back: keep a copy of %s, and see docs/log.md", s.Err, st.Log.Dir)
		case s.Err != nil:
			problem("the log is not witnessed: %v; it is tried again, and what it signed last covers %d records", s.Err, s.Size)
		}
	}
}
