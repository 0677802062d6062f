// Package vault leases secrets of HashiCorp Vault and OpenBao.
//
// The broker logs in as the workload, with its JWT-SVID or X509-SVID, so the server's
// policies and its audit log see the workload, not the daemon. The login's token is the
// lease's handle: a lease of the server belongs to the token that asked for it and ends with
// it, and the token is journalled before it asks. A lost answer therefore leaks nothing,
// although the server chooses lease IDs only afterwards.
//
// Out of reach: what a revocation achieves depends on the secret engine. The database engine
// drops a role by its revocation statements, and leaves sessions open unless these terminate
// them. Certificates and signed SSH keys have no lease and only expire. Static secrets, as in
// kv, are shared: only changing them there ends anything.
package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/openbao/openbao/api/v2"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/vault/server"
	"github.com/vouchd/vouchd/secret"
)

// A Broker leases secrets of one path.
type Broker struct {
	settings  settings
	algorithm string // of JWT-SVIDs; empty: the workload's own
	now       func() time.Time
	base      *http.Client // of requests that a token authenticates
}

// Open is the [credential.Opener] of this kind of source.
func Open(d *credential.Definition, section config.Section) (credential.Broker, error) {
	s, err := readSettings(d, section)
	if err != nil {
		return nil, err
	}
	return &Broker{settings: s, algorithm: d.JWTAlgorithm, now: time.Now, base: server.HTTP(s.CAFile.Value, nil)}, nil
}

// Close closes connections that are not in use.
func (b *Broker) Close() { b.base.CloseIdleConnections() }

// Traits says that a leased secret is revoked with its token.
func (b *Broker) Traits() credential.Traits {
	s := b.settings
	t := credential.Traits{Upstream: strings.TrimSuffix(s.Address.Value, "/") + "/v1/" + s.Path.Value.String(), Revocation: credential.Hard, Renews: true}
	t.PresentsJWT, t.JWTAlgorithm = s.Auth.Value != "cert", b.algorithm
	switch {
	case s.Static.Value:
		t.Revocation, t.Renews = credential.Unrevocable, false
	case !s.Leased.Value:
		t.Revocation, t.Renews, t.ChoosesTTL = credential.ExpiryOnly, false, true
	case !b.renewsToken():
		t.Renews = false
	}
	return t
}

// renewsToken reports whether a token can be made to live longer: that of a
// login by certificate is renewed over a connection with the same certificate
// alone, whose key is gone by then.
func (b *Broker) renewsToken() bool { return b.settings.Auth.Value != "cert" }

// handle is the token that the server's lease hangs on. It is kept encrypted.
type handle struct {
	Token string `json:"token"`
	Lease string `json:"lease,omitempty"` // the server's ID, once there is one
}

// Plan logs in as the workload. A token whose answer is lost holds nothing.
func (b *Broker) Plan(ctx context.Context, r credential.Request) (credential.Plan, error) {
	asked := b.now()
	auth, err := b.logIn(ctx, r.Holder.Identity)
	if err != nil {
		return credential.Plan{}, err
	}
	if auth.ClientToken == "" || auth.Accessor == "" {
		return credential.Plan{}, fmt.Errorf("%w: role %s gives tokens that cannot be revoked; set its token_type to service", credential.ErrUpstream, b.settings.Role)
	}
	if auth.LeaseDuration <= 0 {
		return credential.Plan{}, fmt.Errorf("%w: role %s gives tokens that never end; set its token_ttl and token_max_ttl", credential.ErrUpstream, b.settings.Role)
	}
	h, err := b.handle(auth.Accessor, handle{Token: auth.ClientToken})
	longest := time.Duration(auth.LeaseDuration) * time.Second
	if b.renewsToken() { // once the plan is durable
		longest = max(longest, r.TTL+renewSlack)
	}
	return credential.Plan{Handle: h, NotAfter: asked.Add(longest)}, err
}

// renewSlack is by how much longer than its secret a token is asked to live, so
// that revoking in time finds it alive.
const renewSlack = time.Minute

// handle names a lease by its token's accessor, which is in the server's audit log too and
// grants no access.
func (b *Broker) handle(accessor string, h handle) (credential.Handle, error) {
	data, err := json.Marshal(h)
	return credential.Handle{Name: "accessor " + accessor, Data: secret.Of(data)}, err
}

