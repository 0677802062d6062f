// Package fetched delivers secrets that another store keeps: AWS Secrets
// Manager, Azure Key Vault and Infisical.
//
// The store is asked as the workload, with its JWT-SVID, so that no key of the
// store is kept here and its own log names the workload. One secret is read, and
// what it was read with is thrown away.
//
// Out of reach: these secrets have no lease. What was delivered is the same for
// everybody who may read it, and works until somebody changes it in the store
// and where it is used. A lease's end here is when an agent should ask again,
// and each record says that nothing else ends.
package fetched

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
	"github.com/vouchd/vouchd/credential/federation"
	"github.com/vouchd/vouchd/secret"
)

// A store reads one secret as the workload.
type store interface {
	// upstream is where the secret is, without its caller's choices.
	upstream() string
	// read returns the secret of a name and its version.
	read(ctx context.Context, r credential.Request, p credential.Plan, name string) (value []byte, version string, err error)
	close()
}

// A Broker delivers the secret of one definition.
type Broker struct {
	store     store
	secret    credential.Template
	fields    []string // keys of the secret's JSON; none for the whole of it
	algorithm string   // of JWT-SVIDs; empty: the workload's own
}

func newBroker(s store, c common, algorithm string) *Broker {
	b := &Broker{store: s, secret: c.Secret.Value, algorithm: algorithm}
	for _, f := range c.Fields {
		b.fields = append(b.fields, f.Value)
	}
	return b
}

// Close closes connections that are not in use.
func (b *Broker) Close() { b.store.close() }

// Traits says that nothing can be taken back.
func (b *Broker) Traits() credential.Traits {
	return credential.Traits{Upstream: b.store.upstream(), Revocation: credential.Unrevocable, PresentsJWT: true, JWTAlgorithm: b.algorithm}
}

// Plan names the session by which the store's log has it.
func (b *Broker) Plan(_ context.Context, r credential.Request) (credential.Plan, error) {
	return credential.Plan{Handle: credential.Handle{Name: federation.SessionName(r)}}, nil
}

// Issue reads the secret.
func (b *Broker) Issue(ctx context.Context, r credential.Request, p credential.Plan) (credential.Issued, error) {
	name, err := b.secret.Expand(r.Params, quoteName)
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%w: %w", credential.ErrParameter, err)
	}
	value, version, err := b.store.read(ctx, r, p, name)
	if err != nil {
		return credential.Issued{}, fmt.Errorf("reading secret %s: %w", name, err)
	}
	fields, err := b.split(value)
	if err != nil {
		clear(value)
		return credential.Issued{}, fmt.Errorf("reading secret %s: %w", name, err)
	}
	return credential.Issued{Fields: fields, Scope: []string{"secret=" + name, "version=" + version}}, nil
}

// split takes the fields wanted out of a secret that is a JSON object, as the
// stores' consoles write them; or the secret as it is.
func (b *Broker) split(value []byte) ([]credential.Field, error) {
	if len(value) == 0 {
		return nil, fmt.Errorf("%w: it is empty", credential.ErrUpstream)
	}
	if len(b.fields) == 0 {
		return []credential.Field{{Name: "value", Value: secret.Of(value)}}, nil
	}
	defer clear(value)
	var object map[string]any
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.UseNumber() // a port or an account number stays as it is written
	if dec.Decode(&object) != nil || object == nil || dec.Decode(new(any)) != io.EOF {
		return nil, fmt.Errorf("%w: it is not a JSON object, which fields are taken from; remove fields to have it as it is", credential.ErrUpstream)
	}
	var fields []credential.Field
	for _, name := range b.fields {
		var text string
		switch v := object[name].(type) {
		case string:
			text = v
		case json.Number:
			text = v.String()
		default:
			return nil, fmt.Errorf("%w: its JSON has no text or number %q", credential.ErrUpstream, name)
		}
		fields = append(fields, credential.Field{Name: name, Value: secret.Of([]byte(text))})
	}
	return fields, nil
}

// Renew is asking again, which callers do themselves.
func (b *Broker) Renew(context.Context, credential.Handle, time.Duration) (time.Time, error) {
	return time.Time{}, fmt.Errorf("%w: a secret without a lease is not renewed", credential.ErrRefused)
}

// Revoke has nothing to end, which Traits says.
func (b *Broker) Revoke(context.Context, credential.Handle) (credential.Use, error) {
	return credential.Use{}, nil
}

// Recover finds nothing: what was read leaves nothing behind.
func (b *Broker) Recover(context.Context, credential.Handle) error { return nil }

// common are the keys that every store's section has.
type common struct {
	Audience config.At[string]              // of the JWT-SVID
	Secret   config.At[credential.Template] // its name
	Fields   []config.At[string]
	CAFile   config.At[string]
}

const maxFields = 32

var (
	fieldName  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	secretName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9/_+=.@:-]{0,999}$`)
	valueName  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
)

// check looks at what every section has.
func (c common) check(d *credential.Definition, problems *config.Errors) {
	if err := c.Secret.Value.Check(d, nil); err != nil {
		problems.Add(c.Secret.Pos, "secret %v", err)
	} else {
		values := make(map[string]string)
		for _, p := range d.Parameters {
			values[p.Name] = "x"
		}
		if name, err := c.Secret.Value.Expand(values, quoteName); err != nil || !secretName.MatchString(name) {
			problems.Add(c.Secret.Pos, "secret %.80q is not a name", c.Secret.Value.String())
		}
	}
	if len(c.Fields) > maxFields {
		problems.Add(c.Fields[maxFields].Pos, "fields has %d names and may have %d; remove some", len(c.Fields), maxFields)
	}
	seen := make(map[string]bool)
	for _, f := range c.Fields {
		if !fieldName.MatchString(f.Value) {
			problems.Add(f.Pos, "fields: %.80q is not a name; use letters, digits, dots, dashes and underscores, at most 64", f.Value)
		}
		if seen[f.Value] {
			problems.Add(f.Pos, "fields: %s is given again; remove one", f.Value)
		}
		seen[f.Value] = true
	}
	if f := c.CAFile; f.Value != "" && !filepath.IsAbs(f.Value) {
		problems.Add(f.Pos, "ca_file %.80q is not an absolute path; write it from /", f.Value)
	}
}

func checkURLs(problems *config.Errors, urls map[string]config.At[string]) {
	for key, at := range urls {
		if at.Value == "" {
			continue
		}
		if err := endpoint.CheckURL(at.Value); err != nil {
			problems.Add(at.Pos, "%s %.80q %v", key, at.Value, err)
		}
	}
}

// quoteName takes a value that is part of one step of a name.
func quoteName(_, value string) (string, error) {
	if !valueName.MatchString(value) {
		return "", errors.New("is not part of a secret's name")
	}
	return value, nil
}
