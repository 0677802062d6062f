package foreign

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/exp/bundle/witbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
)

const (
	// MaxDocument bounds a bundle's document, in bytes. It keeps an answer of the Workload
	// API with several bundles below what gRPC's clients take, which is 4 MiB.
	MaxDocument = 256 << 10
	maxKeyID    = 256 // bytes of a kid
	minRSA      = 2048
)

var (
	errDocument = errors.New("not a SPIFFE bundle")
	errOther    = errors.New("the bundle is another trust domain's")
)

// A Bundle is what verifies SVIDs of another trust domain. It does not change.
type Bundle struct {
	TrustDomain spiffeid.TrustDomain
	Sequence    uint64        // 0 also where the document has none (Trust Domain and Bundle §4.1.1)
	Hint        time.Duration // how often to look for the next; 0: not said (§4.1.2)
	Roots       []*x509.Certificate
	X509        []byte // Roots, DER, concatenated (Workload API §5.2.2)
	JWKS        []byte // RFC 7517, keys of use jwt-svid only (Workload API §6.2.2)
	Keys        int    // in JWKS
	WITKeys     []byte // RFC 7517, keys of use wit-svid only; nil: there are none
	JWT         *jwtbundle.Bundle
	WIT         *witbundle.Bundle
	Digest      [32]byte // over roots and keys, whatever their order

	document  []byte // as it came
	sequenced bool   // the document has a sequence
}

// Empty reports whether nothing of the trust domain is to be trusted: it has withdrawn
// all its keys, or has none that is known here (Trust Domain and Bundle §4.1.3).
func (b *Bundle) Empty() bool { return len(b.Roots) == 0 && b.Keys == 0 && b.WITKeys == nil }

func (b *Bundle) x509Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(b.TrustDomain, b.Roots)
}

// ReadBundle reads a domain's bundle file. One that says to trust nothing is no bundle to
// begin with.
func ReadBundle(d Domain) (*Bundle, error) {
	document, err := config.ReadFile(d.File)
	if err != nil {
		return nil, err
	}
	b, err := ParseBundle(d.TrustDomain, document)
	if err == nil && b.Empty() {
		err = fmt.Errorf("%w: it holds no key; remove the trust domain if it is not to be trusted", errDocument)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.File, err)
	}
	return b, nil
}

// ParseBundle reads a bundle in the SPIFFE format (Trust Domain and Bundle §4). What that
// has to be ignored is ignored: unknown parameters, key types and uses. Anything else
// that is wrong refuses the whole document, since a root left out would show as peers
// that are refused for no reason.
//
// go-spiffe's parser is not used: it refuses entries that have to be ignored, and takes
// private and symmetric keys.
func ParseBundle(td spiffeid.TrustDomain, document []byte) (*Bundle, error) {
	if len(document) > MaxDocument {
		return nil, fmt.Errorf("%w: it has more than %d bytes", errDocument, MaxDocument)
	}
	var doc struct {
		Keys     *[]json.RawMessage `json:"keys"`
		Sequence *uint64            `json:"spiffe_sequence"`
		Hint     *int64             `json:"spiffe_refresh_hint"`
	}
	// go-jose's JSON takes names as they are written, and each once.
	if err := json.Unmarshal(document, &doc); err != nil {
		return nil, fmt.Errorf("%w: %v", errDocument, err)
	}
	if doc.Keys == nil {
		return nil, fmt.Errorf("%w: it has no keys (Trust Domain and Bundle §4.1.3)", errDocument)
	}
	b := &Bundle{TrustDomain: td, JWT: jwtbundle.New(td), WIT: witbundle.New(td), document: document}
	if doc.Sequence != nil {
		b.Sequence, b.sequenced = *doc.Sequence, true
	}
	if doc.Hint != nil {
		b.Hint = time.Duration(min(max(*doc.Hint, 1), int64(maxInterval/time.Second))) * time.Second
	}
	var keys keys
	for i, raw := range *doc.Keys {
		if err := b.key(raw, &keys); err != nil {
			return nil, fmt.Errorf("key %d of the bundle: %w", i+1, err)
		}
	}
	return b, b.complete(keys)
}

// keys are those of a document, by what they verify.
type keys struct{ jwt, wit []jose.JSONWebKey }

