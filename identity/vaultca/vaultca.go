// Package vaultca has the PKI engine of a Vault or OpenBao make the node key a certificate
// authority of the trust domain, for fleets that have one and no root of their own.
//
// Whoever may sign intermediates there may be everybody in the trust domain, so the server is
// trusted as a root's owner is. The host trusts it for that alone: what comes back has to be
// for the node key, within the trust domain, and lead to the root that the host was given.
package vaultca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/openbao/openbao/api/v2"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential/vault/server"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/secret"
)

// Settings say which server, and as whom to ask it.
type Settings struct {
	Address   string // https://vault.example.org:8200
	Namespace string // empty: none
	CAFile    string // of the server; empty: the machine's roots
	Mount     string // of the PKI engine
	AuthMount string // of the auth method
	Role      string // there
	Life      time.Duration
	Root      *x509.Certificate // of the trust domain; nothing below another is accepted
	Domain    spiffeid.TrustDomain
}

// A Proof is what the node logs in with: one of the two.
type Proof struct {
	Certificate *tls.Certificate                                // of the node key, by the cert auth method
	JWT         func(ctx context.Context) (secret.Bytes, error) // by the jwt auth method
}

// ErrRefused means that the server said no, and will until somebody changes that.
var ErrRefused = errors.New("the server refused")

// Certify has a certificate made for the node key, and returns it with what leads to the root.
// The token of the login is revoked afterwards.
func (s Settings) Certify(ctx context.Context, key crypto.Signer, proof Proof) (identity.Upstream, error) {
	none := identity.Upstream{}
	csr, err := s.request(key)
	if err != nil {
		return none, err
	}
	h := server.HTTP(s.CAFile, proof.Certificate)
	defer h.CloseIdleConnections()
	token, err := s.logIn(ctx, h, proof)
	if err != nil {
		return none, err
	}
	c, err := server.Client(s.Address, s.Namespace, h, token)
	if err != nil {
		return none, err
	}
	defer c.Auth().Token().RevokeSelfWithContext(context.WithoutCancel(ctx), "") // else it ends by itself
	answer, err := c.Logical().WriteWithContext(ctx, s.Mount+"/root/sign-intermediate", map[string]any{
		"csr":                   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		"common_name":           "vouchd node",
		"exclude_cn_from_sans":  true,
		"uri_sans":              s.Domain.IDString(),
		"permitted_uri_domains": s.Domain.Name(), // servers that do not know it leave it out
		"max_path_length":       1,               // for the issuing CA
		"ttl":                   fmt.Sprintf("%ds", int64(s.Life.Seconds())),
		"format":                "pem",
	})
	if err != nil {
		return none, failed("signing the node's certificate", err)
	}
	return s.read(answer, key.Public())
}

// request is a certificate request of the node key.
func (s Settings) request(key crypto.Signer) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{Organization: []string{s.Domain.Name()}, CommonName: "vouchd node"},
		URIs:    []*url.URL{s.Domain.ID().URL()},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return csr, nil
}

func (s Settings) logIn(ctx context.Context, h *http.Client, proof Proof) (string, error) {
	c, err := server.Client(s.Address, s.Namespace, h, "")
	if err != nil {
		return "", err
	}
	with := map[string]any{"name": s.Role}
	if proof.Certificate == nil {
		token, err := proof.JWT(ctx)
		if err != nil {
			return "", err
		}
		with = map[string]any{"role": s.Role, "jwt": string(token.Reveal())}
	}
	answer, err := c.Logical().WriteWithContext(ctx, "auth/"+s.AuthMount+"/login", with)
	switch {
	case err != nil:
		return "", failed("logging in", err)
	case answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "":
		return "", fmt.Errorf("logging in on %s gave no token", s.Address)
	}
	return answer.Auth.ClientToken, nil
}