func decodeHandle(h credential.Handle) (out handle, err error) {
	if err := json.Unmarshal(h.Data.Reveal(), &out); err != nil || out.Token == "" {
		return out, fmt.Errorf("handle %q holds no token", h.Name)
	}
	return out, nil
}

// Issue reads the path, or writes to it, with the plan's token.
func (b *Broker) Issue(ctx context.Context, r credential.Request, p credential.Plan) (credential.Issued, error) {
	h, err := decodeHandle(p.Handle)
	if err != nil {
		return credential.Issued{}, err
	}
	c, err := b.client(h.Token)
	if err != nil {
		return credential.Issued{}, err
	}
	asked := b.now()
	tokenEnds := p.NotAfter
	if b.settings.Leased.Value && !b.settings.Static.Value {
		// Without, nobody could tell later whether the token has ended.
		switch err := b.lookUp(ctx, c); {
		case status(err) == http.StatusForbidden:
			return credential.Issued{}, fmt.Errorf("%w: role %s may not look its own token up, so that its end could not be told; allow auth/token/lookup-self, as the policy default does", credential.ErrRefused, b.settings.Role)
		case err != nil:
			return credential.Issued{}, failure("looking the token up", err)
		}
	}
	if b.settings.Leased.Value && b.renewsToken() {
		if tokenEnds, err = b.renewToken(ctx, c, r.TTL); err != nil {
			return credential.Issued{}, err
		}
	}
	path, answer, err := b.ask(ctx, c, r.Params)
	if err != nil {
		return credential.Issued{}, err
	}
	if !b.settings.Leased.Value {
		// The token has no lease. Should this fail, it expires on its own.
		c.Auth().Token().RevokeSelfWithContext(ctx, "")
	}
	issued, err := b.issued(answer, h, p, asked, tokenEnds)
	issued.Scope = []string{path}
	return issued, err
}

// ask reads the secret. It returns the path that was asked for.
func (b *Broker) ask(ctx context.Context, c *api.Client, params map[string]string) (string, *api.Secret, error) {
	path, err := b.settings.Path.Value.Expand(params, quotePath)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", credential.ErrParameter, err)
	}
	var answer *api.Secret
	if len(b.settings.Data) == 0 {
		answer, err = c.Logical().ReadWithContext(ctx, path)
	} else {
		data := make(map[string]any)
		for _, a := range b.settings.Data {
			data[a.Name.Value], err = a.Value.Value.Expand(params, quoteData(a.Value.Value))
			if err != nil {
				return "", nil, fmt.Errorf("%w: %w", credential.ErrParameter, err)
			}
		}
		answer, err = c.Logical().WriteWithContext(ctx, path, data)
	}
	if err != nil {
		return path, nil, failure("reading "+path, err)
	}
	if answer == nil || len(answer.Data) == 0 {
		return path, nil, fmt.Errorf("%w: %s holds no secret", credential.ErrRefused, path)
	}
	return path, answer, nil
}

// quotePath lets a value be one step of a path and no more.
func quotePath(_, value string) (string, error) {
	if !plainPath.MatchString(value) || strings.Contains(value, "/") {
		return "", errors.New("cannot be one step of a path")
	}
	return value, nil
}

// quoteData lets a value be part of one element: engines take lists, such as
// alt_names, separated by commas.
func quoteData(t credential.Template) func(verb, value string) (string, error) {
	names := t.Names()
	alone := len(names) == 1 && strings.HasPrefix(t.String(), "{{") && strings.Index(t.String(), "}}") == len(t.String())-2
	return func(_, value string) (string, error) {
		if !alone && strings.Contains(value, ",") {
			return "", errors.New("has a comma, after which another element of a list would begin")
		}
		return value, nil
	}
}

func (b *Broker) issued(answer *api.Secret, h handle, p credential.Plan, asked, tokenEnds time.Time) (credential.Issued, error) {
	if b.settings.Static.Value {
		return static(answer)
	}
	i := credential.Issued{Fields: fields(answer.Data)}
	if !b.settings.Leased.Value {
		i.NotAfter = expiration(answer, asked)
		return i, nil
	}
	if answer.LeaseID == "" || answer.LeaseDuration <= 0 {
		return i, fmt.Errorf("%w: the secret has no lease, so it cannot be revoked; set leased: false to have it expire", credential.ErrUpstream)
	}
	h.Lease = answer.LeaseID
	i.NotAfter = earlier(asked.Add(time.Duration(answer.LeaseDuration)*time.Second), tokenEnds)
	accessor := strings.TrimPrefix(p.Handle.Name, "accessor ")
	named, err := b.handle(accessor, h)
	i.Handle = &named
	return i, err
}

