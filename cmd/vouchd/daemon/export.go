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
func (d *daemon) openExports(ctx context.Context) error {
	c := d.config.Log
	if c.OCSF {
		if err := d.addExport("ocsf", export.Lines{W: appendFile(d.state.Path("ocsf.jsonl"))}, nil); err != nil {
			return err
		}
	}
	if c.Journal {
		j, err := export.DialJournal(export.JournalSocket)
		if err != nil {
			return err
		}
		if err := d.addExport("journal", j, j.Close); err != nil {
			return err
		}
	}
	if c.OTLP {
		o, err := export.NewOTLP(ctx)
		if err != nil {
			return err
		}
		return d.addExport("otlp", o, func() error { return o.Close(context.Background()) })
	}
	return nil
}

func (d *daemon) addExport(name string, sink export.Sink, closeSink func() error) error {
	const format = 1
	file := "export-" + name
	var from uint64
	saved, _, err := d.state.Load(file, format)
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
	d.exports = append(d.exports, &exported{
		name:  name,
		close: closeSink,
		Exporter: export.New(sink, export.Options{
			Log:    os.DirFS(d.state.Path("log")),
			Key:    d.log.Status().Key,
			Host:   host,
			Size:   func() uint64 { return d.log.Status().Size },
			From:   from,
			Saved:  func(next uint64) error { return d.state.Save(file, format, binary.BigEndian.AppendUint64(nil, next)) },
			Logger: d.slog.With("sink", name),
		}),
	})
	return nil
}

func (d *daemon) closeExports() {
	for _, x := range d.exports {
		if x.close == nil {
			continue
		}
		if err := x.close(); err != nil {
			d.slog.Warn("closing a sink of the log", "sink", x.name, "err", err)
		}
	}
}

// An appendFile is opened for each write, so that it can be rotated by
// renaming.
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
