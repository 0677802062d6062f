package credential

import (
	"context"
	"fmt"
	"time"
)

// Watch keeps the holder supplied: it grants, gives the grant to send, and
// grants the next well before the last expires, until ctx ends, send fails or
// the last grant has expired without a next. Each is a lease of its own, and the
// last one goes on to its expiry, so that what is in use works during the
// change; limits.concurrent must allow two. A grant that send did not deliver is
// revoked. A lease that is revoked ends the watch.
func (m *Manager) Watch(ctx context.Context, h Holder, a Ask, send func(*Grant) error) error {
	var last *Grant
	for {
		g, err := m.grantBefore(ctx, h, a, last)
		if err != nil {
			return err
		}
		if err := send(g); err != nil {
			// In the background: whoever reads this watch has gone.
			m.Abandon(g.Lease.ID, "its holder's stream was cut before it was delivered")
			return err
		}
		last = g
		if err := m.awaitNext(ctx, g.Lease); err != nil {
			return err
		}
	}
}

// grantBefore grants, and tries again until the last grant expires.
func (m *Manager) grantBefore(ctx context.Context, h Holder, a Ask, last *Grant) (*Grant, error) {
	for delay := time.Second; ; delay = min(2*delay, time.Minute) {
		g, err := m.Grant(ctx, h, a)
		if err == nil || last == nil || ctx.Err() != nil || !m.now().Add(delay).Before(last.Lease.Expires) {
			return g, err
		}
		if err := sleep(ctx, delay); err != nil {
			return nil, err
		}
	}
}

// awaitNext waits for two thirds of a lease's life.
func (m *Manager) awaitNext(ctx context.Context, l Lease) error {
	m.mu.Lock()
	current := m.leases[l.ID]
	if current == nil {
		m.mu.Unlock()
		return fmt.Errorf("watching %s: %w: it was revoked", l.Credential, ErrHolderGone)
	}
	gone := current.goneChannel()
	m.mu.Unlock()
	timer := time.NewTimer(l.Expires.Sub(m.now()) * 2 / 3)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-gone:
		return fmt.Errorf("watching %s: %w: it was revoked", l.Credential, ErrHolderGone)
	case <-ctx.Done():
		return ctx.Err()
	case <-m.ctx.Done():
		return ErrClosed
	}
}

// Abandon ends a lease without waiting for it, if it has not ended yet.
func (m *Manager) Abandon(id, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.leases[id]; l != nil {
		m.end(l, reason)
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
