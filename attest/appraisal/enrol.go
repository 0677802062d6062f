package appraisal

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The documents of enrolment: the node asks, the root approves, the node installs.
type request struct {
	Version     int             `json:"version"`
	TrustDomain string          `json:"trust_domain"`
	CSR         []byte          `json:"csr,omitempty"`       // DER, signed by the node key; empty: an agent's request
	AgentKey    *CertifiedKey   `json:"agent_key,omitempty"` // nil: a node's request
	Evidence    json.RawMessage `json:"evidence"`
}

// A SealedEnrolment is an approval of [Authority.Approve]: the enrolment,
// encrypted under a credential that one TPM can take from the challenge.
type SealedEnrolment struct {
	Version   int    `json:"version"`
	Challenge []byte `json:"challenge"` // challengeDocument for the TPM of the request
	Sealed    []byte `json:"sealed"`    // enrolmentDocument, AES-256-GCM under the credential
}

// enrolmentDocument is what an approval holds and the store keeps.
type enrolmentDocument struct {
	Version     int      `json:"version"`
	TrustDomain string   `json:"trust_domain"`
	Agent       string   `json:"agent,omitempty"` // the host's name as an agent; empty: it is a CA
	Chain       [][]byte `json:"chain"`           // DER, the host's first
	Root        []byte   `json:"root"`            // DER
}

const (
	enrolmentVersion = 1
	maxRequestLen    = MaxEvidenceLen + 16<<10
	maxEnrolmentLen  = 64 << 10
)

// NewRequest makes a node's request to be signed into a trust domain, of a
// certificate request (DER) that the node key signed and of evidence.
func NewRequest(td spiffeid.TrustDomain, csr, evidenceJSON []byte) ([]byte, error) {
	return json.Marshal(request{Version: enrolmentVersion, TrustDomain: td.Name(), CSR: csr, Evidence: evidenceJSON})
}

func parseRequest(b []byte) (request, error) {
	var r request
	if err := DecodeJSON(b, maxRequestLen, &r); err != nil {
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

// ParseSealedEnrolment reads an approval of [Authority.Approve].
func ParseSealedEnrolment(b []byte) (SealedEnrolment, error) {
	var a SealedEnrolment
	if err := DecodeJSON(b, maxEnrolmentLen, &a); err != nil {
		return SealedEnrolment{}, err
	}
	if a.Version != enrolmentVersion {
		return SealedEnrolment{}, fmt.Errorf("version %d is unknown; this vouchd knows %d", a.Version, enrolmentVersion)
	}
	return a, nil
}

// Open decrypts the enrolment with the credential in the approval's challenge.
func (a SealedEnrolment) Open(credential []byte) ([]byte, error) {
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
	d, e, err := parseDocument(inner)
	if err != nil {
		return Enrolment{}, err
	}
	if d.Agent != "" {
		return Enrolment{}, fmt.Errorf("%w: it lets host %.80q join a SPIRE server", ErrKind, d.Agent)
	}
	return e, VerifyEnrolment(e.Chain, e.Root, e.TrustDomain, nodeKey, now)
}

// parseDocument reads what an approval holds, and verifies none of it.
func parseDocument(inner []byte) (d enrolmentDocument, e Enrolment, err error) {
	if err := DecodeJSON(inner, maxEnrolmentLen, &d); err != nil {
		return d, e, err
	}
	if d.Version != enrolmentVersion {
		return d, e, fmt.Errorf("version %d is unknown; this vouchd knows %d", d.Version, enrolmentVersion)
	}
	if e.TrustDomain, err = spiffeid.TrustDomainFromString(d.TrustDomain); err != nil {
		return d, e, err
	}
	if e.Root, err = x509.ParseCertificate(d.Root); err != nil {
		return d, e, err
	}
	if len(d.Chain) > maxCertificates {
		return d, e, fmt.Errorf("chain of %d certificates", len(d.Chain))
	}
	for _, der := range d.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return d, e, err
		}
		e.Chain = append(e.Chain, c)
	}
	return d, e, nil
}
