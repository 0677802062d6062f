package spire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
	"github.com/vouchd/vouchd/secret"
)

// A held SVID is one of an entry's that the server has signed.
type held struct {
	svid      *identity.X509SVID
	renew     time.Time // half of its life, or up to a tenth earlier, so that not all come at once
	revision  int64
	createdAt int64
}

// of reports whether it is that of this revision.
func (h *held) of(e *spirev1.Entry) bool {
	return h.revision == e.RevisionNumber && h.createdAt == e.CreatedAt
}

// fits reports whether it says nothing that this revision does not grant, and so is served
// until there is one of the revision itself.
func (h *held) fits(e *spirev1.Entry) bool {
	return h.of(e) || h.createdAt == e.CreatedAt && !slices.ContainsFunc(h.svid.Names.DNS, func(name string) bool {
		return !slices.Contains(e.DnsNames, name)
	})
}

// due reports whether it is to be replaced: at half of its life, or where its authority is
// not to be relied on any more.
func (h *held) due(b *bundle, now time.Time) bool {
	return !now.Before(h.renew) || b.tainted(h.svid.IssuerID)
}

// A request is a key that an SVID is asked for.
type request struct {
	entry *spirev1.Entry
	key   *ecdsa.PrivateKey
	param *spirev1.NewX509SVIDParams
}

func newRequest(e *spirev1.Entry) (*request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), key)
	return &request{e, key, &spirev1.NewX509SVIDParams{EntryId: e.Id, Csr: csr}}, err
}

// take verifies what the server signed for a request.
func (r *request) take(td spiffeid.TrustDomain, b *bundle, result *spirev1.BatchNewX509SVIDResponse_Result, now time.Time) (*held, Signing, error) {
	fail := func(err error) (*held, Signing, error) {
		return nil, Signing{}, fmt.Errorf("the X509-SVID of entry %s: %w", r.entry.Id, err)
	}
	if code := codes.Code(result.GetStatus().GetCode()); code != codes.OK {
		return fail(fmt.Errorf("%s: %s", code, printable(result.GetStatus().GetMessage())))
	}
	chain, v, err := verifyChain(result.GetSvid(), b, now)
	if err != nil {
		return fail(err)
	}
	leaf := chain[0]
	if id, err := x509svid.IDFromCert(leaf); err != nil || id.String() != td.IDString()+r.entry.SpiffeId.GetPath() {
		return fail(fmt.Errorf("it is for %v", id))
	}
	if !r.key.PublicKey.Equal(leaf.PublicKey) {
		return fail(errors.New("it is for another key than this host's"))
	}
	h, err := newHeld(r.entry, chain, r.key, v, rand.Text())
	if err != nil {
		return fail(err)
	}
	return h, Signing{
		ID: h.svid.Server.Signing, Kind: "x509", Entry: r.entry.Id, Revision: r.entry.RevisionNumber, SPIFFEID: h.svid.ID.String(),
		SPKISHA256: digest(leaf.RawSubjectPublicKeyInfo), Serial: h.svid.Serial, SHA256: digest(leaf.Raw), KeyID: v.authority, NotAfter: v.until,
	}, nil
}

// errUnverified is of what the bundle in force does not verify, though a newer one may.
var errUnverified = errors.New("the bundle does not verify it")

// A verified chain leads to an authority of the bundle.
type verified struct {
	authority string
	until     time.Time // when the first of its certificates ends
}

