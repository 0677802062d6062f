package identity

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/secret"
)

// A JWTSVID is a token and what it says. The token is a bearer secret until it
// expires.
type JWTSVID struct {
	ID        spiffeid.ID
	Token     string // JWS compact serialisation (JWT-SVID §1)
	JTI       string
	KeyID     string
	Audience  []string
	IssuedAt  time.Time
	ExpiresAt time.Time
	Server    Server
}

// String keeps the token out of logs and errors.
func (s *JWTSVID) String() string { return fmt.Sprintf("JWT-SVID %s for %s", s.JTI, s.ID) }

// claims are those of JWT-SVID §3 (sub, aud, exp), with iat and iss, which
// relying parties in the field require, and jti, by which the log names the
// token.
type claims struct {
	Issuer   string           `json:"iss,omitempty"`
	Subject  string           `json:"sub"`
	Audience jwt.Audience     `json:"aud"`
	Expiry   *jwt.NumericDate `json:"exp"`
	IssuedAt *jwt.NumericDate `json:"iat"`
	ID       string           `json:"jti"`
}

// With is what else a relying party may want of a token. The zero value wants nothing.
type With struct {
	Algorithm string // ES256 or RS256; empty: the authority's first
	Claim     string // one more, which JWT-SVID §3 leaves room for; none that every token has
	Value     any    // of the claim
}

// IssueJWT signs a JWT-SVID for an entry and the given audience, valid for its TTL. The
// audience must not be empty (JWT-SVID §3.2). It returns [ErrNoAuthority] if there is no key
// to sign with and none could be made.
func (a *Authority) IssueJWT(ctx context.Context, e Entry, audience []string, with With) (*JWTSVID, error) {
	if slices.Contains([]string{"iss", "sub", "aud", "exp", "iat", "nbf", "jti"}, with.Claim) || with.Claim == "" && with.Value != nil {
		return nil, fmt.Errorf("claim %q is not for a caller to set", with.Claim)
	}
	if err := a.mayIssue(e.ID, e.JWTTTL, a.o.Now()); err != nil {
		return nil, err
	}
	if len(audience) == 0 {
		return nil, errors.New("a JWT-SVID needs an audience")
	}
	key, err := a.jwtKey(ctx, cmp.Or(with.Algorithm, a.o.JWTAlgorithms[0]))
	if err != nil {
		return nil, err
	}
	now := a.o.Now() // a key that had to be made is not valid before
	issued := now.Truncate(time.Second)
	svid := &JWTSVID{
		ID:        e.ID,
		JTI:       rand.Text(),
		KeyID:     key.id,
		Audience:  audience,
		IssuedAt:  issued,
		ExpiresAt: issued.Add(min(e.JWTTTL, MaxJWTTTL)),
	}
	token := jwt.Signed(key.signer)
	if with.Claim != "" {
		token = token.Claims(map[string]any{with.Claim: with.Value})
	}
	svid.Token, err = token.Claims(claims{
		Issuer:   a.o.JWTIssuer,
		Subject:  e.ID.String(),
		Audience: audience,
		Expiry:   jwt.NewNumericDate(svid.ExpiresAt),
		IssuedAt: jwt.NewNumericDate(svid.IssuedAt),
		ID:       svid.JTI,
	}).Serialize()
	if err != nil {
		return nil, fmt.Errorf("signing JWT-SVID for %s: %w", e.ID, err)
	}
	return svid, nil
}

// NodeJWT signs a token that says which host this is, for those who know the key of its
// JWT-SVIDs. It is none: no workload has a subject of this form, and no relying party of
// workloads takes it. Whether the host is enrolled does not matter.
func (a *Authority) NodeJWT(ctx context.Context, audience string) (secret.Bytes, error) {
	key, err := a.jwtKey(ctx, a.o.JWTAlgorithms[0])
	if err != nil {
		return secret.Bytes{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(a.o.NodeKey.Public())
	if err != nil {
		return secret.Bytes{}, err
	}
	now := a.o.Now().Truncate(time.Second)
	token, err := jwt.Signed(key.signer).Claims(claims{
		Issuer:   a.o.JWTIssuer,
		Subject:  fmt.Sprintf("%s%x", nodeSubject, sha256.Sum256(der)),
		Audience: jwt.Audience{audience},
		Expiry:   jwt.NewNumericDate(now.Add(nodeJWTTTL)),
		IssuedAt: jwt.NewNumericDate(now),
		ID:       rand.Text(),
	}).Serialize()
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("signing a token for %s: %w", audience, err)
	}
	return secret.Of([]byte(token)), nil
}

const (
	nodeSubject = "vouchd-node:" // and the SHA-256 of the node key's SubjectPublicKeyInfo
	nodeJWTTTL  = 2 * time.Minute
)

// Signs reports whether the authority has keys of an algorithm.
func (a *Authority) Signs(algorithm string) bool {
	return slices.Contains(a.o.JWTAlgorithms, algorithm)
}

func (a *Authority) jwtKey(ctx context.Context, algorithm string) (*jwtKey, error) {
	if !a.Signs(algorithm) {
		return nil, fmt.Errorf("%w for %s: it is not among authority.jwt_algorithms", ErrNoAuthority, algorithm)
	}
	if k := a.jwt.Load().of(algorithm).signing(a.o.Now()); k != nil {
		return k, nil
	}
	err := a.Rotate(ctx)
	if algorithm == RS256 {
		err = errors.Join(err, a.makeRSA(ctx))
	}
	if k := a.jwt.Load().of(algorithm).signing(a.o.Now()); k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("%w: %w", ErrNoAuthority, err)
}
