package door

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// TestCallIsCutByTheMessageAfterItsAnswer: the two may come before who asked runs again.
func TestCallIsCutByTheMessageAfterItsAnswer(t *testing.T) {
	t.Parallel()
	daemon, f, err := link.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	l, err := link.FromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(l, slog.New(slog.DiscardHandler))
	ended := make(chan error, 1)
	go func() { ended <- c.run(t.Context()) }()
	go func() {
		m, _, err := daemon.Receive()
		if err != nil {
			t.Error(err)
			return
		}
		daemon.Send(&link.Message{ID: m.ID, Answer: &link.Answer{Lease: "l"}}, nil)
		daemon.Send(&link.Message{Cut: "l"}, nil)
	}()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	_, id, err := c.ask(ctx, cancel, &conn{user: newUser()}, &link.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), errCut) {
		t.Errorf("it ended with %v", context.Cause(ctx))
	}
	c.finished("l", id)
	if len(c.running) != 0 {
		t.Errorf("%d leases have calls", len(c.running))
	}
	daemon.Close()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	l.Close()
}
