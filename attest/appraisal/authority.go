package appraisal

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Lives of certificates.
const (
	MinCALife = time.Hour
	MaxCALife = 366 * 24 * time.Hour // of a node's; the root's is for its owner to choose
	// clockSkew is how long before it is issued a certificate is valid.
	clockSkew = 5 * time.Minute
)

// An Authority is an organisation's root with its key, which certifies nodes of a
// trust domain. It is used offline, on an administrator's machine; the key is in a
// file or in that machine's TPM.
type Authority struct {
	Root   *x509.Certificate
	Signer crypto.Signer // of Root's key
}

// NewAuthority makes a root certificate for a trust domain, signed by its own
// key (ECDSA).
func NewAuthority(signer crypto.Signer, td spiffeid.TrustDomain, now time.Time, life time.Duration) (Authority, error) {
	if td.IsZero() {
		return Authority{}, errors.New("creating a root: no trust domain")
	}
	if life < MinCALife {
		return Authority{}, fmt.Errorf("creating a root: a life of %v is shorter than %v", life, MinCALife)
	}
	template := caTemplate(td, signer.Public(), now, life)
	template.Subject = pkix.Name{CommonName: td.Name()}
	template.MaxPathLen = 2 // this, the node's, the issuing CA, then SVIDs
	root, err := signCA(template, template, signer.Public(), signer)
	if err != nil {
		return Authority{}, fmt.Errorf("creating a root: %w", err)
	}
	return Authority{Root: root, Signer: signer}, nil
}

// TrustDomain returns the trust domain that the root is for.
func (a Authority) TrustDomain() (spiffeid.TrustDomain, error) { return trustDomainOf(a.Root) }

// Terms are what an administrator decides about one request.
type Terms struct {
	Policy Policy
	// Nonce is the one that the node was asked to use. Without one, AnyNonce
	// accepts a request of unknown age: the keys in it are proven all the same
	// and the boot state is that of some day.
	Nonce    []byte
	AnyNonce bool
	Life     time.Duration // of the node's CA certificate
	Now      time.Time
}

// Approve appraises a request by the policy, and if it passes signs the node
// key as a CA of the trust domain, which may sign issuing CAs and these SVIDs.
//
// What it returns is encrypted to the TPM that has both the endorsement and
// the attestation key of the request (credential activation), so a node that
// shows another machine's endorsement key gets nothing of use, and no message
// more than these two is needed. The Result says why a request was refused, in
// which case the approval is nil and the error is the Result's.
func (a Authority) Approve(request []byte, terms Terms) (approval []byte, certificate *x509.Certificate, r Result, err error) {
	fail := func(err error) ([]byte, *x509.Certificate, Result, error) {
		return nil, nil, r, fmt.Errorf("approving a node: %w", err)
	}
	td, req, err := a.readRequest(request, terms)
	if err != nil {
		return fail(err)
	}
	if req.AgentKey != nil {
		return fail(fmt.Errorf("%w: the request is to join a SPIRE server; approve it with --spire and --name, or have one made by vouch node request", ErrKind))
	}
	if r, err = appraiseRequest(req, terms); err != nil {
		return fail(err)
	}
	if err := req.checkCSR(td, r.NodeKey()); err != nil {
		return fail(err)
	}
	template := caTemplate(td, r.NodeKey(), terms.Now, terms.Life)
	template.Subject = pkix.Name{CommonName: "vouchd node", SerialNumber: r.AKName[:32]}
	template.MaxPathLen = 1
	if template.NotAfter.After(a.Root.NotAfter) {
		template.NotAfter = a.Root.NotAfter
	}
	if certificate, err = signCA(template, a.Root, r.NodeKey(), a.Signer); err != nil {
		return fail(err)
	}
	document := enrolmentDocument{Version: enrolmentVersion, TrustDomain: td.Name(), Chain: [][]byte{certificate.Raw}, Root: a.Root.Raw}
	if approval, err = wrapApproval(req.Evidence, document); err != nil {
		return fail(err)
	}
	return approval, certificate, r, nil
}

// readRequest reads a request that is for the root's trust domain.
func (a Authority) readRequest(text []byte, terms Terms) (spiffeid.TrustDomain, request, error) {
	td, err := a.TrustDomain()
	if err != nil {
		return td, request{}, err
	}
	if terms.Life < MinCALife || terms.Life > MaxCALife {
		return td, request{}, fmt.Errorf("a life of %v is not between %v and %v", terms.Life, MinCALife, MaxCALife)
	}
	req, err := parseRequest(text)
	if err == nil && req.TrustDomain != td.Name() {
		err = fmt.Errorf("the request is for trust domain %.255q, but this root is for %s", req.TrustDomain, td.Name())
	}
	return td, req, err
}

// appraiseRequest judges the evidence. Activation is shown when the approval
// is opened, so it is taken as given here, for exactly the keys that the
// approval will be encrypted to.
func appraiseRequest(req request, terms Terms) (Result, error) {
	e, err := parseEvidence(req.Evidence)
	if err != nil {
		return Result{}, err
	}
	given := Given{Nonce: terms.Nonce, Now: terms.Now}
	if terms.AnyNonce && terms.Nonce == nil {
		if given.Nonce, err = e.nonce(); err != nil {
			return Result{}, err
		}
	}
	if ak, err := Structure[tpm2.TPMTPublic](e.AK.Public); err == nil {
		given.Activation = &Activation{EKSHA256: e.EK.SHA256(), AKName: nameText(ak)}
	}
	r := Appraise(req.Evidence, terms.Policy, given)
	return r, r.Err()
}

