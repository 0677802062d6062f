package spire

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
	"github.com/vouchd/vouchd/secret"
)

// A heldWIT is a WIT-SVID that the server has signed.
type heldWIT struct {
	heldToken
	svid *identity.WITSVID
}

func (h *heldWIT) hand(offline bool) *identity.WITSVID {
	svid := *h.svid
	svid.Server.Offline = offline
	return &svid
}

// IssueWIT implements [identity.Issuer]. One is given again, as a JWT-SVID is, to every
// process of the entry.
func (k *Keeper) IssueWIT(ctx context.Context, e identity.Entry) (*identity.WITSVID, error) {
	k.mu.Lock()
	entry, err := k.maySay(e.Server)
	if err == nil && k.bundle.WITKeys == nil {
		err = fmt.Errorf("%w: SPIRE server %s signs no WIT-SVIDs; its feature flag for them is wit-svid", identity.ErrNoAuthority, k.o.Server)
	}
	if err != nil {
		k.mu.Unlock()
		return nil, err
	}
	now, h, conn, b := k.o.Now(), k.wit[e.Server], k.conn, k.bundle
	valid, offline := h != nil && h.valid(entry, e.ID, b, now), k.offline()
	k.mu.Unlock()
	if valid && h.suffices(entry, conn, offline, now) {
		return h.hand(offline), nil
	}
	var failed error
	if conn != nil {
		var next *heldWIT
		if next, failed = k.signWIT(ctx, conn, b, entry, e.ID); failed == nil {
			k.holdWIT(e.Server, next)
			return next.hand(false), nil
		}
	}
	k.nudge()
	if valid {
		return h.hand(true), nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return nil, fmt.Errorf("%w: there is no WIT-SVID of %s: %w", identity.ErrNoAuthority, e.ID, k.why(failed))
}

// holdWIT keeps one to be given again, unless its entry was removed meanwhile.
func (k *Keeper) holdWIT(entry string, h *heldWIT) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.entries.byID[entry] != nil {
		k.wit[entry] = h
	}
}

// signWIT has the server sign one for a fresh key, and records it.
func (k *Keeper) signWIT(ctx context.Context, conn *connection, b *bundle, e *spirev1.Entry, id spiffeid.ID) (*heldWIT, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	s, err := conn.wit(ctx, &spirev1.NewWITSVIDParams{EntryId: e.Id, PublicKey: spki, SigningAlgorithm: string(jose.ES256)})
	if err != nil {
		return nil, err
	}
	h, err := takeWIT(e, id, key, s.GetToken(), b, k.o.Now())
	if errors.Is(err, errUnverified) {
		if next := k.newer(ctx, b); next != b {
			h, err = takeWIT(e, id, key, s.GetToken(), next, k.o.Now())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the WIT-SVID of entry %s: %w", e.Id, err)
	}
	err = k.o.Recorder.Signed(ctx, []Signing{{
		ID: h.svid.Server.Signing, Kind: "wit", Entry: e.Id, Revision: e.RevisionNumber, SPIFFEID: id.String(),
		SPKISHA256: digest(spki), SHA256: digest([]byte(h.svid.Token)), KeyID: h.svid.KeyID, NotAfter: h.svid.ExpiresAt,
	}})
	if err != nil {
		return nil, fmt.Errorf("recording what SPIRE server %s signed: %w", k.o.Server, err)
	}
	return h, nil
}

// takeWIT verifies one that the server signed for a key (WIT-SVID §2 to §5).
func takeWIT(e *spirev1.Entry, id spiffeid.ID, key *ecdsa.PrivateKey, token string, b *bundle, now time.Time) (*heldWIT, error) {
	s, err := witsvid.ParseAndValidate(token, b.wit)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnverified, err)
	}
	if s.ID != id {
		return nil, fmt.Errorf("it is for %s", s.ID)
	}
	if !key.PublicKey.Equal(s.PublicKey) {
		return nil, errors.New("it is for another key than this host's")
	}
	issued, err := issuedAt(token, now)
	if err != nil {
		return nil, err
	}
	if !issued.Before(s.Expiry) {
		return nil, fmt.Errorf("it is issued at %s, and ends at %s", issued.Format(time.RFC3339), s.Expiry.Format(time.RFC3339))
	}
	jwk, err := jose.JSONWebKey{Key: key, Algorithm: string(jose.ES256)}.MarshalJSON()
	if err != nil {
		return nil, err
	}
	kid := keyID(s.KeyID)
	return &heldWIT{
		heldToken: heldToken{id, kid, issued, s.Expiry, e.RevisionNumber, e.CreatedAt},
		svid: &identity.WITSVID{
			ID: id, Token: token, PrivateKey: secret.Of(jwk), KeyID: kid, IssuedAt: issued, ExpiresAt: s.Expiry,
			Server: identity.Server{Signing: rand.Text()},
		},
	}, nil
}

// issuedAt is when a token that was verified says it was issued, or now where it does not.
func issuedAt(token string, now time.Time) (time.Time, error) {
	t, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		return time.Time{}, err
	}
	var c jwt.Claims
	if err := t.UnsafeClaimsWithoutVerification(&c); err != nil {
		return time.Time{}, fmt.Errorf("its claims can't be read: %w", err)
	}
	if c.IssuedAt == nil {
		return now, nil
	}
	return c.IssuedAt.Time(), nil
}
