package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/spireagent"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/vaultca"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// An issuing is what answers for the trust domain on this host: its own authority, or the
// agent of a SPIRE server.
type issuing struct {
	identity.Issuer
	config    *config.Config
	authority *identity.Authority // nil: there is an agent
	vault     *vaultca.Keeper     // of the authority; nil unless one certifies this host
	agent     *spireagent.Agent   // nil: there is an authority
}

// openAuthority makes this host the authority of its trust domain, or one that is certified.
func openAuthority(ctx context.Context, c *config.Config, m *machine, log *records, e *enrolment, logger *slog.Logger) (*issuing, error) {
	i, a := &issuing{config: c}, c.Authority
	o := identity.Options{
		TrustDomain:   c.TrustDomain,
		NodeKey:       m.node.Signer(),
		Store:         m.state,
		Sealer:        m.node,
		IssuingCATTL:  a.IssuingCATTL,
		Overlap:       a.RotationOverlap,
		JWTKeyTTL:     a.JWTKeyTTL,
		JWTIssuer:     a.JWTIssuer,
		JWTAlgorithms: a.JWTAlgorithms,
		Announce:      log.announce,
		Logger:        logger,
	}
	switch a.Mode {
	case config.ModeEnrolled:
		o.Upstream, o.HowToEnrol = e.load(), "enrol it with vouch node request"
	case config.ModeVault:
		e.load() // to log in with
		var err error
		if i.vault, err = newVault(c, m, log, e, i.nodeJWT, logger); err != nil {
			return nil, err
		}
		o.Upstream, o.HowToEnrol = i.vault.Load(), "vouch status says why "+a.Vault.Address+" does not certify it"
		i.vault.Apply = func(ctx context.Context, u identity.Upstream) error { return i.authority.SetUpstream(ctx, u) }
	}
	if a.JWTKey == config.JWTKeyTPM {
		key, err := m.node.Key(ctx, "jwt")
		if err != nil {
			return nil, err
		}
		o.JWTKey = key
	}
	var err error
	i.authority, err = identity.NewAuthority(ctx, o)
	i.Issuer = i.authority
	return i, err
}

// openAgent makes this host the agent of a SPIRE server.
func openAgent(ctx context.Context, m *machine, o spireagent.Options) (*issuing, error) {
	key, err := m.node.Key(ctx, appraisal.AgentKey)
	if err != nil {
		return nil, err
	}
	o.Key, o.Attestor, o.Store, o.Sealer = key, spireagent.Attestor(o.Config.Authority.SPIRE, m.node, m.sources), m.state, m.node
	o.NodeKey = m.node.Signer()
	agent, err := spireagent.Open(ctx, o)
	return &issuing{Issuer: agent, config: o.Config, agent: agent}, err
}

// run keeps what issues up to date until the context ends.
func (i *issuing) run(ctx context.Context) error {
	if i.agent != nil {
		return i.agent.Run(ctx)
	}
	i.authority.Run(ctx)
	return nil
}

// wholeBundle returns the bundle for those who publish it.
func (i *issuing) wholeBundle(ctx context.Context) (*identity.Bundle, error) {
	if i.agent != nil {
		return i.Bundle(), nil
	}
	return i.authority.WholeBundle(ctx)
}

// foreign has the bundles of other trust domains.
func (i *issuing) foreign(f *federation) workloadapi.Foreign {
	if i.agent != nil {
		return spireagent.Foreign{Agent: i.agent}
	}
	return f.keeper
}

func (i *issuing) nodeJWT(ctx context.Context, audience string) (secret.Bytes, error) {
	return i.authority.NodeJWT(ctx, audience)
}

// selfCheck issues what a workload would get, and throws it away.
func (i *issuing) selfCheck(ctx context.Context) error {
	if i.agent != nil {
		return nil // nothing is signed here
	}
	err := i.authority.SelfCheck(ctx)
	if errors.Is(err, identity.ErrNotEnrolled) {
		return nil // nothing is issued until it is, and status says so
	}
	return err
}

// report says how long it can go on.
func (i *issuing) report(st *view.Status, problem problemf) {
	if i.agent != nil {
		i.agent.Report(st, problem)
	} else {
		a := i.authority.Status()
		st.Authority = view.AuthorityStatus{
			RootNotAfter:      a.RootNotAfter,
			IssuingCAKeyID:    a.IssuingCAKeyID,
			IssuingCANotAfter: a.IssuingCANotAfter,
			JWTKeyID:          a.JWTKeyID,
			JWTKeyUntil:       a.JWTKeyUntil,
			BundleSequence:    a.BundleSequence,
		}
		i.reportVault(st, problem)
	}
	if roots, err := x509.ParseCertificates(i.Bundle().X509); err == nil { // always: they were parsed before
		st.Authority.RootSHA256 = fingerprints(roots)
	}
}