// verifyChain returns a chain that the bundle verifies now, and what it leads to.
func verifyChain(s *spirev1.X509SVID, b *bundle, now time.Time) ([]*x509.Certificate, verified, error) {
	if n := len(s.GetCertChain()); n == 0 || n > 10 {
		return nil, verified{}, fmt.Errorf("it has a chain of %d certificates", n)
	}
	var chain []*x509.Certificate
	for _, der := range s.CertChain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, verified{}, err
		}
		chain = append(chain, c)
	}
	_, paths, err := x509svid.Verify(chain, b.roots, x509svid.WithTime(now))
	if off := beside(chain[0], now); err != nil && off != 0 {
		return nil, verified{}, fmt.Errorf("this machine's clock is %v %s what it is good for; set the clock: %w", off.Abs().Round(time.Second), direction(off), err)
	}
	if err != nil {
		return nil, verified{}, fmt.Errorf("%w: %w", errUnverified, err)
	}
	path := paths[0]
	v := verified{authorityID(path[len(path)-1]), path[0].NotAfter}
	for _, c := range path {
		v.until = earlier(v.until, c.NotAfter)
	}
	return chain, v, nil
}

func newHeld(e *spirev1.Entry, chain []*x509.Certificate, key *ecdsa.PrivateKey, v verified, signing string) (*held, error) {
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var raw []byte
	for _, c := range chain {
		raw = append(raw, c.Raw...)
	}
	leaf := chain[0]
	life := v.until.Sub(leaf.NotBefore)
	return &held{
		renew: leaf.NotBefore.Add(life/2 - mathrand.N(life/10+1)),
		svid: &identity.X509SVID{
			ID: id, Chain: raw, Leaf: raw[:len(leaf.Raw)], PrivateKey: secret.Of(pkcs8), Serial: leaf.SerialNumber.Text(16),
			Names:    identity.Names{Common: leaf.Subject.CommonName, DNS: leaf.DNSNames},
			IssuerID: v.authority, NotBefore: leaf.NotBefore, NotAfter: v.until, Server: identity.Server{Signing: signing},
		},
		revision: e.RevisionNumber, createdAt: e.CreatedAt,
	}, nil
}

// A kept SVID is one in the store.
type kept struct {
	Entry     string   `json:"entry"`
	Revision  int64    `json:"revision"`
	CreatedAt int64    `json:"created_at"`
	Chain     [][]byte `json:"chain"`
	Key       []byte   `json:"key"` // PKCS #8
	Signing   string   `json:"signing"`
}

// save keeps an SVID for a start without the server.
func (v *vault) saveSVID(entry string, h *held) error {
	certs, err := x509.ParseCertificates(h.svid.Chain)
	if err != nil {
		return err
	}
	k := kept{Entry: entry, Revision: h.revision, CreatedAt: h.createdAt, Key: h.svid.PrivateKey.Reveal(), Signing: h.svid.Server.Signing}
	for _, c := range certs {
		k.Chain = append(k.Chain, c.Raw)
	}
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return v.save(svidFile(entry), data)
}

// loadSVID returns what is kept of an entry, if the bundle verifies it now; nil: nothing.
func (v *vault) loadSVID(td spiffeid.TrustDomain, e *spirev1.Entry, b *bundle, now time.Time) *held {
	name := svidFile(e.Id)
	data := v.load(name)
	if data == nil {
		return nil
	}
	h, err := func() (*held, error) {
		var k kept
		if err := json.Unmarshal(data, &k); err != nil {
			return nil, err
		}
		chain, v, err := verifyChain(&spirev1.X509SVID{CertChain: k.Chain}, b, now)
		if err != nil {
			return nil, err
		}
		key, err := x509.ParsePKCS8PrivateKey(k.Key)
		if err != nil {
			return nil, err
		}
		private, ok := key.(*ecdsa.PrivateKey)
		if !ok || !private.PublicKey.Equal(chain[0].PublicKey) || k.Entry != e.Id {
			return nil, errors.New("it is not this entry's, or its key is another")
		}
		h, err := newHeld(&spirev1.Entry{RevisionNumber: k.Revision, CreatedAt: k.CreatedAt}, chain, private, v, k.Signing)
		if err == nil && h.svid.ID.String() != td.IDString()+e.SpiffeId.GetPath() {
			err = fmt.Errorf("it is for %s, and the entry for another", h.svid.ID)
		}
		return h, err
	}()
	if err != nil {
		v.logger.Info("an X509-SVID that is kept is not served any more", "entry", e.Id, "err", err)
		return nil
	}
	return h
}