// key takes one element of the document.
func (b *Bundle) key(raw []byte, keys *keys) error {
	var k struct {
		Type string   `json:"kty"`
		Use  string   `json:"use"`
		X5C  []string `json:"x5c"`
	}
	if err := json.Unmarshal(raw, &k); err != nil {
		return fmt.Errorf("%w: %v", errDocument, err)
	}
	switch {
	case k.Use == "x509-svid" && len(k.X5C) > 0: // X509-SVID §6.2
		if k.Type == "EC" || k.Type == "RSA" || k.Type == "OKP" {
			return b.root(k.X5C[0])
		}
	case k.Type != "EC" && k.Type != "RSA": // JWT-SVID §2.1, WIT-SVID §2.1
	case k.Use == "jwt-svid":
		return tokenKey(raw, k.Use, &keys.jwt)
	case k.Use == "wit-svid":
		return tokenKey(raw, k.Use, &keys.wit)
	}
	return nil // §4.2.1, §4.2.2
}

func (b *Bundle) root(x5c string) error {
	der, err := base64.StdEncoding.DecodeString(x5c)
	if err != nil {
		return fmt.Errorf("%w: x5c: %v", errDocument, err)
	}
	cert, err := x509.ParseCertificate(der)
	switch {
	case err != nil:
		return fmt.Errorf("%w: x5c: %v", errDocument, err)
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return fmt.Errorf("%w: its certificate signs none (X509-SVID §4.1)", errDocument)
	}
	for _, uri := range cert.URIs { // a root may be an SVID itself (X509-SVID §3.2)
		if id, err := spiffeid.FromURI(uri); err == nil && id.TrustDomain() != b.TrustDomain {
			return fmt.Errorf("%w: its root is of %s", errOther, id.TrustDomain())
		}
	}
	if !slices.ContainsFunc(b.Roots, cert.Equal) {
		b.Roots = append(b.Roots, cert)
	}
	return nil
}

func tokenKey(raw []byte, use string, keys *[]jose.JSONWebKey) error {
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON(raw); err != nil {
		if errors.Is(err, jose.ErrUnsupportedKeyType) {
			return nil // a curve that is not known here
		}
		return fmt.Errorf("%w: %v", errDocument, err)
	}
	switch {
	case k.KeyID == "" || len(k.KeyID) > maxKeyID:
		return fmt.Errorf("%w: a key of use %s needs a kid of at most %d bytes (JWT-SVID §6.1, WIT-SVID §6.1)", errDocument, use, maxKeyID)
	case !k.IsPublic() || !k.Valid():
		return fmt.Errorf("%w: it is no valid public key", errDocument)
	case tooWeak(k.Key):
		return fmt.Errorf("%w: its RSA key has fewer than %d bits", errDocument, minRSA)
	case slices.ContainsFunc(*keys, func(o jose.JSONWebKey) bool { return o.KeyID == k.KeyID }):
		return fmt.Errorf("%w: its kid is that of another key", errDocument)
	}
	// Nothing else that came with it is handed on.
	*keys = append(*keys, jose.JSONWebKey{Key: k.Key, KeyID: k.KeyID, Use: use})
	return nil
}

func tooWeak(key crypto.PublicKey) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() < minRSA
	case *ecdsa.PublicKey:
		return false
	}
	return true
}

// complete makes what follows from roots and keys, in an order of its own: that of the
// document says nothing, and changes with some endpoints at every request.
func (b *Bundle) complete(keys keys) (err error) {
	slices.SortFunc(b.Roots, func(x, y *x509.Certificate) int { return bytes.Compare(x.Raw, y.Raw) })
	for _, r := range b.Roots {
		b.X509 = append(b.X509, r.Raw...)
	}
	b.Keys = len(keys.jwt)
	if b.JWKS, err = jwks(keys.jwt); err != nil {
		return err
	}
	for _, k := range keys.jwt {
		if err := b.JWT.AddJWTAuthority(k.KeyID, k.Key); err != nil {
			return fmt.Errorf("%w: %v", errDocument, err)
		}
	}
	if len(keys.wit) > 0 {
		if b.WITKeys, err = jwks(keys.wit); err != nil {
			return err
		}
	}
	for _, k := range keys.wit {
		if err := b.WIT.AddWITAuthority(k.KeyID, k.Key); err != nil {
			return fmt.Errorf("%w: %v", errDocument, err)
		}
	}
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b.X509))))
	h.Write(b.X509)
	h.Write(b.JWKS)
	h.Write(b.WITKeys) // one document of JSON after another is no longer one
	b.Digest = [32]byte(h.Sum(nil))
	return nil
}

func jwks(keys []jose.JSONWebKey) ([]byte, error) {
	slices.SortFunc(keys, func(x, y jose.JSONWebKey) int { return cmp.Compare(x.KeyID, y.KeyID) })
	if keys == nil {
		keys = []jose.JSONWebKey{} // not null
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errDocument, err)
	}
	return set, nil
}
