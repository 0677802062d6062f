package deliver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// Values keeps the latest value that watch sends in a file, until ctx ends or the
// process that reads the file exits. Watch is called again after a temporary error.
// By the time end is called, the file has been removed.
func Values(ctx context.Context, p *Place, watch func(ctx context.Context, put func([]byte) error) error, end func()) error {
	following, cancel := untilGone(ctx, p)
	defer cancel()
	defer func() {
		p.Close()
		end()
	}()
	return again(following, p, func() error {
		return watch(following, func(value []byte) error {
			first := p.wrote == nil
			if err := p.Put(ctx, value); err != nil {
				return err
			}
			if first {
				return p.Ready()
			}
			return nil
		})
	})
}

// Token writes a token to a file: once, or until ctx ends or the process that reads
// it exits, replacing it at half of its life.
func Token(ctx context.Context, p *Place, fetch func(context.Context) (token []byte, expiry time.Time, err error)) error {
	if err := p.Prepare(); err != nil {
		return err
	}
	defer p.Close()
	var expiry time.Time
	next := func() error {
		token, until, err := fetch(ctx)
		if err != nil {
			return err
		}
		expiry = until
		return p.Put(ctx, token)
	}
	if err := next(); err != nil || !p.Follow {
		return err
	}
	if err := p.Ready(); err != nil {
		return err
	}
	following, cancel := untilGone(ctx, p)
	defer cancel()
	for {
		select {
		case <-time.After(time.Until(expiry) / 2):
		case <-following.Done():
			return nil
		}
		if err := again(following, p, next); err != nil {
			return err
		}
		if following.Err() != nil {
			return nil
		}
	}
}

// untilGone returns a context that also ends when the process that reads the file
// exits.
func untilGone(ctx context.Context, p *Place) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	gone := p.gone()
	go func() {
		select {
		case <-gone:
		case <-ctx.Done():
		}
		cancel()
	}()
	return ctx, cancel
}

// again does something until ctx ends, which is not an error. It retries if that may
// help and the file has had a value: an error at the start goes to the user who
// started vouch.
func again(ctx context.Context, p *Place, do func() error) error {
	const first, last = 250 * time.Millisecond, 30 * time.Second
	for delay := first; ; {
		began := time.Now()
		err := do()
		switch {
		case ctx.Err() != nil:
			return nil
		case p.wrote == nil || !cli.MayTryAgain(err):
			return err
		case time.Since(began) > last:
			delay = first
		}
		fmt.Fprintf(os.Stderr, "vouch: %v; trying again\n", cli.Words(err))
		select {
		case <-time.After(delay + rand.N(delay/4)):
		case <-ctx.Done():
			return nil
		}
		delay = min(2*delay, last)
	}
}
