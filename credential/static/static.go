// Package static hands out secrets that are sealed to this machine
// ([sealed.Store]), for vendors that know nothing but a key for life.
//
// By default a secret is proxy-only: its value is for the daemon to use in a
// workload's stead, and no workload is given it. A definition that says
// disclosable hands the value itself to the workload that is granted it.
//
// Out of reach: ending it. A workload that has read a static secret has it until it is
// rotated where it comes from. The lease's end says that vouchd considers it
// over, and nothing more.
package static

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/secret"
)

// Field is the name of the one field that there is.
const Field = "value"

// A Store opens secrets, as [sealed.Store] does.
type Store interface {
	Get(name string) (sealed.Secret, error)
	Reveal(ctx context.Context, name string, by spiffeid.ID) (secret.Bytes, sealed.Secret, error)
}

type settings struct {
	Secret      config.At[string] `yaml:"secret" like:"stripe-key"` // left out, the credential's name
	Disclosable bool              `yaml:"disclosable" default:"false"`
}

// A Broker hands out one secret.
type Broker struct {
	store       Store
	secret      string
	disclosable bool
}

// Opener returns the [credential.Opener] of this kind of source. Where
// definitions are only checked, the store may be nil.
func Opener(store Store) credential.Opener {
	return func(d *credential.Definition, section config.Section) (credential.Broker, error) {
		var s settings
		if err := section.Decode(&s); err != nil {
			return nil, err
		}
		b := &Broker{store: store, secret: cmp.Or(s.Secret.Value, d.Name), disclosable: s.Disclosable}
		err := sealed.CheckName(b.secret)
		if strings.HasPrefix(b.secret, sealed.UndoPrefix) {
			err = fmt.Errorf("secret %s is kept to undo a migration, and for no workload", b.secret)
		}
		if err != nil {
			var problems config.Errors
			problems.Add(s.Secret.Pos, "%v", err)
			return nil, problems.Err()
		}
		return b, nil
	}
}

// Traits says that nothing ends it, and whether a workload may have it. The log
// finds the uses of a secret by this form of the upstream.
func (b *Broker) Traits() credential.Traits {
	return credential.Traits{Upstream: "sealed:" + b.secret, Secret: b.secret, Revocation: credential.Unrevocable, ProxyOnly: !b.disclosable}
}

// Plan says which value it will be.
func (b *Broker) Plan(context.Context, credential.Request) (credential.Plan, error) {
	s, err := b.store.Get(b.secret)
	if err != nil {
		return credential.Plan{}, failure(err)
	}
	return credential.Plan{Handle: credential.Handle{Name: s.Handle()}}, nil
}

// Issue opens the secret.
func (b *Broker) Issue(ctx context.Context, r credential.Request, p credential.Plan) (credential.Issued, error) {
	value, s, err := b.store.Reveal(ctx, b.secret, r.Holder.ID)
	if err != nil {
		return credential.Issued{}, failure(err)
	}
	p.Handle.Name = s.Handle() // it may have been rotated just now
	return credential.Issued{Fields: []credential.Field{{Name: Field, Value: value}}, Handle: &p.Handle}, nil
}

// Current implements [credential.Reopener].
func (b *Broker) Current() (string, error) {
	s, err := b.store.Get(b.secret)
	if err != nil {
		return "", failure(err)
	}
	return s.Handle(), nil
}

// Reopen implements [credential.Reopener].
func (b *Broker) Reopen(ctx context.Context, by spiffeid.ID) ([]credential.Field, string, error) {
	value, s, err := b.store.Reveal(ctx, b.secret, by)
	if err != nil {
		return nil, "", failure(err)
	}
	return []credential.Field{{Name: Field, Value: value}}, s.Handle(), nil
}

// failure says whether trying again may help: not where nothing is sealed.
func failure(err error) error {
	if errors.Is(err, sealed.ErrNone) {
		return fmt.Errorf("%w: %w", credential.ErrRefused, err)
	}
	return fmt.Errorf("%w: %w", credential.ErrUpstream, err)
}

// Renew has nothing to renew: definitions cannot ask for it.
func (b *Broker) Renew(context.Context, credential.Handle, time.Duration) (time.Time, error) {
	return time.Time{}, credential.ErrNotRenewable
}

// Revoke has nothing to end.
func (b *Broker) Revoke(context.Context, credential.Handle) (credential.Use, error) {
	return credential.Use{}, nil
}

// Recover has nothing to find.
func (b *Broker) Recover(context.Context, credential.Handle) error { return nil }
