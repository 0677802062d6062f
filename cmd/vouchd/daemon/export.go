package daemon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/audit/export"
)

// An exported is a sink that the log is handed on to.
type exported struct {
	*export.Exporter
	name  string
	close func() error
}

// openExports makes the sinks that the configuration asks for. None of them is
// on the way of a request: each reads the log behind it, from where it stopped
// the last time.
func (r *records) openExports(ctx context.Context) error {
	c, state := r.config, r.machine.state
	if c.OCSF {
		if err := r.addExport("ocsf", export.Lines{W: appendFile(state.Path("ocsf.jsonl"))}, nil); err != nil {
			return err
		}
	}
	if c.Journal {
		j, err := export.DialJournal(export.JournalSocket)
		if err != nil {
			return err
		}
		if err := r.addExport("journal", j, j.Close); err != nil {
			return err
		}
	}
	if c.OTLP {
		o, err := export.NewOTLP(ctx)
		if err != nil {
			return err
		}
		return r.addExport("otlp", o, func() error { return o.Close(context.Background()) })
	}
	return nil
}

func (r *records) addExport(name string, sink export.Sink, closeSink func() error) error {
	const format = 1
	state, file := r.machine.state, "export-"+name
	var from uint64
	saved, _, err := state.Load(file, format)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("finding where export to %s stopped: %w", name, err)
	case len(saved) != 8:
		return fmt.Errorf("finding where export to %s stopped: %d bytes, want 8", name, len(saved))
	default:
		from = binary.BigEndian.Uint64(saved)
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	r.exports = append(r.exports, &exported{
		name:  name,
		close: closeSink,
		Exporter: export.New(sink, export.Options{
			Log:    os.DirFS(r.dir()),
			Key:    r.Status().Key,
			Host:   host,
			Size:   func() uint64 { return r.Status().Size },
			From:   from,
			Saved:  func(next uint64) error { return state.Save(file, format, binary.BigEndian.AppendUint64(nil, next)) },
			Logger: r.slog.With("sink", name),
		}),
	})
	return nil
}

func (r *records) closeExports() {
	for _, x := range r.exports {
		if x.close == nil {
			continue
		}
		if err := x.close(); err != nil {
			r.slog.Warn("closing a sink of the log", "sink", x.name, "err", err)
		}
	}
}

// An appendFile is opened for each write, which lets it be rotated by renaming.
type appendFile string

// Write appends p.
func (path appendFile) Write(p []byte) (int, error) {
	f, err := os.OpenFile(string(path), os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := f.Write(p)
	return n, errors.Join(err, f.Close())
}
