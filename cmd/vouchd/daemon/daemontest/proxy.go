package daemontest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/vouchd/vouchd/workloadapi/proxy/databases"
	"github.com/vouchd/vouchd/workloadapi/proxy/door"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// serveProxy makes calls in this process, where the race detector sees it.
func serveProxy(logger *slog.Logger) func(context.Context, *net.UnixListener, *os.File) error {
	return func(ctx context.Context, agents *net.UnixListener, theirs *os.File) error {
		l, err := link.FromFile(theirs)
		if err != nil {
			return err
		}
		f, err := agents.File()
		if err != nil {
			return err
		}
		own, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return err
		}
		own.(*net.UnixListener).SetUnlinkOnClose(false)
		once := make(chan *link.Conn, 1)
		once <- l
		close(once)
		return door.Serve(ctx, door.Options{Listener: own.(*net.UnixListener), Logger: logger, Databases: databases.New(logger), Link: func(ctx context.Context) (*link.Conn, error) {
			if l := <-once; l != nil {
				return l, nil
			}
			return nil, io.EOF
		}})
	}
}
