package appraisal

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"regexp"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/google/go-tpm/tpm2"
)

// AgentKey is the purpose for which the AK certifies the key of a host as the agent of a SPIRE
// server, and its name in the TPM.
const AgentKey = "spire"

// ErrKind means that a request or an approval is not of the kind that was meant: one makes a
// host a CA of its trust domain, the other lets it join a SPIRE server.
var ErrKind = errors.New("it is of another kind")

// An Agent is a certificate by which a host joins a SPIRE server (its attestor x509pop): a
// leaf, for a key of the TPM whose machine was appraised, with the name that an administrator
// gave the host.
type Agent struct {
	TrustDomain spiffeid.TrustDomain
	Name        string              // of the host
	Chain       []*x509.Certificate // the leaf first, without the root
	Root        *x509.Certificate
}

// NotAfter returns when the leaf or the root expires, whichever is first.
func (a Agent) NotAfter() time.Time {
	return Enrolment{Chain: a.Chain, Root: a.Root}.NotAfter()
}

// hostName is a name that stands in a certificate and in selectors.
var hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

// CheckHostName refuses what is not a host's name: labels of lower-case letters, digits and
// hyphens (RFC 1123 §2.1), at most 64 characters, which a common name can have.
func CheckHostName(name string) error {
	if len(name) > 64 || !hostName.MatchString(name) {
		return fmt.Errorf("%.80q is not a host's name: use lower-case letters, digits, hyphens and dots, at most 64", name)
	}
	return nil
}

// NewAgentRequest makes a request for an [Agent], of the agent's key and of evidence.
func NewAgentRequest(td spiffeid.TrustDomain, key CertifiedKey, evidenceJSON []byte) ([]byte, error) {
	return json.Marshal(request{Version: enrolmentVersion, TrustDomain: td.Name(), AgentKey: &key, Evidence: evidenceJSON})
}

// ApproveAgent appraises a request for an agent's certificate as [Authority.Approve] does
// one for a node's, and signs a leaf for the key in the same TPM. The name is the
// administrator's: a host that could choose it could pass for another.
func (a Authority) ApproveAgent(request []byte, name string, terms Terms) (approval []byte, certificate *x509.Certificate, r Result, err error) {
	fail := func(err error) ([]byte, *x509.Certificate, Result, error) {
		return nil, nil, r, fmt.Errorf("approving an agent: %w", err)
	}
	if err := CheckHostName(name); err != nil {
		return fail(err)
	}
	td, req, err := a.readRequest(request, terms)
	if err != nil {
		return fail(err)
	}
	if req.AgentKey == nil {
		return fail(fmt.Errorf("%w: the request is to be a CA of the trust domain; have one made by vouch node request --spire", ErrKind))
	}
	if r, err = appraiseRequest(req, terms); err != nil {
		return fail(err)
	}
	key, err := VerifyAgentKey(req.Evidence, *req.AgentKey)
	if err != nil {
		return fail(err)
	}
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] &= 0x7f
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: name, SerialNumber: r.AKName[:32]},
		NotBefore: terms.Now.Add(-clockSkew), NotAfter: terms.Now.Add(terms.Life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		URIs: []*url.URL{{Scheme: "x509pop", Host: td.Name(), Path: "/hostname/" + name}}, SubjectKeyId: keyID(key),
	}
	if template.NotAfter.After(a.Root.NotAfter) {
		template.NotAfter = a.Root.NotAfter
	}
	if certificate, err = signCA(template, a.Root, key, a.Signer); err != nil {
		return fail(err)
	}
	document := enrolmentDocument{Version: enrolmentVersion, TrustDomain: td.Name(), Agent: name, Chain: [][]byte{certificate.Raw}, Root: a.Root.Raw}
	if approval, err = wrapApproval(req.Evidence, document); err != nil {
		return fail(err)
	}
	return approval, certificate, r, nil
}

// VerifyAgentKey returns the key of a host as an agent if the AK of the evidence certified
// it. It judges nothing else of the evidence.
func VerifyAgentKey(evidenceJSON []byte, key CertifiedKey) (*ecdsa.PublicKey, error) {
	e, err := parseEvidence(evidenceJSON)
	if err != nil {
		return nil, err
	}
	public, err := Structure[tpm2.TPMTPublic](e.AK.Public)
	if err != nil {
		return nil, fmt.Errorf("the agent's key: %w", err)
	}
	ak, err := P256(public)
	if err != nil {
		return nil, fmt.Errorf("the agent's key: %w", err)
	}
	verified, err := key.verify(ak, AgentKey)
	if err != nil {
		return nil, fmt.Errorf("the agent's key: %w", err)
	}
	return verified, nil
}

// ParseAgent reads an agent's certificate from an approval that was opened, and verifies it
// for a key as of now.
func ParseAgent(inner []byte, key *ecdsa.PublicKey, now time.Time) (Agent, error) {
	d, e, err := parseDocument(inner)
	if err != nil {
		return Agent{}, err
	}
	if d.Agent == "" {
		return Agent{}, fmt.Errorf("%w: it makes the host a CA of the trust domain", ErrKind)
	}
	a := Agent{e.TrustDomain, d.Agent, e.Chain, e.Root}
	if err := CheckHostName(a.Name); err != nil {
		return Agent{}, err
	}
	if len(a.Chain) == 0 {
		return Agent{}, errors.New("there is no certificate")
	}
	leaf := a.Chain[0]
	switch {
	case !key.Equal(leaf.PublicKey):
		return Agent{}, errors.New("the certificate is for another key than this host's as an agent")
	case leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return Agent{}, errors.New("the certificate is not a leaf that signs")
	case leaf.Subject.CommonName != a.Name:
		return Agent{}, fmt.Errorf("the certificate names host %.80q, and the approval %q", leaf.Subject.CommonName, a.Name)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.Root)
	for _, c := range a.Chain[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return Agent{}, fmt.Errorf("verifying the agent's certificate: %w", err)
	}
	return a, nil
}
