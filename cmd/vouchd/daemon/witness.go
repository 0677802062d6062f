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
func (r *records) openWitnesses() error {
	for _, w := range r.config.Witnesses {
		c, err := witness.New(witness.Options{
			URL: w.URL, Key: w.Key, Interval: w.Interval, Timeout: w.Timeout,
			Dir:    r.dir(),
			LogKey: r.Status().Key,
			Refused: func(ctx context.Context, reason string) error {
				return r.Append(ctx, audit.Record{Event: audit.EventWitness, Outcome: audit.Denied, Reason: reason})
			},
			Logger: r.slog,
		})
		if err != nil {
			return fmt.Errorf("log.witnesses: %w", err)
		}
		r.witnesses = append(r.witnesses, &witnessed{c, w.URL})
	}
	return nil
}

// lastWords has the witnesses sign the end of the log, once it is closed, if they
// answer at once.
func (r *records) lastWords(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	var group errgroup.Group
	for _, w := range r.witnesses {
		group.Go(func() error {
			if err := w.Submit(ctx); err != nil {
				r.slog.Warn("the end of the attestation log is not witnessed", "err", err)
			}
			w.Close()
			return nil
		})
	}
	group.Wait()
}

// reportWitnesses reports what the witnesses signed.
func (r *records) reportWitnesses(st *view.Status, problem problemf) {
	for _, w := range r.witnesses {
		s := w.Stats()
		view := view.WitnessStatus{Name: s.Name, URL: w.url, Records: s.Size, Time: s.Time}
		if s.Err != nil {
			view.Error = s.Err.Error()
		}
		st.Log.Witnesses = append(st.Log.Witnesses, view)
		switch {
		case s.History:
			problem("%v; unless the witness is wrong, the log was rolled back: keep a copy of %s, and see docs/log.md", s.Err, st.Log.Dir)
		case s.Err != nil:
			problem("the log is not witnessed: %v; retrying, and the last signature covers %s", s.Err, count(int(s.Size), "record", "records"))
		}
	}
}
