package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// The enrolment in the store.
const (
	enrolmentFile        = "enrolment"
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
