package spireplugin

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/spireplugin/pluginv1"
)

// A composer holds an agent's SVID to the key by which its host was admitted. An attestor
// never sees the key that the server is about to sign for; this does, when a host is attested
// and whenever its SVID is renewed.
type composer struct {
	pluginv1.UnimplementedCredentialComposerServer
	trustDomain atomic.Pointer[spiffeid.TrustDomain] // nil: SPIRE has not configured it yet
}

func (c *composer) configure(trustDomain, text string, try bool) error {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return err
	}
	if err := decode(text, new(struct{})); err != nil {
		return errors.New("the CredentialComposer of vouchd-spire has no settings; leave plugin_data empty")
	}
	if !try {
		c.trustDomain.Store(&td)
	}
	return nil
}

// ComposeAgentX509SVID implements [pluginv1.CredentialComposerServer]. It changes nothing.
func (c *composer) ComposeAgentX509SVID(_ context.Context, r *pluginv1.ComposeAgentX509SVIDRequest) (*pluginv1.ComposeAgentX509SVIDResponse, error) {
	td := c.trustDomain.Load()
	if td == nil {
		return nil, status.Error(codes.FailedPrecondition, "vouchd-spire is not configured yet")
	}
	if strings.HasPrefix(r.SpiffeId, td.IDString()+agentPath) && r.SpiffeId != agentID(*td, r.PublicKey) {
		return nil, status.Errorf(codes.PermissionDenied, "%s asks for an SVID for another key than that of its TPM", r.SpiffeId)
	}
	return &pluginv1.ComposeAgentX509SVIDResponse{Attributes: r.Attributes}, nil
}
