package spireagent

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/spireplugin/exchange"
	"github.com/vouchd/vouchd/spireplugin/host"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// howToLeaf is how a host comes by the certificate that it joins a server with.
const howToLeaf = "run vouch node request --spire, have it approved with vouch authority approve --spire, and vouch node install the approval"

// Attestor proves to the server which host this is, as it is configured.
func Attestor(s config.SPIRE, n *node.Node, sources func() (node.Sources, error)) spire.Attestor {
	switch s.Attestor {
	case config.AttestorJoinToken:
		return joinToken(s.TokenFile)
	case config.AttestorVouchd:
		return byTPM{n, sources}
	}
	return spire.X509POP(func() ([]*x509.Certificate, crypto.Signer, error) {
		a, err := n.Agent(context.Background(), time.Now())
		if err != nil {
			return nil, nil, err
		}
		key, err := n.Key(context.Background(), appraisal.AgentKey)
		return a.Chain, key, err
	})
}

// byTPM attests to the plug-in vouchd-spire.
type byTPM struct {
	node    *node.Node
	sources func() (node.Sources, error)
}

// Name implements [spire.Attestor].
func (byTPM) Name() string { return exchange.Name }

// Begin implements [spire.Attestor].
func (b byTPM) Begin(context.Context) (spire.Attempt, error) {
	from, err := b.sources()
	if err != nil {
		return nil, err
	}
	return host.Begin(b.node, from)
}

// usesLeaf reports whether it is by such a certificate that this host joins.
func usesLeaf(c *config.Config) bool {
	return c.Authority.Mode == config.ModeSPIRE && c.Authority.SPIRE.Attestor == config.AttestorX509POP
}

// LeafView is what administrators see of the certificate.
func LeafView(c *config.Config, a appraisal.Agent) view.Enrolment {
	return view.Enrolment{
		TrustDomain: a.TrustDomain.Name(), RootSHA256: fmt.Sprintf("%x", sha256.Sum256(a.Root.Raw)), Serial: a.Chain[0].SerialNumber.Text(16),
		NotBefore: a.Chain[0].NotBefore, NotAfter: a.NotAfter(), InForce: usesLeaf(c), Agent: a.Name,
	}
}

// ReportLeaf says until when this host can prove by its certificate which one it is.
func ReportLeaf(c *config.Config, n *node.Node, st *view.Status, problem func(format string, args ...any)) {
	now := time.Now()
	a, err := n.Agent(context.Background(), now)
	if err != nil {
		if usesLeaf(c) {
			problem("this host has no certificate to join SPIRE server %s with: %v; %s", c.Authority.SPIRE.Server, err, howToLeaf)
		}
		return
	}
	v := LeafView(c, a)
	st.Node.Agent = &v
	if left := v.NotAfter.Sub(now); usesLeaf(c) && left < v.NotAfter.Sub(v.NotBefore)/3 {
		problem("the certificate by which this host joins SPIRE server %s ends on %s, in %s, and then that attests it no more; %s",
			c.Authority.SPIRE.Server, v.NotAfter.Format(time.RFC3339), left.Round(time.Minute), howToLeaf)
	}
}
