package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The documents of enrolment: the node asks, the authority approves, the node
// installs.
type request struct {
	Version     int             `json:"version"`
	TrustDomain string          `json:"trust_domain"`
	CSR         []byte          `json:"csr"` // DER, signed by the node key
	Evidence    json.RawMessage `json:"evidence"`
}

type approvalDocument struct {
	Version   int    `json:"version"`
	Challenge []byte `json:"challenge"` // challengeDocument for the TPM of the request
	Sealed    []byte `json:"sealed"`    // enrolmentDocument, AES-256-GCM under the credential
}

// enrolmentDocument is what an approval holds and the store keeps.
type enrolmentDocument struct {
	Version     int      `json:"version"`
	TrustDomain string   `json:"trust_domain"`
	Chain       [][]byte `json:"chain"` // DER, the node's first
	Root        []byte   `json:"root"`  // DER
}

const (
	enrolmentVersion = 1
	maxRequestLen    = MaxEvidenceLen + 16<<10
	maxEnrolmentLen  = 64 << 10
)

// The enrolment in the store.
const (
	enrolmentFile        = "enrolment"
	enrolmentFileVersion = 1
)

// Request makes a request to be signed into a trust domain: evidence for the
// authority's nonce, and a certificate request by the node key. Where the
// authority gave none, the nonce is nil and the evidence is for one of the
// node's own.
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
	return NewRequest(td, csr, e)
}

// NewRequest makes a node's request to be signed into a trust domain, of a
// certificate request (DER) that the node key signed and of evidence.
func NewRequest(td spiffeid.TrustDomain, csr, evidenceJSON []byte) ([]byte, error) {
	return json.Marshal(request{Version: enrolmentVersion, TrustDomain: td.Name(), CSR: csr, Evidence: evidenceJSON})
}

func parseRequest(b []byte) (request, error) {
	var r request
	if err := decodeJSON(b, maxRequestLen, &r); err != nil {
		return request{}, fmt.Errorf("request: %w", err)
	}
	if r.Version != enrolmentVersion {
		return request{}, fmt.Errorf("request: version %d is unknown; this vouch knows %d", r.Version, enrolmentVersion)
	}
	return r, nil
}

// An Enrolment makes the node key a CA of an organisation's trust domain.
type Enrolment struct {
	TrustDomain spiffeid.TrustDomain
	Chain       []*x509.Certificate // the node's CA certificate first, without the root
	Root        *x509.Certificate
}

// NotAfter returns when the first certificate of the chain expires.
func (e Enrolment) NotAfter() time.Time {
	first := e.Root.NotAfter
	for _, c := range e.Chain {
		if c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	return first
}

// Install opens an approval in the TPM, verifies it and keeps it in the store.
// Anyone could have made an approval, so rootSHA256, the digest of the
// authority's root certificate (DER) in hexadecimal as the administrator
// gives it, says whose it has to be.
func (n *Node) Install(ctx context.Context, approval []byte, rootSHA256 string) (Enrolment, error) {
	inner, err := n.openApproval(ctx, approval)
	if err != nil {
		return Enrolment{}, fmt.Errorf("installing an enrolment: %w", err)
	}
	e, err := ParseEnrolment(inner, n.NodeKey(), time.Now())
	if err != nil {
		return Enrolment{}, fmt.Errorf("installing an enrolment: %w", err)
	}
	if sum := sha256.Sum256(e.Root.Raw); hex.EncodeToString(sum[:]) != rootSHA256 {
		return Enrolment{}, fmt.Errorf("installing an enrolment: it is of root %x and not of the root %.64s that was asked for", sum, rootSHA256)
	}
	if err := n.store.Save(enrolmentFile, enrolmentFileVersion, inner); err != nil {
		return Enrolment{}, fmt.Errorf("installing an enrolment: %w", err)
	}
	return e, nil
}

// Enrolment returns what was installed, with an error that satisfies
// [fs.ErrNotExist] if nothing was. It is verified as of now: an expired one is
// an error that says so.
func (n *Node) Enrolment(now time.Time) (Enrolment, error) {
	inner, _, err := n.store.Load(enrolmentFile, enrolmentFileVersion)
	if err != nil {
		return Enrolment{}, fmt.Errorf("loading the enrolment: %w", err)
	}
	e, err := ParseEnrolment(inner, n.NodeKey(), now)
	if err != nil {
		return Enrolment{}, fmt.Errorf("loading the enrolment: %w", err)
	}
	return e, nil
}

func (n *Node) openApproval(ctx context.Context, b []byte) ([]byte, error) {
	a, err := ParseSealedEnrolment(b)
	if err != nil {
		return nil, err
	}
	credential, err := n.openChallenge(ctx, a.Challenge)
	if err != nil {
		return nil, err
	}
	defer clear(credential)
	return a.open(credential)
}

// ParseSealedEnrolment reads an approval of [Authority.Approve].
func ParseSealedEnrolment(b []byte) (approvalDocument, error) {
	var a approvalDocument
	if err := decodeJSON(b, maxEnrolmentLen, &a); err != nil {
		return approvalDocument{}, err
	}
	if a.Version != enrolmentVersion {
		return approvalDocument{}, fmt.Errorf("version %d is unknown; this vouchd knows %d", a.Version, enrolmentVersion)
	}
	return a, nil
}

// open decrypts the enrolment with the credential in the approval's challenge.
func (a approvalDocument) open(credential []byte) ([]byte, error) {
	aead, err := approvalCipher(credential)
	if err != nil {
		return nil, err
	}
	inner, err := aead.Open(nil, make([]byte, aead.NonceSize()), a.Sealed, a.Challenge)
	if err != nil {
		return nil, errors.New("the approval was changed on the way")
	}
	return inner, nil
}

// ParseEnrolment reads an enrolment from an approval that was opened, and
// verifies it for a node key as of now.
func ParseEnrolment(inner []byte, nodeKey *ecdsa.PublicKey, now time.Time) (Enrolment, error) {
	var d enrolmentDocument
	if err := decodeJSON(inner, maxEnrolmentLen, &d); err != nil {
		return Enrolment{}, err
	}
	if d.Version != enrolmentVersion {
		return Enrolment{}, fmt.Errorf("version %d is unknown; this vouchd knows %d", d.Version, enrolmentVersion)
	}
	var e Enrolment
	var err error
	if e.TrustDomain, err = spiffeid.TrustDomainFromString(d.TrustDomain); err != nil {
		return Enrolment{}, err
	}
	if e.Root, err = x509.ParseCertificate(d.Root); err != nil {
		return Enrolment{}, err
	}
	if len(d.Chain) > maxCertificates {
		return Enrolment{}, fmt.Errorf("chain of %d certificates", len(d.Chain))
	}
	for _, der := range d.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return Enrolment{}, err
		}
		e.Chain = append(e.Chain, c)
	}
	return e, VerifyEnrolment(e.Chain, e.Root, e.TrustDomain, nodeKey, now)
}
