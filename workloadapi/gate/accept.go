package gate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// Accept calls serve with each connection to l, each in its own goroutine and no more
// than most at a time; the rest wait. It closes the connection afterwards. When
// the context ends it closes l, and returns once those in progress have finished.
func Accept(ctx context.Context, l *net.UnixListener, most int64, logger *slog.Logger, serve func(*net.UnixConn)) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	turns := semaphore.NewWeighted(most)
	defer turns.Acquire(context.Background(), most)
	for {
		if err := turns.Acquire(ctx, 1); err != nil {
			return nil
		}
		conn, err := l.AcceptUnix()
		switch {
		case err == nil:
			go func() {
				defer turns.Release(1)
				defer conn.Close()
				serve(conn)
			}()
			continue
		case ctx.Err() != nil:
			turns.Release(1)
			return nil
		case !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ECONNABORTED):
			turns.Release(1)
			return fmt.Errorf("accepting connections on %s: %w", l.Addr(), err)
		}
		turns.Release(1)
		logger.Error("accepting a connection", "socket", l.Addr().String(), "err", err)
		select {
		case <-time.After(100 * time.Millisecond): // descriptors may come free
		case <-ctx.Done():
		}
	}
}