// A heldToken is what decides whether a token that the server has signed is given again.
type heldToken struct {
	id              spiffeid.ID
	key             string // of the authority that signed it
	issued, expires time.Time
	revision        int64 // of the entry
	createdAt       int64
}

// fresh reports whether half of its life is still to come.
func (h *heldToken) fresh(now time.Time) bool {
	return now.Before(h.issued.Add(h.expires.Sub(h.issued) / 2))
}

// valid reports whether it is one of the entry's that verifies now.
func (h *heldToken) valid(e *spirev1.Entry, id spiffeid.ID, b *bundle, now time.Time) bool {
	return now.Before(h.expires) && h.createdAt == e.CreatedAt && h.id == id && !b.tainted(h.key)
}

// suffices reports whether one that is valid is given without asking the server for the next.
func (h *heldToken) suffices(e *spirev1.Entry, conn *connection, offline bool, now time.Time) bool {
	return conn == nil || h.revision == e.RevisionNumber && (h.fresh(now) || offline)
}

// A heldJWT is a JWT-SVID that the server has signed.
type heldJWT struct {
	heldToken
	svid      *identity.JWTSVID
	entry     string // its ID
	algorithm string
}

// takeJWT verifies a token that the server signed.
func takeJWT(e *spirev1.Entry, id spiffeid.ID, audience []string, s *spirev1.JWTSVID, b *bundle, now time.Time) (*heldJWT, Signing, error) {
	fail := func(err error) (*heldJWT, Signing, error) {
		return nil, Signing{}, fmt.Errorf("the JWT-SVID of entry %s: %w", e.Id, err)
	}
	for _, a := range audience {
		valid, err := b.ValidateJWT(s.GetToken(), a)
		if err != nil {
			return fail(fmt.Errorf("%w: %w", errUnverified, err))
		}
		if valid.ID != id || len(valid.Audience) != len(audience) {
			return fail(fmt.Errorf("it is for %s and %d audiences", valid.ID, len(valid.Audience)))
		}
	}
	token, err := jwt.ParseSigned(s.Token, algorithms)
	if err != nil {
		return fail(err)
	}
	var c jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&c); err != nil || c.Expiry == nil { // they were verified above
		return fail(fmt.Errorf("its claims can't be read: %w", err))
	}
	issued := now
	if c.IssuedAt != nil {
		issued = c.IssuedAt.Time()
	}
	if life := c.Expiry.Time().Sub(issued); life <= 0 {
		return fail(fmt.Errorf("it is issued at %s, and ends at %s", issued.Format(time.RFC3339), c.Expiry.Time().Format(time.RFC3339)))
	}
	kid := keyID(token.Headers[0].KeyID)
	h := &heldJWT{
		heldToken: heldToken{id, kid, issued, c.Expiry.Time(), e.RevisionNumber, e.CreatedAt},
		svid: &identity.JWTSVID{
			ID: id, Token: s.Token, JTI: c.ID, KeyID: kid, Audience: slices.Clone(audience),
			ExpiresAt: c.Expiry.Time(), IssuedAt: issued, Server: identity.Server{Signing: rand.Text()},
		},
		entry: e.Id, algorithm: token.Headers[0].Algorithm,
	}
	return h, Signing{
		ID: h.svid.Server.Signing, Kind: "jwt", Entry: e.Id, Revision: e.RevisionNumber, SPIFFEID: id.String(),
		Serial: c.ID, SHA256: digest([]byte(s.Token)), KeyID: h.svid.KeyID, Audience: audience, NotAfter: h.svid.ExpiresAt,
	}, nil
}

// algorithms are what JWT-SVIDs may be signed with (JWT-SVID §2.1).
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512,
}
