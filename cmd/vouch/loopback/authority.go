package loopback

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"
)

// An Authority certifies hosts for one tree of processes. Name constraints (RFC 5280
// §4.2.1.10, critical) keep it to the hosts that it was made for, so that it is of no use for
// others, whoever trusts it. They are in an intermediate certificate as well as in the root,
// since some (Java) look at no constraints of a root; the root's key is gone once it has
// signed that, and the intermediate's is in the memory of the process that has made it. A nil
// Authority has no hosts. Its methods are safe for concurrent use.
type Authority struct {
	hosts  []string
	root   *x509.Certificate
	issuer *x509.Certificate // of leaves
	key    *ecdsa.PrivateKey // the issuer's
	digest string

	mu     sync.Mutex // guards the field below
	leaves map[string]*tls.Certificate
}

const (
	// authorityLife is longer than a tree lives: when the authority ends, so do the
	// connections of those who have read its certificate, and they read it once.
	authorityLife = 365 * 24 * time.Hour
	leafLife      = time.Hour
	clockSkew     = 5 * time.Minute
)

// NewAuthority makes one for hosts, of which there must be one at least.
func NewAuthority(hosts []string) (*Authority, error) {
	if len(hosts) == 0 {
		return nil, errors.New("making a certificate authority: it has no host")
	}
	a := &Authority{hosts: slices.Clone(hosts), leaves: make(map[string]*tls.Certificate)}
	root, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err == nil {
		a.root, err = a.certify("root", &root.PublicKey, nil, root)
	}
	if err == nil {
		a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err == nil {
		a.issuer, err = a.certify("issuer", &a.key.PublicKey, a.root, root)
	}
	if err != nil {
		return nil, fmt.Errorf("making a certificate authority: %w", err)
	}
	sum := sha256.Sum256(a.root.Raw)
	a.digest = hex.EncodeToString(sum[:])
	return a, nil
}

// certify makes the certificate of an authority for the hosts. Without a parent it signs
// itself.
func (a *Authority) certify(part string, public *ecdsa.PublicKey, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	now := time.Now()
	everyIPv4, everyIPv6 := net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	of := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: fmt.Sprintf("vouch exec, process %d, %s", os.Getpid(), part)},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: a.hosts,
		ExcludedIPRanges: []*net.IPNet{&everyIPv4, &everyIPv6},
	}
	of.MaxPathLen = 1
	if parent == nil {
		parent = of
	} else {
		of.MaxPathLen, of.MaxPathLenZero = 0, true
	}
	der, err := x509.CreateCertificate(rand.Reader, of, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return n
}

// Has reports whether the authority certifies a host.
func (a *Authority) Has(host string) bool { return a != nil && slices.Contains(a.hosts, host) }

// Digest returns the SHA-256 of the authority's root in hexadecimal.
func (a *Authority) Digest() string { return a.digest }

// PEM returns the authority's root.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.root.Raw})
}

// misnamed is the host that a client asks for over a connection for another.
type misnamed string

func (m misnamed) Error() string { return fmt.Sprintf("the client asks for %.100q", string(m)) }

// config is that of a server that is taken for the host.
func (a *Authority) config(host string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, SessionTicketsDisabled: true,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if h.ServerName != "" && h.ServerName != host {
				return nil, misnamed(h.ServerName)
			}
			return a.leaf(host)
		},
	}
}

// leaf returns a certificate for a host that is good for half an hour at least.
func (a *Authority) leaf(host string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if l := a.leaves[host]; l != nil && l.Leaf.NotAfter.Sub(now) > leafLife/2 {
		return l, nil
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"vouch exec"}}, DNSNames: []string{host},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.issuer, &a.key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("certifying %s: %w", host, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	l := &tls.Certificate{Certificate: [][]byte{der, a.issuer.Raw}, PrivateKey: a.key, Leaf: leaf}
	a.leaves[host] = l
	return l, nil
}

// systemRoots are where distributions keep the certificates that they trust.
var systemRoots = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Arch
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
	"/etc/ssl/ca-bundle.pem",                            // SUSE
	"/etc/ssl/cert.pem",                                 // Alpine
}

// Bundle returns the certificates that the tree trusts: the authority's, and before it those
// of SSL_CERT_FILE or of the system.
func (a *Authority) Bundle() ([]byte, error) {
	paths := systemRoots
	if p := os.Getenv("SSL_CERT_FILE"); p != "" {
		paths = []string{p}
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		switch {
		case err == nil:
			return append(append(b, '\n'), a.PEM()...), nil
		case !errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("reading the certificates that this machine trusts: %w", err)
		}
	}
	return a.PEM(), nil // the machine trusts none
}

// StorePassword is that of a store for Java, which wants one. It protects nothing: the
// certificates are public.
const StorePassword = "changeit"

// Store returns the certificates of a bundle as Java reads them (PKCS #12). Those that cannot be read are
// left out.
func Store(bundle []byte) ([]byte, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			certs = append(certs, c)
		}
	}
	return pkcs12.Modern2023.EncodeTrustStore(certs, StorePassword)
}