// newVault returns what has a Vault certify this host. Its Apply is yet to be set.
func newVault(c *config.Config, m *machine, log *records, e *enrolment, token func(ctx context.Context, audience string) (secret.Bytes, error), logger *slog.Logger) (*vaultca.Keeper, error) {
	v := c.Authority.Vault
	root, err := readRoot(v.RootFile)
	if err != nil {
		return nil, err
	}
	k := &vaultca.Keeper{
		Settings: vaultca.Settings{
			Address: v.Address, Namespace: v.Namespace, CAFile: v.CAFile, Mount: v.Mount, AuthMount: v.AuthMount, Role: v.Role, Life: v.TTL,
			Root: root, Domain: c.TrustDomain,
		},
		Key: m.node.Signer(), Store: m.state, Now: time.Now, Logger: logger,
		Record: func(ctx context.Context, u identity.Upstream, failure error) error {
			r := audit.Record{Event: audit.EventUpstream, Outcome: audit.Success, Reason: "signed by " + v.Address}
			if failure != nil {
				r.Outcome, r.Reason = audit.Failed, fmt.Sprintf("%s has not certified this host: %v", v.Address, failure)
				return log.Append(ctx, r)
			}
			cert := u.Chain[0]
			r.Key = &audit.Key{KeyID: fmt.Sprintf("%x", cert.SubjectKeyId), Certificate: cert.Raw, PublicKey: cert.RawSubjectPublicKeyInfo, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
			return log.Append(ctx, r)
		},
		Proof: func() (vaultca.Proof, error) {
			if v.Auth == "jwt" {
				return vaultca.Proof{JWT: func(ctx context.Context) (secret.Bytes, error) { return token(ctx, v.Audience) }}, nil
			}
			return e.proof()
		},
	}
	return k, nil
}

// proof is the node's certificate by the root that it is enrolled under, and its key.
func (e *enrolment) proof() (vaultca.Proof, error) {
	of, err := e.machine.node.Enrolment(time.Now())
	if err != nil {
		return vaultca.Proof{}, fmt.Errorf("%w; authority.vault.auth is cert, which takes the certificate of an enrolment: %s", err, howToEnrol)
	}
	t := &tls.Certificate{PrivateKey: e.machine.node.Signer(), Leaf: of.Chain[0]}
	for _, c := range of.Chain {
		t.Certificate = append(t.Certificate, c.Raw)
	}
	return vaultca.Proof{Certificate: t}, nil
}

// readRoot reads the one certificate that a trust domain begins with.
func readRoot(path string) (*x509.Certificate, error) {
	fail := func(format string, args ...any) (*x509.Certificate, error) {
		return nil, fmt.Errorf("authority.vault.root_file %s: "+format, append([]any{path}, args...)...)
	}
	text, err := config.ReadFile(path)
	if err != nil {
		return fail("%w", err)
	}
	b, rest := pem.Decode(text)
	if b == nil || b.Type != "CERTIFICATE" {
		return fail("it holds no certificate (PEM)")
	}
	if more, _ := pem.Decode(rest); more != nil {
		return fail("it holds more than one certificate; leave the root alone in it")
	}
	c, err := x509.ParseCertificate(b.Bytes)
	switch {
	case err != nil:
		return fail("%w", err)
	case !c.IsCA || c.CheckSignatureFrom(c) != nil:
		return fail("it is not a root: a CA's certificate, signed by itself")
	}
	return c, nil
}

// reportVault says how long this host is certified for, and what keeps it from being longer.
func (i *issuing) reportVault(st *view.Status, problem problemf) {
	if i.vault == nil {
		return
	}
	s, v := i.vault.State(), &view.VaultStatus{Address: i.config.Authority.Vault.Address}
	defer func() { st.Authority.Vault = v }()
	v.Next = s.Next
	if len(s.Upstream.Chain) > 0 {
		c := s.Upstream.Chain[0]
		v.Serial, v.NotAfter, v.Constrained = c.SerialNumber.Text(16), c.NotAfter, vaultca.Constrained(s.Upstream)
	}
	if s.Failure != nil {
		v.Error, v.Since = s.Failure.Error(), s.Since
		until := "so nothing is issued"
		if !v.NotAfter.IsZero() {
			until = "so that nothing is issued from " + v.NotAfter.Format(time.RFC3339) + " on, if it stays so"
		}
		problem("%s has not certified this host since %s, %s: %v", v.Address, s.Since.Format(time.RFC3339), until, s.Failure)
	}
	if !v.NotAfter.IsZero() && !v.Constrained {
		st.Reminders = append(st.Reminders, fmt.Sprintf("the certificate that %s signs for this host is not constrained to trust domain %s: whoever has this machine's root can sign for any; use a server that knows permitted_uri_domains, or constrain the issuer", v.Address, i.config.TrustDomain))
	}
}
