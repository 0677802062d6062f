// Package enrol is an organisation's root CA: it keeps the root key of a trust
// domain, approves hosts whose evidence satisfies a policy, remembers which it
// signed a certificate for, and revokes them.
//
// It relies on package attest/node to judge evidence and to encrypt an approval
// to the one TPM that asked for it, and on the directory it is given, which one
// process at a time owns. It needs no daemon and no network. What it signed is
// saved before it is handed out, so the list of hosts may tell of a certificate
// that nobody received, never the other way round.
//
// Who may approve is not its business: whoever has the directory and the
// passphrase, or the TPM, is the organisation.
package enrol

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/state"
)

// Files in a root's directory.
const (
	rootFile   = "authority"     // description
	keyFile    = "authority-key" // PKCS #8, encrypted with age
	issuedFile = "issued"        // []Host
	rootForm   = 1

	rootCertificate = "root.pem"
	revocationList  = "revoked.crl"
)

// description is what the directory says of a root.
type description struct {
	TrustDomain string `json:"trust_domain"`
	Root        []byte `json:"root"`          // DER
	Key         string `json:"key"`           // KeyAge or KeyTPM
	TPM         string `json:"tpm,omitempty"` // address
	Lists       int64  `json:"lists"`         // revocation lists signed so far
}

// A Host is a certificate that was signed for a host.
type Host struct {
	Serial   string    `json:"serial"` // hexadecimal
	Hostname string    `json:"hostname"`
	Agent    bool      `json:"agent,omitempty"` // by it the host joins a SPIRE server; otherwise it is a CA
	EKSHA256 string    `json:"ek_sha256"`
	AKName   string    `json:"ak_name"`
	Evidence string    `json:"evidence_sha256"`
	Approved time.Time `json:"approved"`
	NotAfter time.Time `json:"not_after"`
	Revoked  time.Time `json:"revoked,omitzero"`
}

// Valid reports whether the host can use the certificate.
func (h Host) Valid(now time.Time) bool { return h.Revoked.IsZero() && now.Before(h.NotAfter) }

func (h Host) serial() (*big.Int, bool) { return new(big.Int).SetString(h.Serial, 16) }

// A Root is an organisation's root CA: its open directory, and the key while
// something is signed. It is not safe for concurrent use.
type Root struct {
	path       string
	dir        *state.Dir
	meta       description
	cert       *x509.Certificate
	issued     []Host
	passphrase Passphrase
}

// A Passphrase returns that of the root key. It is asked each time the key is
// needed, if the key is in a file.
type Passphrase func() (string, error)

// A Plan is the root to create.
type Plan struct {
	TrustDomain spiffeid.TrustDomain
	Life        time.Duration // of the root certificate
	TPM         string        // address of the TPM that keeps the key; empty: a file
	Passphrase  Passphrase    // of that file
	Now         time.Time
}

// Create creates a root in a directory that has none.
func Create(ctx context.Context, path string, p Plan) (*Root, error) {
	dir, err := state.Open(path)
	if err != nil {
		return nil, err
	}
	r := &Root{path: path, dir: dir, issued: []Host{}, passphrase: p.Passphrase}
	if err := r.create(ctx, p); err != nil {
		dir.Close()
		return nil, err
	}
	return r, nil
}

func (r *Root) create(ctx context.Context, p Plan) error {
	if _, _, err := r.dir.Load(rootFile, rootForm); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s already holds a root CA; name another directory with --dir", r.path)
	}
	r.meta = description{TrustDomain: p.TrustDomain.Name(), Key: KeyAge, TPM: p.TPM}
	if p.TPM != "" {
		r.meta.Key = KeyTPM
	}
	signer, done, err := r.makeKey(ctx)
	if err != nil {
		return err
	}
	defer done()
	authority, err := appraisal.NewAuthority(signer, p.TrustDomain, p.Now, p.Life)
	if err != nil {
		return err
	}
	r.cert, r.meta.Root = authority.Root, authority.Root.Raw
	if err := r.saveIssued(); err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.cert.Raw})
	if err := state.ReplaceFileDurably(r.dir.Path(rootCertificate), text, state.Mode(0o644)); err != nil {
		return err
	}
	return r.saveMeta() // last: nothing saved before it counts until it is there
}

// ErrNone means that a directory holds no root.
var ErrNone = errors.New("no root CA")

// Open opens a root's directory, which no other process can do until it is
// closed. The passphrase may be nil for what needs no key.
func Open(path string, passphrase Passphrase) (*Root, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s", ErrNone, path)
	}
	dir, err := state.Open(path)
	if errors.Is(err, state.ErrInUse) {
		return nil, fmt.Errorf("the root CA in %s is in use by another vouch; wait until it ends: %w", path, err)
	}
	if err != nil {
		return nil, err
	}
	r := &Root{path: path, dir: dir, passphrase: passphrase}
	if err := r.load(); err != nil {
		dir.Close()
		return nil, err
	}
	return r, nil
}

func (r *Root) load() error {
	data, _, err := r.dir.Load(rootFile, rootForm)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in %s", ErrNone, r.path)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &r.meta); err != nil {
		return fmt.Errorf("reading %s: %w", r.dir.Path(rootFile), err)
	}
	if r.cert, err = x509.ParseCertificate(r.meta.Root); err != nil {
		return fmt.Errorf("reading %s: %w", r.dir.Path(rootFile), err)
	}
	if data, _, err = r.dir.Load(issuedFile, rootForm); err != nil {
		return err
	}
	if err := json.Unmarshal(data, &r.issued); err != nil {
		return fmt.Errorf("reading %s: %w", r.dir.Path(issuedFile), err)
	}
	return nil
}

// Close lets another process open the directory.
func (r *Root) Close() error { return r.dir.Close() }

func (r *Root) saveMeta() error { return r.save(rootFile, r.meta) }

func (r *Root) saveIssued() error { return r.save(issuedFile, r.issued) }

func (r *Root) save(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return r.dir.Save(name, rootForm, data)
}

// TrustDomain is the name of the trust domain.
func (r *Root) TrustDomain() string { return r.meta.TrustDomain }

// Certificate is the root certificate, and CertificateFile where it is in PEM.
func (r *Root) Certificate() *x509.Certificate { return r.cert }

// CertificateFile is the path of the root certificate in PEM.
func (r *Root) CertificateFile() string { return r.dir.Path(rootCertificate) }

// SHA256 is the digest of the root certificate (DER) in hexadecimal, by which
// hosts know it.
func (r *Root) SHA256() string { return fmt.Sprintf("%x", sha256.Sum256(r.cert.Raw)) }

// KeyPlace says where the root key is: KeyAge or KeyTPM.
func (r *Root) KeyPlace() string { return r.meta.Key }

// Hosts returns every certificate that was signed for a host.
func (r *Root) Hosts() []Host { return r.issued }

// host returns the certificate with a serial number.
func (r *Root) host(serial string) (*Host, error) {
	for i := range r.issued {
		if strings.EqualFold(r.issued[i].Serial, serial) {
			return &r.issued[i], nil
		}
	}
	return nil, fmt.Errorf("no certificate has serial number %.64q; see vouch authority list", serial)
}

// namesake returns a valid certificate of another machine with the name of h, of its kind.
func (r *Root) namesake(h Host, now time.Time) *Host {
	for i := range r.issued {
		if other := &r.issued[i]; other.Hostname == h.Hostname && other.Agent == h.Agent && other.EKSHA256 != h.EKSHA256 && other.Valid(now) {
			return other
		}
	}
	return nil
}
