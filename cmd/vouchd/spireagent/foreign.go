package spireagent

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/identity/foreign"
)

// Foreign has the bundles of other trust domains: the server's, and where it has none, those
// of federation.d. It implements [workloadapi.Foreign].
type Foreign struct{ Agent *Agent }

// Bundle returns the bundle in force; nil: there is none.
func (f Foreign) Bundle(td spiffeid.TrustDomain) *foreign.Bundle {
	if b := f.Agent.ForeignBundle(td); b != nil {
		return b
	}
	return f.Agent.o.Local.Bundle(td)
}

// Changed returns a channel that is closed when any of them is next replaced.
func (f Foreign) Changed() <-chan struct{} {
	f.Agent.mu.Lock()
	defer f.Agent.mu.Unlock()
	return f.Agent.changed
}

// merge tells of a change of either's bundles until the context ends.
func (a *Agent) merge(ctx context.Context) {
	for {
		server, local := a.ForeignChanged(), a.o.Local.Changed()
		a.mu.Lock()
		close(a.changed)
		a.changed = make(chan struct{})
		a.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-server:
		case <-local:
		}
	}
}
