// Package federation exchanges a workload's JWT-SVID for a vendor's own
// short-lived token. No key is stored anywhere: the vendor trusts the trust
// domain's issuer, and maps the SPIFFE ID to rights of its own.
//
// A [profile] says how one vendor wants to be asked, and carries the date of the
// document it was written from.
//
// Out of reach: none of these vendors can revoke a token that it has given. It
// works until it expires, so the lease says so, and lifetimes are held to the
// definition's max_ttl.
package federation

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
	"github.com/vouchd/vouchd/secret"
)

// A Broker exchanges tokens with one vendor.
type Broker struct {
	settings  settings
	profile   profile
	algorithm string // of JWT-SVIDs; empty: the workload's own
	client    *endpoint.Client
	now       func() time.Time
}

// Open is the [credential.Opener] of this kind of source.
func Open(d *credential.Definition, section config.Section) (credential.Broker, error) {
	s, p, err := readSettings(d, section)
	if err != nil {
		return nil, err
	}
	return &Broker{settings: s, profile: p, algorithm: cmp.Or(d.JWTAlgorithm, p.algorithm), client: endpoint.New(s.CAFile.Value), now: time.Now}, nil
}

// Close closes connections that are not in use.
func (b *Broker) Close() { b.client.Close() }

// Traits says that a token can only expire.
func (b *Broker) Traits() credential.Traits {
	return credential.Traits{
		Upstream: b.settings.endpoint(b.profile), Revocation: credential.ExpiryOnly, ChoosesTTL: true,
		PresentsJWT: true, JWTAlgorithm: b.algorithm,
	}
}

// Plan names the session. Nothing is asked of the vendor.
func (b *Broker) Plan(_ context.Context, r credential.Request) (credential.Plan, error) {
	longest := max(b.profile.longest, r.TTL)
	return credential.Plan{Handle: credential.Handle{Name: SessionName(r)}, NotAfter: b.now().Add(longest)}, nil
}

// SessionName says in the vendor's own log, where it has a place for it, which
// identity and which lease it was: "research-KJ3V5X2A7Q". It has the characters
// that an AWS role session may have, and at most 64.
func SessionName(r credential.Request) string {
	path := r.Holder.ID.Path()
	last := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c) {
			return c
		}
		return '-'
	}, path[strings.LastIndexByte(path, '/')+1:])
	return last[:min(len(last), 48)] + "-" + r.Tag()
}

// Issue exchanges a JWT-SVID of the workload for the vendor's token.
func (b *Broker) Issue(ctx context.Context, r credential.Request, p credential.Plan) (credential.Issued, error) {
	assertion, attributes, err := b.assertion(ctx, r)
	if err != nil {
		return credential.Issued{}, err
	}
	e := exchange{settings: b.settings, client: b.client, endpoint: b.settings.endpoint(b.profile), request: r, session: p.Handle.Name, assertion: assertion, asked: b.now()}
	issued, err := b.profile.exchange(ctx, e)
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%s: %w", b.profile.name, err)
	}
	issued.Audience = []string{b.settings.Audience.Value}
	issued.Scope = append(issued.Scope, attributes...)
	return issued, nil
}

// tagsClaimName is where AWS looks for session tags.
const tagsClaimName = "https://aws.amazon.com/tags"

// assertion returns a JWT-SVID of the workload, and which attributes it carries
// beside.
func (b *Broker) assertion(ctx context.Context, r credential.Request) (token secret.Bytes, attributes []string, err error) {
	ask := credential.JWTRequest{Audience: b.settings.Audience.Value, Algorithm: b.algorithm}
	if len(b.settings.SessionTags) > 0 {
		ask.Claim = tagsClaimName
		if ask.Value, attributes, err = b.settings.tagsClaim(r.Params); err != nil {
			return token, nil, err
		}
	}
	if token, err = r.Holder.Identity.JWT(ctx, ask); err != nil {
		return token, nil, fmt.Errorf("getting a JWT-SVID for %s: %w", ask.Audience, err)
	}
	return token, attributes, nil
}

// Renew is not something that these vendors do.
func (b *Broker) Renew(context.Context, credential.Handle, time.Duration) (time.Time, error) {
	return time.Time{}, fmt.Errorf("%w: %s tokens are not renewed", credential.ErrRefused, b.profile.name)
}

// Revoke is not something that these vendors do.
func (b *Broker) Revoke(context.Context, credential.Handle) (credential.Use, error) {
	return credential.Use{}, credential.ErrOnlyExpires
}

// Recover finds nothing: a token whose answer was lost expires unseen.
func (b *Broker) Recover(context.Context, credential.Handle) error { return credential.ErrOnlyExpires }
