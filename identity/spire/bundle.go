package spire

import (
	"cmp"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/exp/bundle/witbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/foreign"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

const (
	maxRoots = 64
	maxKeys  = 256 // of JWT-SVIDs, and as many of WIT-SVIDs
	maxKeyID = 64  // bytes of an ID in records; longer ones go by their digest
)

// A bundle is the trust domain's, as the server has it. It does not change.
type bundle struct {
	*identity.Bundle
	roots       *x509bundle.Bundle
	wit         *witbundle.Bundle
	authorities []Authority // by ID
	hint        time.Duration
	raw         *spirev1.Bundle
}

// parseBundle reads the server's bundle of the trust domain. Anything that is wrong refuses
// the whole: an authority left out would show as peers that are refused for no reason.
func parseBundle(td spiffeid.TrustDomain, b *spirev1.Bundle) (*bundle, error) {
	name, err := spiffeid.TrustDomainFromString(b.GetTrustDomain())
	switch {
	case err != nil || name != td:
		return nil, fmt.Errorf("the bundle is of trust domain %.80q and not of %s", b.GetTrustDomain(), td.Name())
	case len(b.X509Authorities) == 0:
		return nil, errors.New("the bundle has no X.509 authority, so it verifies nobody")
	}
	if err := bounded(b); err != nil {
		return nil, err
	}
	out := &bundle{roots: x509bundle.New(td), hint: time.Duration(min(max(b.RefreshHint, 0), 1<<20)) * time.Second, raw: b}
	for _, a := range b.X509Authorities {
		c, err := x509.ParseCertificate(a.Asn1)
		if err != nil {
			return nil, fmt.Errorf("an X.509 authority of the bundle: %w", err)
		}
		out.roots.AddX509Authority(c)
		out.authorities = append(out.authorities, Authority{
			TrustDomain: td.Name(), ID: authorityID(c), SHA256: digest(c.Raw), Certificate: c.Raw,
			PublicKey: c.RawSubjectPublicKeyInfo, NotAfter: c.NotAfter, Tainted: a.Tainted,
		})
	}
	keys, err := addKeys(out, td, b.JwtAuthorities, false)
	if err != nil {
		return nil, err
	}
	witKeys, err := addKeys(out, td, b.WitAuthorities, true)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out.authorities, func(x, y Authority) int { return cmp.Compare(x.ID, y.ID) })
	out.Bundle, err = identity.NewBundle(td, b.SequenceNumber, out.roots.X509Authorities(), keys)
	if err != nil {
		return nil, err
	}
	if err := out.SetWITKeys(witKeys); err != nil {
		return nil, err
	}
	if out.wit = witbundle.New(td); out.WITKeys != nil {
		out.wit, err = witbundle.Parse(td, out.WITKeys)
	}
	out.Tainted = out.ids(func(a Authority) bool { return a.Tainted })
	return out, err
}

// bounded refuses a bundle that is too large to be one.
func bounded(b *spirev1.Bundle) error {
	if n, jwt, wit := len(b.X509Authorities), len(b.JwtAuthorities), len(b.WitAuthorities); n > maxRoots || max(jwt, wit) > maxKeys {
		return fmt.Errorf("the bundle of %s has %d X.509, %d JWT and %d WIT authorities, more than %d, %d and %d", b.GetTrustDomain(), n, jwt, wit, maxRoots, maxKeys, maxKeys)
	}
	return nil
}

// A tokenKey is a key of JWT-SVIDs or of WIT-SVIDs.
type tokenKey interface {
	*spirev1.JWTKey | *spirev1.WITKey
	GetPublicKey() []byte
	GetKeyId() string
	GetExpiresAt() int64
	GetTainted() bool
}

func addKeys[K tokenKey](b *bundle, td spiffeid.TrustDomain, list []K, wit bool) (keys []identity.JWTAuthority, err error) {
	for _, k := range list {
		id := k.GetKeyId()
		public, err := x509.ParsePKIXPublicKey(k.GetPublicKey())
		if err != nil || id == "" {
			return nil, fmt.Errorf("authority %.80q of the bundle has no ID, or no key that can be read: %w", id, err)
		}
		if slices.ContainsFunc(b.authorities, func(a Authority) bool { return a.Certificate == nil && a.ID == keyID(id) }) {
			return nil, fmt.Errorf("two authorities of the bundle have the ID %.80q", id)
		}
		keys = append(keys, identity.JWTAuthority{ID: id, Key: public})
		b.authorities = append(b.authorities, Authority{
			TrustDomain: td.Name(), ID: keyID(id), SHA256: digest(k.GetPublicKey()), PublicKey: k.GetPublicKey(), WIT: wit,
			NotAfter: seconds(k.GetExpiresAt()), Tainted: k.GetTainted(),
		})
	}
	return keys, nil
}

