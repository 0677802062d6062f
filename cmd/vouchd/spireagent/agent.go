// Package spireagent makes this host the agent of a SPIRE server: it answers workloads with
// what the server signs, records what passes between the two, and says how it stands.
// Credentials are granted here, by SPIFFE ID, since the server knows nothing of them.
package spireagent

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/reload"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/foreign"
	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/packaging/version"
	"github.com/vouchd/vouchd/secret"
)

// Options are what an agent works with. All are required.
type Options struct {
	Config   *config.Config
	Key      crypto.Signer // the agent's, in the TPM
	Attestor spire.Attestor
	Store    spire.Store
	Sealer   identity.Sealer
	Log      Log
	NodeKey  crypto.Signer                                   // of a CA of this host's, where the configuration asks for one
	Announce func(ctx context.Context, k identity.Key) error // of what that signs with
	Local    *foreign.Keeper                                 // other trust domains that this host is configured with
	Apply    func(es *identity.Entries, problem error)       // puts entries in force; the problem is that of grants.d
	Tell     func(problem error)                             // what of grants.d is not in force; nil: nothing
	Logger   *slog.Logger
}

// A Log is where records go, and what quotes a key of the agent's.
type Log interface {
	Append(ctx context.Context, rs ...audit.Record) error
	Reloaded(ctx context.Context, next audit.Record, problem error) error
	Quote(ctx context.Context, publicKey []byte) ([]byte, error)
}

// An Agent is a host that a SPIRE server answers for. Its methods are safe for concurrent
// use.
type Agent struct {
	*spire.Keeper
	Grants *reload.Value[*identity.Grants]
	o      Options
	own    *identity.Authority // below a CA of the server's; nil: it is not configured

	mu      sync.Mutex
	known   bool             // what the server has
	synced  []identity.Entry // that
	digest  [32]byte         // of synced
	changed chan struct{}    // closed when a bundle of another trust domain is next replaced
}

// Open puts in force what is granted here and what the server said last. It does not wait
// for the server.
func Open(ctx context.Context, o Options) (*Agent, error) {
	a := &Agent{o: o, changed: make(chan struct{})}
	a.Grants = reload.Holding(a.source(), new(identity.Grants))
	if _, err := a.Grants.Reload(ctx); err != nil {
		o.Logger.Error("reloading", "err", err)
	}
	s := o.Config.Authority.SPIRE
	roots, err := readBundle(s.BundleFile, o.Config)
	if err != nil {
		return nil, err
	}
	a.Keeper, err = spire.Open(ctx, spire.Options{
		Downstream: a.downstream(),
		Server:     s.Server, TrustDomain: o.Config.TrustDomain, Roots: roots,
		Attestor: o.Attestor, AgentKey: o.Key, Store: o.Store, Sealer: o.Sealer,
		MaxStale: s.MaxStale, Version: version.String(),
		Recorder: recorder{o.Log, o.Config.TrustDomain}, Apply: a.apply, Now: time.Now, Logger: o.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("opening what SPIRE server %s has given this host: %w", s.Server, err)
	}
	return a, a.openOwn(ctx)
}

// Run keeps this host in step with the server until the context ends.
func (a *Agent) Run(ctx context.Context) error {
	go a.merge(ctx)
	if a.own != nil {
		go a.own.Run(ctx)
	}
	return a.Keeper.Run(ctx)
}

// source is where grants come from.
func (a *Agent) source() reload.Source[*identity.Grants] {
	return reload.Source[*identity.Grants]{
		Name: "grants", Place: a.o.Config.GrantsDir,
		Parse: func(files []config.File) (*identity.Grants, error) {
			return identity.ParseGrants(files, a.o.Config.TrustDomain)
		},
		Digest: (*identity.Grants).Digest,
		Record: func(ctx context.Context, next *identity.Grants, problem error) error {
			if problem != nil {
				return a.o.Log.Reloaded(ctx, audit.Record{}, problem)
			}
			digest := next.Digest()
			return a.o.Log.Reloaded(ctx, audit.Record{
				Reason: fmt.Sprintf("grants to %d identities", len(next.All())),
				Config: &audit.Config{SHA256: hex.EncodeToString(digest[:])},
			}, nil)
		},
		Apply:  func(*identity.Grants) { a.grant() },
		Tell:   a.o.Tell,
		Logger: a.o.Logger,
	}
}

// apply takes the server's entries.
func (a *Agent) apply(entries []identity.Entry, digest [32]byte) {
	a.mu.Lock()
	a.known, a.synced, a.digest = true, entries, digest
	a.mu.Unlock()
	a.grant()
}

// grant puts the server's entries in force, with what is granted here.
func (a *Agent) grant() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.known {
		return // what was granted before stays until the server has said who there is
	}
	state := a.Grants.State()
	list := make([]identity.Entry, len(a.synced))
	for i, e := range a.synced {
		e.Credentials = state.Value.To(e.ID)
		list[i] = e
	}
	grants := state.Value.Digest()
	a.o.Apply(identity.NewEntries(list, sha256.Sum256(append(a.digest[:], grants[:]...))), state.Problem)
}

// readBundle reads the trust domain's authorities, in PEM or in SPIFFE's JSON.
func readBundle(path string, c *config.Config) ([]*x509.Certificate, error) {
	text, err := config.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("authority.spire.bundle_file: %w", err)
	}
	roots := spire.ParseRoots(c.TrustDomain, text)
	if len(roots) == 0 {
		return nil, fmt.Errorf("authority.spire.bundle_file %s has no certificate, in PEM or in a SPIFFE bundle; save there what spire-server bundle show prints", path)
	}
	return roots, nil
}

// joinToken attests by a token in a file, which is deleted once it is used.
func joinToken(path string) spire.Attestor {
	return spire.JoinToken(func() (secret.Bytes, error) {
		text, err := config.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return secret.Bytes{}, fmt.Errorf("there is no join token in %s; have one made by spire-server token generate, and save it there, mode 0600", path)
		}
		return secret.Of(text), err
	}, func() error { return os.Remove(path) })
}
