package spireagent

import (
	"context"
	"fmt"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/spire"
)

// downstreamLife is what a host asks for as a CA. It is renewed at half of what it is given.
const downstreamLife = 7 * 24 * time.Hour

// downstream is how this host comes by a CA of the server's; nil: it is not configured.
func (a *Agent) downstream() *spire.Downstream {
	if !a.o.Config.Authority.SPIRE.Downstream {
		return nil
	}
	return &spire.Downstream{
		Key: a.o.NodeKey, Life: downstreamLife,
		Record: func(ctx context.Context, u identity.Upstream, failure error) error {
			r := audit.Record{Event: audit.EventUpstream, Outcome: audit.Success, Reason: "a downstream CA of SPIRE server " + a.o.Config.Authority.SPIRE.Server}
			if failure != nil {
				r.Outcome, r.Reason = audit.Failed, failure.Error()
				return a.o.Log.Append(ctx, r)
			}
			c := u.Chain[0]
			r.Key = &audit.Key{KeyID: fmt.Sprintf("%x", c.SubjectKeyId), Certificate: c.Raw, PublicKey: c.RawSubjectPublicKeyInfo, NotBefore: c.NotBefore, NotAfter: c.NotAfter}
			return a.o.Log.Append(ctx, r)
		},
		Apply: func(ctx context.Context, u identity.Upstream) error { return a.own.SetUpstream(ctx, u) },
	}
}

// openOwn makes the authority below that CA.
func (a *Agent) openOwn(ctx context.Context) (err error) {
	if !a.o.Config.Authority.SPIRE.Downstream {
		return nil
	}
	s, up := a.o.Config.Authority, a.Downstream()
	a.own, err = identity.NewAuthority(ctx, identity.Options{
		TrustDomain: a.o.Config.TrustDomain, NodeKey: a.o.NodeKey, Store: a.o.Store, Sealer: a.o.Sealer,
		IssuingCATTL: s.IssuingCATTL, Overlap: s.RotationOverlap, JWTKeyTTL: s.JWTKeyTTL, X509Only: true,
		Upstream: &up, HowToEnrol: "vouch status says why SPIRE server " + s.SPIRE.Server + " does not make this host a CA",
		Announce: a.o.Announce, Logger: a.o.Logger,
	})
	return err
}

// IssueX509 implements [identity.Issuer]. What the server has signed comes first; this host
// signs only where that is not to be had, for entries that the server authorized and that are
// not too old to go by.
func (a *Agent) IssueX509(ctx context.Context, e identity.Entry) (*identity.X509SVID, error) {
	svid, err := a.Keeper.IssueX509(ctx, e)
	if err == nil || a.own == nil || a.State().Online || a.MayIssue(e.Server) != nil {
		return svid, err
	}
	svid, ownErr := a.own.IssueX509(ctx, e)
	if ownErr != nil {
		return nil, fmt.Errorf("%w; nor by this host's own CA: %w", err, ownErr)
	}
	svid.Server.Offline = true
	return svid, nil
}
