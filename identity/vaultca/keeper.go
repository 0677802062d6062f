package vaultca

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/vouchd/vouchd/identity"
)

// A Keeper has the node's certificate renewed at half of its life, and keeps it for a start
// without the server. Its methods are safe for concurrent use.
type Keeper struct {
	Settings Settings
	Key      crypto.Signer
	Proof    func() (Proof, error) // asked each time
	Store    identity.Store

	// Record makes a new certificate durable in the log before it is used, or why there is
	// none; that once, until there is one again.
	Record func(ctx context.Context, u identity.Upstream, failure error) error
	Apply  func(ctx context.Context, u identity.Upstream) error
	Now    func() time.Time
	Logger *slog.Logger

	mu    sync.Mutex // guards state
	state State
}

// A State is how it stands with the node's certificate.
type State struct {
	Upstream identity.Upstream // zero: there is none that is valid
	Next     time.Time         // when the server is asked next
	Failure  error             // why the last attempt failed; nil: it did not
	Since    time.Time         // of the first failure after a success
}

const (
	storeFile    = "vault-ca"
	storeVersion = 1

	firstRetry = 5 * time.Second
	lastRetry  = 5 * time.Minute
)

// Load returns what an earlier run was given, if it is still valid: zero, where it is not.
func (k *Keeper) Load() *identity.Upstream {
	text, _, err := k.Store.Load(storeFile, storeVersion)
	var u identity.Upstream
	if err == nil {
		u, err = k.Settings.Parse(text, k.Key.Public(), k.Now())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.Logger.Warn("the certificate that Vault has signed for this host is of no use any more; asking for another", "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state = State{Upstream: u, Next: due(u, k.Now(), false)}
	return &u
}

// due is when a certificate is renewed: at half of its life. One that was just signed, and
// is short or backdated, waits for half of what is left, or a minute.
func due(u identity.Upstream, now time.Time, justSigned bool) time.Time {
	if len(u.Chain) == 0 {
		return now
	}
	c := u.Chain[0]
	half := c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
	if soonest := now.Add(min(time.Minute, c.NotAfter.Sub(now)/2)); justSigned && half.Before(soonest) {
		return soonest
	}
	return half
}

// State returns how it stands.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Run renews the certificate in time, until the context ends. While the server does not
// answer, it is asked again, from every five seconds to every five minutes.
func (k *Keeper) Run(ctx context.Context) {
	const look = time.Minute // often enough to notice a clock that jumped
	delay := firstRetry
	for {
		wait := min(look, k.State().Next.Sub(k.Now()))
		if wait > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			continue
		}
		if err := k.renew(ctx); ctx.Err() != nil {
			return
		} else if err != nil {
			k.failed(ctx, err, delay+rand.N(delay/2))
			delay = min(2*delay, lastRetry)
			continue
		}
		delay = firstRetry
	}
}

func (k *Keeper) renew(ctx context.Context) error {
	proof, err := k.Proof()
	if err != nil {
		return err
	}
	u, err := k.Settings.Certify(ctx, k.Key, proof)
	if err != nil {
		return err
	}
	if err := k.Record(ctx, u, nil); err != nil {
		return fmt.Errorf("recording the node's certificate: %w", err)
	}
	if err := k.Store.Save(storeFile, storeVersion, Encode(u)); err != nil {
		return fmt.Errorf("keeping the node's certificate: %w", err)
	}
	if err := k.Apply(ctx, u); err != nil {
		return fmt.Errorf("putting the node's certificate in force: %w", err)
	}
	k.mu.Lock()
	k.state = State{Upstream: u, Next: due(u, k.Now(), true)}
	k.mu.Unlock()
	k.Logger.Info("Vault has certified this host", "serial", u.Chain[0].SerialNumber.Text(16), "until", u.Chain[0].NotAfter)
	return nil
}

func (k *Keeper) failed(ctx context.Context, err error, delay time.Duration) {
	k.mu.Lock()
	first := k.state.Failure == nil
	if first {
		k.state.Since = k.Now()
	}
	k.state.Failure, k.state.Next = err, k.Now().Add(delay)
	k.mu.Unlock()
	if first {
		k.Logger.Error("having Vault certify this host; trying again", "err", err)
		if err := k.Record(ctx, identity.Upstream{}, err); err != nil {
			k.Logger.Error("recording that Vault has not certified this host", "err", err)
		}
	}
}