// ids returns those of some authorities, sorted.
func (b *bundle) ids(of func(Authority) bool) (ids []string) {
	for _, a := range b.authorities {
		if of(a) {
			ids = append(ids, a.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// has reports whether one of the certificates is among its authorities.
func (b *bundle) has(roots []*x509.Certificate) bool {
	return slices.ContainsFunc(roots, b.roots.HasX509Authority)
}

func (b *bundle) tainted(id string) bool { return slices.Contains(b.Tainted, id) }

// change is what records say of the bundle.
func (b *bundle) change(td spiffeid.TrustDomain) BundleChange {
	h := sha256.New()
	for _, a := range b.authorities {
		fmt.Fprintf(h, "%q %s %t\n", a.ID, a.SHA256, a.Tainted)
	}
	return BundleChange{
		TrustDomain: td.Name(), Sequence: b.Sequence, SHA256: hex.EncodeToString(h.Sum(nil)),
		X509:    b.ids(func(a Authority) bool { return a.Certificate != nil }),
		Keys:    b.ids(func(a Authority) bool { return a.Certificate == nil }),
		Tainted: b.Tainted,
	}
}

// parseForeign reads the server's bundle of another trust domain.
func parseForeign(td spiffeid.TrustDomain, b *spirev1.Bundle) (*foreign.Bundle, error) {
	if name, err := spiffeid.TrustDomainFromString(b.GetTrustDomain()); err != nil || name != td {
		return nil, fmt.Errorf("the bundle is of trust domain %.80q and not of %s", b.GetTrustDomain(), td.Name())
	}
	if err := bounded(b); err != nil {
		return nil, err
	}
	out := spiffebundle.New(td)
	out.SetSequenceNumber(b.SequenceNumber)
	for _, a := range b.X509Authorities {
		c, err := x509.ParseCertificate(a.Asn1)
		if err != nil {
			return nil, fmt.Errorf("an X.509 authority of %s: %w", td.Name(), err)
		}
		out.AddX509Authority(c)
	}
	if err := foreignKeys(b.JwtAuthorities, out.AddJWTAuthority); err != nil {
		return nil, fmt.Errorf("the bundle of %s: %w", td.Name(), err)
	}
	if err := foreignKeys(b.WitAuthorities, out.AddWITAuthority); err != nil {
		return nil, fmt.Errorf("the bundle of %s: %w", td.Name(), err)
	}
	document, err := out.Marshal()
	if err != nil {
		return nil, err
	}
	return foreign.ParseBundle(td, document)
}

// authorityID names an X.509 authority.
func authorityID(c *x509.Certificate) string {
	if len(c.SubjectKeyId) > 0 && len(c.SubjectKeyId) <= maxKeyID/2 {
		return hex.EncodeToString(c.SubjectKeyId)
	}
	return digest(c.RawSubjectPublicKeyInfo)
}

// keyID names an authority of JWT-SVIDs or WIT-SVIDs.
func keyID(kid string) string {
	if len(kid) <= maxKeyID {
		return kid
	}
	return digest([]byte(kid))
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// seconds reads a time of the server's; 0 is none.
func seconds(s int64) time.Time {
	if s <= 0 {
		return time.Time{}
	}
	return time.Unix(s, 0)
}

// foreignKeys adds what verifies tokens of one kind.
func foreignKeys[K tokenKey](list []K, add func(string, crypto.PublicKey) error) error {
	for _, k := range list {
		public, err := x509.ParsePKIXPublicKey(k.GetPublicKey())
		if err == nil {
			err = add(k.GetKeyId(), public)
		}
		if err != nil {
			return fmt.Errorf("authority %.80q: %w", k.GetKeyId(), err)
		}
	}
	return nil
}