// wrapApproval encrypts a document under a credential for the request's TPM.
func wrapApproval(evidenceJSON []byte, document enrolmentDocument) ([]byte, error) {
	challenge, kept, err := makeChallenge(evidenceJSON)
	if err != nil {
		return nil, err
	}
	var k keptDocument
	if err := json.Unmarshal(kept, &k); err != nil {
		return nil, err
	}
	defer clear(k.Credential)
	aead, err := approvalCipher(k.Credential)
	if err != nil {
		return nil, err
	}
	inner, err := json.Marshal(document)
	if err != nil {
		return nil, err
	}
	return json.Marshal(SealedEnrolment{
		Version: enrolmentVersion, Challenge: challenge,
		// One credential encrypts one message.
		Sealed: aead.Seal(nil, make([]byte, aead.NonceSize()), inner, challenge),
	})
}

func approvalCipher(credential []byte) (cipher.AEAD, error) {
	if len(credential) != credentialLen {
		return nil, ErrActivation
	}
	block, err := aes.NewCipher(credential)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// A Revoked certificate was signed by a root and has been revoked.
type Revoked struct {
	Serial *big.Int
	At     time.Time
}

// RevocationList signs the list of all certificates taken back. Number counts
// the lists up.
func (a Authority) RevocationList(revoked []Revoked, number int64, now, next time.Time) ([]byte, error) {
	template := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: now, NextUpdate: next}
	for _, r := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: r.Serial, RevocationTime: r.At})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.Root, a.Signer)
	if err != nil {
		return nil, fmt.Errorf("signing a revocation list: %w", err)
	}
	return der, nil
}

// caTemplate is a CA of a trust domain: its name constraint holds all SPIFFE
// IDs below it to the domain (X509-SVID, 4.2). It says nothing of DNS names: who trusts
// the root for those trusts every host below it for all of them.
func caTemplate(td spiffeid.TrustDomain, key crypto.PublicKey, now time.Time, life time.Duration) *x509.Certificate {
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] &= 0x7f
	return &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(life),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: td.Name()}}, // X509-SVID, 3.2
		PermittedURIDomains:   []string{td.Name()},
		// Some verifiers, Go's among them, let a host stand for its subdomains
		// too, which RFC 5280, 4.2.1.10, does not.
		ExcludedURIDomains:          []string{"." + td.Name()},
		PermittedDNSDomainsCritical: true, // the constraint as a whole
		SubjectKeyId:                keyID(key),
	}
}

// keyID is the SHA-256 digest of the key, cut to 20 bytes (RFC 7093, 2).
func keyID(key crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil // signing the certificate reports the key
	}
	d := sha256.Sum256(der)
	return d[:20]
}

func signCA(template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func trustDomainOf(c *x509.Certificate) (spiffeid.TrustDomain, error) {
	if c == nil || len(c.URIs) != 1 || len(c.URIs[0].Path) > 0 {
		return spiffeid.TrustDomain{}, errors.New("the certificate does not name one trust domain")
	}
	id, err := spiffeid.FromURI(c.URIs[0])
	if err != nil {
		return spiffeid.TrustDomain{}, err
	}
	return id.TrustDomain(), nil
}

// checkCSR checks that the certificate request is the node key's own and asks
// for the trust domain. Nothing else in it is looked at.
func (r request) checkCSR(td spiffeid.TrustDomain, key *ecdsa.PublicKey) error {
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return fmt.Errorf("certificate request: %w", err)
	}
	if !key.Equal(csr.PublicKey) {
		return fmt.Errorf("certificate request: %w", ErrKey)
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != td.IDString() {
		return fmt.Errorf("certificate request: it is not for %s", td.IDString())
	}
	return nil
}

var oidNameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30}

// constrained reports whether a certificate is a CA for this trust domain and
// no other, critically.
func constrained(c *x509.Certificate, td spiffeid.TrustDomain) bool {
	critical := false
	for _, e := range c.Extensions {
		critical = critical || e.Id.Equal(oidNameConstraints) && e.Critical
	}
	return critical && c.IsCA && slices.Equal(c.PermittedURIDomains, []string{td.Name()}) &&
		slices.Contains(c.ExcludedURIDomains, "."+td.Name())
}

// VerifyEnrolment verifies that a chain, the node's CA certificate first, leads
// to the root and makes nodeKey a CA of the trust domain that may have issuing
// CAs below it.
func VerifyEnrolment(chain []*x509.Certificate, root *x509.Certificate, td spiffeid.TrustDomain, nodeKey *ecdsa.PublicKey, now time.Time) error {
	fail := func(reason string) error { return fmt.Errorf("verifying the enrolment: %s", reason) }
	if len(chain) == 0 || root == nil {
		return fail("there is no certificate")
	}
	c := chain[0]
	switch named, err := trustDomainOf(c); {
	case !nodeKey.Equal(c.PublicKey):
		return fail("the certificate is for another key than the node's")
	case err != nil || named != td:
		return fail("the certificate is not for trust domain " + td.Name())
	case !constrained(c, td):
		return fail("the certificate is not constrained to trust domain " + td.Name())
	case c.MaxPathLen != 1 || c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fail("the certificate does not allow exactly one level of issuing CAs")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, b := range chain[1:] {
		between.AddCert(b)
	}
	_, err := c.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("verifying the enrolment: %w", err)
	}
	if bytes.Equal(c.Raw, root.Raw) {
		return fail("the certificate is the root's own")
	}
	return nil
}