// static is a value shared by every workload. Version 2 of kv returns metadata along with it.
func static(answer *api.Secret) (credential.Issued, error) {
	if answer.LeaseID != "" {
		return credential.Issued{}, fmt.Errorf("%w: it made a secret for this lease, which ended with the token that asked for it; remove static: true", credential.ErrUpstream)
	}
	data := answer.Data
	inner, versioned := data["data"]
	if _, about := data["metadata"].(map[string]any); versioned && about && len(data) == 2 {
		data, _ = inner.(map[string]any) // none if that version was deleted
	}
	i := credential.Issued{Fields: fields(data)}
	if len(i.Fields) == 0 {
		return i, fmt.Errorf("%w: the path holds no value", credential.ErrRefused)
	}
	for n := range i.Fields {
		i.Fields[n].Public = false // what a name means there is unknown
	}
	return i, nil
}

// fields are the secret's values by name. What is not text is written as JSON.
func fields(data map[string]any) []credential.Field {
	var out []credential.Field
	for _, name := range slices.Sorted(maps.Keys(data)) {
		var value []byte
		switch v := data[name].(type) {
		case nil:
			continue
		case string:
			value = []byte(v)
		default:
			value, _ = json.Marshal(v)
		}
		public := slices.Contains([]string{"username", "access_key", "serial_number", "expiration", "certificate", "issuing_ca", "ca_chain"}, name)
		out = append(out, credential.Field{Name: name, Value: secret.Of(value), Public: public})
	}
	return out
}

// expiration is when a secret without a lease ends: a certificate says so, and
// for others the server says how long. Zero if it does neither.
func expiration(answer *api.Secret, asked time.Time) time.Time {
	if n, ok := answer.Data["expiration"].(json.Number); ok {
		if seconds, err := n.Int64(); err == nil && seconds > 0 {
			return time.Unix(seconds, 0)
		}
	}
	if cert, ok := answer.Data["signed_key"].(string); ok {
		return sshExpiration(cert)
	}
	if answer.LeaseDuration > 0 {
		return asked.Add(time.Duration(answer.LeaseDuration) * time.Second)
	}
	return time.Time{}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// renewToken keeps the token alive for as long as its secret, and returns when it ends.
func (b *Broker) renewToken(ctx context.Context, c *api.Client, ttl time.Duration) (time.Time, error) {
	asked := b.now()
	answer, err := c.Auth().Token().RenewSelfWithContext(ctx, int((ttl + renewSlack).Seconds()))
	if err != nil {
		return time.Time{}, failure("renewing the token", err)
	}
	if answer == nil || answer.Auth == nil || answer.Auth.LeaseDuration <= 0 {
		return time.Time{}, fmt.Errorf("%w: the renewed token has no end", credential.ErrUpstream)
	}
	return asked.Add(time.Duration(answer.Auth.LeaseDuration) * time.Second), nil
}

// Renew renews the token and the server's lease.
func (b *Broker) Renew(ctx context.Context, at credential.Handle, ttl time.Duration) (time.Time, error) {
	h, err := decodeHandle(at)
	if err != nil {
		return time.Time{}, err
	}
	c, err := b.client(h.Token)
	if err != nil {
		return time.Time{}, err
	}
	tokenEnds, err := b.renewToken(ctx, c, ttl)
	if err != nil {
		return time.Time{}, err
	}
	asked := b.now()
	answer, err := c.Sys().RenewWithContext(ctx, h.Lease, int(ttl.Seconds()))
	if err != nil {
		return time.Time{}, failure("renewing the lease", err)
	}
	if answer == nil || answer.LeaseDuration <= 0 {
		return time.Time{}, fmt.Errorf("%w: the renewed lease has no end", credential.ErrUpstream)
	}
	return earlier(asked.Add(time.Duration(answer.LeaseDuration)*time.Second), tokenEnds), nil
}
