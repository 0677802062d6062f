package lease

import (
	"context"
	"fmt"
	"time"

	"github.com/vouchd/vouchd/credential"
)

// Watch keeps the holder supplied: it grants, passes the grant to send, and grants the next
// well before the last expires, until ctx ends, send fails or the last grant has expired
// without a next. Each is a lease of its own, and the previous one lives on until it
// expires, so that whatever uses it keeps working during the change; limits.concurrent must
// allow two. A grant that send did not deliver is revoked. Revoking a lease ends the watch, and so
// does an error of still, which is asked before the upstream is asked for the next one.
func (m *Manager) Watch(ctx context.Context, h credential.Holder, a credential.Ask, still func() error, send func(*credential.Grant) error) error {
	var last *credential.Grant
	for {
		if last != nil {
			if err := still(); err != nil {
				return err
			}
		}
		g, err := m.grants.grantBefore(ctx, h, a, last)
		if err != nil {
			return err
		}
		if err := send(g); err != nil {
			// In the background: this watch has no reader.
			m.Abandon(g.Lease.ID, "its holder's stream was cut before it was delivered")
			return err
		}
		last = g
		if err := m.grants.awaitNext(ctx, g.Lease); err != nil {
			return err
		}
	}
}

// grantBefore grants, and tries again until the last grant expires.
func (g *grants) grantBefore(ctx context.Context, h credential.Holder, a credential.Ask, last *credential.Grant) (*credential.Grant, error) {
	for delay := time.Second; ; delay = min(2*delay, time.Minute) {
		next, err := g.grant(ctx, h, a)
		if err == nil || last == nil || ctx.Err() != nil || !g.clock.now().Add(delay).Before(last.Lease.Expires) {
			return next, err
		}
		if err := sleep(ctx, delay); err != nil {
			return nil, err
		}
	}
}

// awaitNext waits for two thirds of a lease's life.
func (g *grants) awaitNext(ctx context.Context, l credential.Lease) error {
	g.book.mu.Lock()
	current := g.book.leases[l.ID]
	if current == nil {
		g.book.mu.Unlock()
		return fmt.Errorf("watching %s: %w: it was revoked", l.Credential, credential.ErrHolderGone)
	}
	gone := current.goneChannel()
	g.book.mu.Unlock()
	timer := time.NewTimer(l.Expires.Sub(g.clock.now()) * 2 / 3)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-gone:
		return fmt.Errorf("watching %s: %w: it was revoked", l.Credential, credential.ErrHolderGone)
	case <-ctx.Done():
		return ctx.Err()
	case <-g.ctx.Done():
		return credential.ErrClosed
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
