package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// The enrolment in the store.
const (
	enrolmentFile        = "enrolment"
	agentFile            = "spire-leaf"
	enrolmentFileVersion = 1
)

// Request makes a request for enrolment in a trust domain: evidence for the
// administrator's nonce, and a certificate request by the node key. If the nonce is
// nil, the evidence is for one of the node's own.
func (n *Node) Request(ctx context.Context, td spiffeid.TrustDomain, nonce []byte, from Sources) ([]byte, error) {
	if td.IsZero() {
		return nil, errors.New("requesting enrolment: no trust domain")
	}
	if nonce == nil {
		nonce = make([]byte, 32)
		rand.Read(nonce)
	}
	e, err := n.Evidence(ctx, nonce, from)
	if err != nil {
		return nil, fmt.Errorf("requesting enrolment: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(nil, &x509.CertificateRequest{
		URIs: []*url.URL{{Scheme: "spiffe", Host: td.Name()}},
	}, n.Signer())
	if err != nil {
		return nil, fmt.Errorf("requesting enrolment: %w", err)
	}
	return appraisal.NewRequest(td, csr, e)
}

// AgentRequest makes a request for a certificate by which this host joins a SPIRE server:
// evidence as in Request, and the agent's key, which is made on first use.
func (n *Node) AgentRequest(ctx context.Context, td spiffeid.TrustDomain, nonce []byte, from Sources) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("requesting an agent's certificate: %w", err)
	}
	if td.IsZero() {
		return fail(errors.New("no trust domain"))
	}
	key, err := n.AgentKey(ctx)
	if err != nil {
		return fail(err)
	}
	if nonce == nil {
		nonce = make([]byte, 32)
		rand.Read(nonce)
	}
	e, err := n.Evidence(ctx, nonce, from)
	if err != nil {
		return fail(err)
	}
	return appraisal.NewAgentRequest(td, key, e)
}

// AgentKey returns the key of this host as the agent of a SPIRE server, certified by the AK.
// It is made on first use.
func (n *Node) AgentKey(ctx context.Context) (appraisal.CertifiedKey, error) {
	signer, err := n.Key(ctx, appraisal.AgentKey)
	if err != nil {
		return appraisal.CertifiedKey{}, err
	}
	b := signer.(*Key).blob
	c := appraisal.CertifiedKey{Public: b.Public}
	err = n.tpm.do(ctx, "certifying the agent's key", operationLimit, func(tr transport.TPM) (err error) {
		c.Signed, err = n.certify(tr, n.keys.AK, b, appraisal.KeyPurpose(appraisal.AgentKey))
		return err
	})
	return c, err
}

// InstallAgent is Install for an agent's certificate, which is kept beside an enrolment.
func (n *Node) InstallAgent(ctx context.Context, approval []byte, rootSHA256 string) (appraisal.Agent, error) {
	fail := func(err error) (appraisal.Agent, error) {
		return appraisal.Agent{}, fmt.Errorf("installing an agent's certificate: %w", err)
	}
	inner, err := n.openApproval(ctx, approval)
	if err != nil {
		return fail(err)
	}
	a, err := n.parseAgent(ctx, inner, time.Now())
	if err != nil {
		return fail(err)
	}
	if sum := sha256.Sum256(a.Root.Raw); hex.EncodeToString(sum[:]) != rootSHA256 {
		return fail(fmt.Errorf("it is of root %x and not of the root %.64s that was asked for", sum, rootSHA256))
	}
	if err := n.store.Save(agentFile, enrolmentFileVersion, inner); err != nil {
		return fail(err)
	}
	return a, nil
}

// Agent returns the agent's certificate that was installed, with an error that satisfies
// [fs.ErrNotExist] if none was. It is verified as of now: an expired one is an error that
// says so.
func (n *Node) Agent(ctx context.Context, now time.Time) (appraisal.Agent, error) {
	inner, _, err := n.store.Load(agentFile, enrolmentFileVersion)
	if err != nil {
		return appraisal.Agent{}, fmt.Errorf("loading the agent's certificate: %w", err)
	}
	return n.parseAgent(ctx, inner, now)
}

func (n *Node) parseAgent(ctx context.Context, inner []byte, now time.Time) (appraisal.Agent, error) {
	key, err := n.Key(ctx, appraisal.AgentKey)
	if err != nil {
		return appraisal.Agent{}, err
	}
	return appraisal.ParseAgent(inner, key.Public().(*ecdsa.PublicKey), now)
}

// Install opens an approval in the TPM, verifies it and keeps it in the store.
// Anyone could have made an approval, so it must come from the root with rootSHA256,
// the digest of the root certificate (DER) in hexadecimal, as the administrator gives
// it.
func (n *Node) Install(ctx context.Context, approval []byte, rootSHA256 string) (appraisal.Enrolment, error) {
	inner, err := n.openApproval(ctx, approval)
	if err != nil {
		return appraisal.Enrolment{}, fmt.Errorf("installing an enrolment: %w", err)
	}
	e, err := appraisal.ParseEnrolment(inner, n.NodeKey(), time.Now())
	if err != nil {
		return appraisal.Enrolment{}, fmt.Errorf("installing an enrolment: %w", err)
	}
	if sum := sha256.Sum256(e.Root.Raw); hex.EncodeToString(sum[:]) != rootSHA256 {
		return appraisal.Enrolment{}, fmt.Errorf("installing an enrolment: it is of root %x and not of the root %.64s that was asked for", sum, rootSHA256)
	}
	if err := n.store.Save(enrolmentFile, enrolmentFileVersion, inner); err != nil {
		return appraisal.Enrolment{}, fmt.Errorf("installing an enrolment: %w", err)
	}
	return e, nil
}

// Enrolment returns what was installed, with an error that satisfies
// [fs.ErrNotExist] if nothing was. It is verified as of now: an expired one is
// an error that says so.
func (n *Node) Enrolment(now time.Time) (appraisal.Enrolment, error) {
	inner, _, err := n.store.Load(enrolmentFile, enrolmentFileVersion)
	if err != nil {
		return appraisal.Enrolment{}, fmt.Errorf("loading the enrolment: %w", err)
	}
	e, err := appraisal.ParseEnrolment(inner, n.NodeKey(), now)
	if err != nil {
		return appraisal.Enrolment{}, fmt.Errorf("loading the enrolment: %w", err)
	}
	return e, nil
}

func (n *Node) openApproval(ctx context.Context, b []byte) ([]byte, error) {
	a, err := appraisal.ParseSealedEnrolment(b)
	if err != nil {
		return nil, err
	}
	credential, err := n.openChallenge(ctx, a.Challenge)
	if err != nil {
		return nil, err
	}
	defer clear(credential)
	return a.Open(credential)
}