// failed leaves out the server's words, which may repeat what was sent.
func failed(what string, err error) error {
	e, ok := errors.AsType[*api.ResponseError](err)
	switch {
	case !ok:
		if of, ok := errors.AsType[*url.Error](err); ok { // it has the address before it
			err = of.Err
		}
		return fmt.Errorf("%s: %w", what, err)
	case e.StatusCode >= 400 && e.StatusCode < 500 && e.StatusCode != http.StatusTooManyRequests && e.StatusCode != http.StatusPreconditionFailed:
		return fmt.Errorf("%s: %w with status %d", what, ErrRefused, e.StatusCode)
	}
	return fmt.Errorf("%s: the server failed with status %d", what, e.StatusCode)
}

// maxChain bounds the certificates of an answer.
const maxChain = 8

// read takes the certificates out of an answer.
func (s Settings) read(answer *api.Secret, key crypto.PublicKey) (identity.Upstream, error) {
	none := identity.Upstream{}
	if answer == nil {
		return none, errors.New("signing the node's certificate: the answer is empty")
	}
	var texts []string
	add := func(v any) {
		if text, ok := v.(string); ok {
			texts = append(texts, text)
		}
	}
	add(answer.Data["certificate"])
	if chain, ok := answer.Data["ca_chain"].([]any); ok && len(chain) <= maxChain {
		for _, c := range chain {
			add(c)
		}
	}
	add(answer.Data["issuing_ca"])
	certs, err := parse(strings.Join(texts, "\n"))
	if err != nil {
		return none, fmt.Errorf("signing the node's certificate: %w", err)
	}
	return s.upstream(certs, key, time.Now())
}

// Parse reads an upstream that [Encode] has written, and holds it to what Certify does.
func (s Settings) Parse(text []byte, key crypto.PublicKey, now time.Time) (identity.Upstream, error) {
	certs, err := parse(string(text))
	if err != nil {
		return identity.Upstream{}, err
	}
	return s.upstream(certs, key, now)
}

// Encode returns the certificates as PEM.
func Encode(u identity.Upstream) (text []byte) {
	for _, c := range u.Chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

func parse(text string) (certs []*x509.Certificate, err error) {
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return certs, nil
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, c); len(certs) > 2*maxChain {
			return nil, fmt.Errorf("there are more than %d certificates", 2*maxChain)
		}
	}
}

// upstream holds certificates, the node's first, to what an authority can use: for the node
// key, a CA with room for the issuing CA below it, which names the trust domain if it names
// any, and leads to the root.
func (s Settings) upstream(certs []*x509.Certificate, key crypto.PublicKey, now time.Time) (identity.Upstream, error) {
	fail := func(format string, args ...any) (identity.Upstream, error) {
		return identity.Upstream{}, fmt.Errorf("the node's certificate "+format, args...)
	}
	if len(certs) == 0 {
		return fail("is missing")
	}
	node := certs[0]
	switch of, ok := node.PublicKey.(*ecdsa.PublicKey); {
	case !ok || !of.Equal(key):
		return fail("is for another key")
	case !node.IsCA || !node.BasicConstraintsValid || node.KeyUsage&x509.KeyUsageCertSign == 0:
		return fail("is not one of a CA; the server's role or mount has to sign intermediates")
	case node.MaxPathLenZero:
		return fail("leaves no room for a CA below it; the issuer's path length has to be 2 or more, or none")
	case len(node.URIs) > 1 || len(node.URIs) == 1 && node.URIs[0].String() != s.Domain.IDString():
		return fail("names %v, not trust domain %s (X509-SVID §3.2)", node.URIs, s.Domain)
	case len(node.PermittedURIDomains) > 0 && !slices.Contains(node.PermittedURIDomains, s.Domain.Name()):
		return fail("is constrained to %v, not to trust domain %s", node.PermittedURIDomains, s.Domain)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(s.Root)
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	chains, err := node.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fail("does not lead to the root of root_file: %v", err)
	}
	shortest := slices.MinFunc(chains, func(a, b []*x509.Certificate) int { return len(a) - len(b) })
	return identity.Upstream{Chain: shortest[:len(shortest)-1], Root: s.Root}, nil
}

// Constrained reports whether what is below a node's certificate can be of one trust domain alone.
func Constrained(u identity.Upstream) bool {
	return len(u.Chain) > 0 && len(u.Chain[0].PermittedURIDomains) > 0
}
