package spire

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// An agent is this host, as the server has attested it.
type agent struct {
	id           spiffeid.ID
	chain        []*x509.Certificate
	verified     verified
	attestor     string // how it was attested
	reattestable bool
}

func (a *agent) until() time.Time { return a.verified.until }

// due reports whether half of the SVID's life is over, or its authority is not to be relied
// on any more.
func (a *agent) due(b *bundle, now time.Time) bool {
	from := a.chain[0].NotBefore
	return !now.Before(from.Add(a.until().Sub(from)/2)) || b.tainted(a.verified.authority)
}

// certificate is what the agent proves itself with. A TPM signs digests of SHA-256 alone.
func (a *agent) certificate(o *Options) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: o.AgentKey, Leaf: a.chain[0], SupportedSignatureAlgorithms: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}}
	for _, cert := range a.chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

// newAgent verifies an SVID of this host's as an agent.
func newAgent(o *Options, b *bundle, s *spirev1.X509SVID, attestor string, reattestable bool) (*agent, error) {
	chain, v, err := verifyChain(s, b, o.Now())
	if err != nil {
		return nil, err
	}
	id, err := x509svid.IDFromCert(chain[0])
	switch {
	case err != nil:
		return nil, err
	case !id.MemberOf(o.TrustDomain) || !strings.HasPrefix(id.Path(), "/spire/agent/"):
		return nil, fmt.Errorf("it is for %s, which is no agent of %s", id, o.TrustDomain.Name())
	}
	if own, ok := o.AgentKey.Public().(*ecdsa.PublicKey); !ok || !own.Equal(chain[0].PublicKey) {
		return nil, errors.New("it is for another key than this host's")
	}
	return &agent{id, chain, v, attestor, reattestable}, nil
}

// A keptAgent is one in the store.
type keptAgent struct {
	Chain        [][]byte `json:"chain"`
	Attestor     string   `json:"attestor"`
	Reattestable bool     `json:"reattestable"`
}

func (v *vault) saveAgent(a *agent) error {
	k := keptAgent{Attestor: a.attestor, Reattestable: a.reattestable}
	for _, c := range a.chain {
		k.Chain = append(k.Chain, c.Raw)
	}
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return v.save(agentFile, data)
}

// loadAgent returns nil where nothing of use is kept. One that was attested in another way than
// is configured now has not proved what an administrator asks for.
func (v *vault) loadAgent(o *Options, b *bundle) *agent {
	data := v.load(agentFile)
	if data == nil || b == nil {
		return nil
	}
	var k keptAgent
	err := json.Unmarshal(data, &k)
	var a *agent
	switch {
	case err != nil:
	case k.Attestor != o.Attestor.Name():
		err = fmt.Errorf("this host was attested by %s, and is to be by %s", k.Attestor, o.Attestor.Name())
	default:
		a, err = newAgent(o, b, &spirev1.X509SVID{CertChain: k.Chain}, k.Attestor, k.Reattestable)
	}
	if err != nil {
		v.useless(agentFile, err)
		return nil
	}
	return a
}

// attest has the server attest this host, or renew its SVID, and puts that in force.
func (k *Keeper) attest(ctx context.Context) error {
	k.mu.Lock()
	old, conn, b := k.agent, k.conn, k.bundle
	k.mu.Unlock()
	csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), k.o.AgentKey)
	if err != nil {
		return fmt.Errorf("asking for this host's SVID: %w", err)
	}
	if old != nil && conn != nil && !old.reattestable && k.o.Now().Before(old.until()) {
		s, err := conn.renew(ctx, csr)
		if err == nil {
			return k.attested(ctx, b, Attestation{Attestor: k.o.Attestor.Name()}, s, false)
		}
		if reason(err) != spirev1.PermissionDeniedDetails_AGENT_MUST_REATTEST {
			return err
		}
	}
	attempt, err := k.o.Attestor.Begin(ctx)
	if err != nil {
		return fmt.Errorf("attesting this host by %s: %w", k.o.Attestor.Name(), err)
	}
	open, err := k.dial(nil)
	if err != nil {
		return err
	}
	defer open.Close()
	result, serial, err := open.attest(ctx, k.o.Attestor.Name(), attempt, csr)
	a := Attestation{Attestor: k.o.Attestor.Name(), ServerSerial: serial, EvidenceSHA256: attempt.EvidenceSHA256()}
	if err != nil {
		return k.refused(ctx, a, err)
	}
	if err := k.attested(ctx, b, a, result.Svid, result.Reattestable); err != nil {
		return err
	}
	if err := attempt.Granted(); err != nil {
		k.o.Logger.Error("this host is attested, and what it attested with is still there", "err", err)
	}
	return nil
}

// attested takes an SVID for this host into use.
func (k *Keeper) attested(ctx context.Context, b *bundle, a Attestation, s *spirev1.X509SVID, reattestable bool) error {
	k.tellSkew(s)
	next, err := newAgent(&k.o, b, s, a.Attestor, reattestable)
	if err != nil {
		return k.refused(ctx, a, fmt.Errorf("the SVID that SPIRE server %s gives this host: %w", k.o.Server, err))
	}
	leaf := next.chain[0]
	a.Server, a.Agent, a.Key = k.o.Server, next.id.String(), leaf.RawSubjectPublicKeyInfo
	a.Serial, a.SHA256, a.NotAfter = leaf.SerialNumber.Text(16), digest(leaf.Raw), leaf.NotAfter
	if err := k.o.Recorder.Attested(ctx, a); err != nil {
		return fmt.Errorf("recording that SPIRE server %s has attested this host: %w", k.o.Server, err)
	}
	if err := k.vault.saveAgent(next); err != nil {
		return err
	}
	conn, err := k.dial(next.certificate(&k.o))
	if err != nil {
		return err
	}
	k.run.told, k.run.failures = "", 0
	k.mu.Lock()
	before := k.conn
	k.agent, k.conn = next, conn
	k.mu.Unlock()
	if before != nil {
		k.run.retired = append(k.run.retired, before)
	}
	k.o.Logger.Info("the SPIRE server has attested this host", "server", k.o.Server, "agent", next.id, "until", leaf.NotAfter)
	return nil
}

// backdate is how far a SPIRE server sets the beginning of what it signs back.
const backdate = 10 * time.Second

// tellSkew takes note of this machine's clock beside the server's, which has just signed,
// whether or not what it signed is good.
func (k *Keeper) tellSkew(s *spirev1.X509SVID) {
	if len(s.GetCertChain()) == 0 {
		return
	}
	if leaf, err := x509.ParseCertificate(s.CertChain[0]); err == nil {
		k.noteSkew(k.o.Now().Sub(leaf.NotBefore.Add(backdate)))
	}
}

// refused records that the server has not attested this host, once until the reason changes.
func (k *Keeper) refused(ctx context.Context, a Attestation, err error) error {
	a.Server, a.Failure, a.Banned = k.o.Server, err, banned(err)
	if code := status.Code(err); code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.Canceled {
		return err // the server is away, which is recorded as such
	}
	if told := err.Error(); told != k.run.told {
		if err := k.o.Recorder.Attested(ctx, a); err != nil {
			return fmt.Errorf("recording that SPIRE server %s has not attested this host: %w", k.o.Server, err)
		}
		k.run.told = told
	}
	return err
}

// banned reports whether the server has banned this host. At attestation it says so in words
// alone.
func banned(err error) bool {
	s, ok := status.FromError(err)
	return ok && (reason(err) == spirev1.PermissionDeniedDetails_AGENT_BANNED ||
		s.Code() == codes.PermissionDenied && strings.Contains(s.Message(), "agent is banned"))
}
