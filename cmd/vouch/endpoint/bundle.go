package endpoint

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// firstAnswer bounds how long the agent may take at the start.
const firstAnswer = 10 * time.Second

// A published is the bundle as it is served now. While the agent is away that is the last
// one.
type published struct {
	document atomic.Pointer[document]
}

type document struct {
	of   *spiffebundle.Bundle
	json []byte
}

func (p *published) sequence() uint64 {
	n, _ := p.document.Load().of.SequenceNumber()
	return n
}

// follow returns the bundle of this trust domain, which is replaced until ctx ends.
func follow(ctx context.Context, client *workloadapi.Client, endpoint string, td spiffeid.TrustDomain, log *slog.Logger) (*published, error) {
	agent, err := cli.NewCredentials(endpoint)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { agent.Close() })
	w := &watcher{ctx: ctx, agent: agent, td: td, log: log, bundle: new(published)}
	if err := w.fetch(); err != nil {
		return nil, err
	}
	// Both streams tell that something changed. What it is now is fetched whole: parts of two
	// bundles make none.
	go client.WatchX509Bundles(ctx, w)
	go client.WatchJWTBundles(ctx, w)
	return w.bundle, nil
}

// A watcher replaces what is served when the agent says that it changed.
type watcher struct {
	ctx    context.Context
	agent  *cli.Credentials
	td     spiffeid.TrustDomain
	log    *slog.Logger
	bundle *published

	mu     sync.Mutex // held while fetching; guards silent
	silent bool       // the agent is away, which was said
}

// OnX509BundlesUpdate implements [workloadapi.X509BundleWatcher].
func (w *watcher) OnX509BundlesUpdate(*x509bundle.Set) { w.refresh() }

// OnJWTBundlesUpdate implements [workloadapi.JWTBundleWatcher].
func (w *watcher) OnJWTBundlesUpdate(*jwtbundle.Set) { w.refresh() }

// OnX509BundlesWatchError implements [workloadapi.X509BundleWatcher].
func (w *watcher) OnX509BundlesWatchError(err error) { w.complain(err) }

// OnJWTBundlesWatchError implements [workloadapi.JWTBundleWatcher].
func (w *watcher) OnJWTBundlesWatchError(err error) { w.complain(err) }

func (w *watcher) refresh() {
	if err := w.fetch(); err != nil {
		w.complain(err)
		time.AfterFunc(time.Minute, func() {
			if w.ctx.Err() == nil {
				w.refresh()
			}
		})
	}
}

func (w *watcher) complain(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() == nil && !w.silent {
		w.silent = true
		w.log.Warn("the agent does not say what the bundle is now; serving the last one", "err", err)
	}
}

// fetch replaces what is served.
func (w *watcher) fetch() error {
	ctx, cancel := context.WithTimeout(w.ctx, firstAnswer)
	defer cancel()
	w.mu.Lock()
	defer w.mu.Unlock()
	got, err := w.agent.Bundle(ctx, w.td.Name(), true)
	if err != nil {
		return err
	}
	b, err := cli.SPIFFEBundle(w.td.Name(), got.X509, got.JWKS, got.Sequence)
	if err != nil {
		return err
	}
	if b.Empty() { // which would tell everybody to trust nobody here
		return fmt.Errorf("the agent's bundle of %s is empty", w.td)
	}
	w.silent = false
	if now := w.bundle.document.Load(); now != nil && now.of.Equal(b) {
		return nil // it would be the same in another order
	}
	json, err := b.Marshal()
	if err != nil {
		return err
	}
	w.bundle.document.Store(&document{b, append(json, '\n')})
	w.log.Info("serving", "trust_domain", w.td, "sequence", got.Sequence, "roots", len(b.X509Authorities()), "keys", len(b.JWTAuthorities()))
	return nil
}
