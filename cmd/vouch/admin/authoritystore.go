package admin

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/state"
)

// Files in an authority's directory.
const (
	authorityFile = "authority"     // authorityMeta
	authorityKey  = "authority-key" // PKCS #8, encrypted with age
	issuedFile    = "issued"        // []enrolled
	authorityForm = 1
)

// An authorityMeta is what an authority is.
type authorityMeta struct {
	TrustDomain string `json:"trust_domain"`
	Root        []byte `json:"root"`          // DER
	Key         string `json:"key"`           // keyAge or keyTPM
	TPM         string `json:"tpm,omitempty"` // address
	Lists       int64  `json:"lists"`         // revocation lists signed so far
}

// An enrolled is a certificate that was signed for a host.
type enrolled struct {
	Serial   string    `json:"serial"` // hexadecimal
	Hostname string    `json:"hostname"`
	EKSHA256 string    `json:"ek_sha256"`
	AKName   string    `json:"ak_name"`
	Evidence string    `json:"evidence_sha256"`
	Approved time.Time `json:"approved"`
	NotAfter time.Time `json:"not_after"`
	Revoked  time.Time `json:"revoked,omitzero"`
}

func (n *enrolled) serial() (*big.Int, bool) { return new(big.Int).SetString(n.Serial, 16) }

// valid reports whether a host can use the certificate.
func (n *enrolled) valid(now time.Time) bool { return n.Revoked.IsZero() && now.Before(n.NotAfter) }

func (n *enrolled) standing(now time.Time) string {
	switch {
	case !n.Revoked.IsZero():
		return "revoked " + cli.Time(n.Revoked)
	case !n.valid(now):
		return "expired " + cli.Time(n.NotAfter)
	}
	return "until " + cli.Time(n.NotAfter)
}

// An authorityStore is an open authority's directory.
type authorityStore struct {
	command *authorityCommand
	dir     *state.Dir
	meta    authorityMeta
	root    *x509.Certificate
	issued  []enrolled
}

func (s *authorityStore) close() { s.dir.Close() }

// create makes an authority in a directory that has none.
func (a *authorityCommand) create(cmd *cobra.Command, td spiffeid.TrustDomain, tpm string, life time.Duration) (*authorityStore, error) {
	dir, err := state.Open(a.dir)
	if err != nil {
		return nil, err
	}
	s := &authorityStore{command: a, dir: dir, issued: []enrolled{}}
	if err := s.create(cmd, td, tpm, life); err != nil {
		dir.Close()
		return nil, err
	}
	return s, nil
}

func (s *authorityStore) create(cmd *cobra.Command, td spiffeid.TrustDomain, tpm string, life time.Duration) error {
	if _, _, err := s.dir.Load(authorityFile, authorityForm); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds an authority already; name another directory with --dir", s.command.dir)
	}
	s.meta = authorityMeta{TrustDomain: td.Name(), Key: keyAge, TPM: tpm}
	if tpm != "" {
		s.meta.Key = keyTPM
	}
	signer, done, err := s.makeKey(cmd)
	if err != nil {
		return err
	}
	defer done()
	authority, err := appraisal.NewAuthority(signer, td, time.Now(), life)
	if err != nil {
		return err
	}
	s.root, s.meta.Root = authority.Root, authority.Root.Raw
	if err := s.saveIssued(); err != nil {
		return err
	}
	if err := state.ReplaceFileDurably(s.dir.Path("root.pem"), cli.PEM([]*x509.Certificate{s.root}), state.Mode(0o644)); err != nil {
		return err
	}
	return s.saveMeta() // last: what was saved before is of no use without it
}

// open opens the authority's directory, which nobody else then can.
func (a *authorityCommand) open() (*authorityStore, error) {
	if _, err := os.Stat(a.dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no authority in %s; name its directory with --dir, or make one with vouch authority init", a.dir)
	}
	dir, err := state.Open(a.dir)
	if errors.Is(err, state.ErrInUse) {
		return nil, fmt.Errorf("another vouch uses the authority in %s; wait until it ends", a.dir)
	}
	if err != nil {
		return nil, err
	}
	s := &authorityStore{command: a, dir: dir}
	if err := s.load(); err != nil {
		dir.Close()
		return nil, err
	}
	return s, nil
}

func (s *authorityStore) load() error {
	data, _, err := s.dir.Load(authorityFile, authorityForm)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no authority in %s; name its directory with --dir, or make one with vouch authority init", s.command.dir)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &s.meta); err != nil {
		return fmt.Errorf("reading %s: %w", s.dir.Path(authorityFile), err)
	}
	if s.root, err = x509.ParseCertificate(s.meta.Root); err != nil {
		return fmt.Errorf("reading %s: %w", s.dir.Path(authorityFile), err)
	}
	if data, _, err = s.dir.Load(issuedFile, authorityForm); err != nil {
		return err
	}
	if err := json.Unmarshal(data, &s.issued); err != nil {
		return fmt.Errorf("reading %s: %w", s.dir.Path(issuedFile), err)
	}
	return nil
}

func (s *authorityStore) saveMeta() error { return s.save(authorityFile, s.meta) }

func (s *authorityStore) saveIssued() error { return s.save(issuedFile, s.issued) }

func (s *authorityStore) save(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.dir.Save(name, authorityForm, data)
}

// find returns the certificate with this serial number.
func (s *authorityStore) find(serial string) (*enrolled, error) {
	for i := range s.issued {
		if strings.EqualFold(s.issued[i].Serial, serial) {
			return &s.issued[i], nil
		}
	}
	return nil, fmt.Errorf("no certificate has serial number %.64q; see vouch authority list", serial)
}

// namesake returns a valid certificate of another machine with this host name.
func (s *authorityStore) namesake(hostname, ek string, now time.Time) *enrolled {
	for i := range s.issued {
		if n := &s.issued[i]; n.Hostname == hostname && n.EKSHA256 != ek && n.valid(now) {
			return n
		}
	}
	return nil
}
