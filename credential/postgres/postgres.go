// Package postgres leases logins to a PostgreSQL database.
//
// Each lease is a role of its own, with a random password, an expiry (VALID UNTIL) and what
// the definition's statements grant it. Revoking removes its right to log in, terminates its
// sessions, drops what it owns and drops it; each step can be repeated. The password
// reaches the server only as a SCRAM verifier, so no statement log contains it.
//
// Out of reach: what a session did before its end stays done. VALID UNTIL ends password
// logins, not open sessions, so if the database is unreachable, both remain until it is
// back. A right that somebody else granted the role keeps it, without a login, until they
// revoke that, and so does what others depend on, unless there is an heir for it.
package postgres

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/secret"
)

// A Broker leases roles of one database.
type Broker struct {
	settings settings
	name     string // of the credential, as it goes into roles' names
	session  string // application_name of this broker's connections at rest

	mu     sync.Mutex // guards pool and closed
	pool   *pgxpool.Pool
	closed bool
}

// Open is the [credential.Opener] of this kind of source.
func Open(d *credential.Definition, section config.Section) (credential.Broker, error) {
	s, err := readSettings(d, section)
	if err != nil {
		return nil, err
	}
	return &Broker{settings: s, name: roleText(d.Name), session: "vouchd_" + strings.ToLower(rand.Text())}, nil
}

// roleText makes a credential's name readable in a role's name.
func roleText(name string) string {
	text := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(name))
	return text[:min(len(text), 24)]
}

// Traits says that revoking ends sessions too.
func (b *Broker) Traits() credential.Traits {
	s := b.settings
	at := "postgres://" + net.JoinHostPort(s.Host.Value, strconv.Itoa(s.Port))
	if strings.HasPrefix(s.Host.Value, "/") {
		at = "postgres://" + s.Host.Value + ":" + strconv.Itoa(s.Port)
	}
	return credential.Traits{Upstream: at + "/" + s.Database, Revocation: credential.Hard, Renews: true}
}

// handle is what finds a role again, and the statement that may still be making
// it.
type handle struct {
	Role    string `json:"role"`
	Session string `json:"session"` // application_name of who was to make it
}

func decodeHandle(h credential.Handle) (handle, error) {
	var out handle
	if err := json.Unmarshal(h.Data.Reveal(), &out); err != nil || !strings.HasPrefix(out.Role, "vouch_") {
		return out, fmt.Errorf("handle %q is not of a role that vouchd made", h.Name)
	}
	return out, nil
}

// Plan chooses the role's name. It asks nothing of the server.
func (b *Broker) Plan(_ context.Context, _ credential.Request) (credential.Plan, error) {
	role := "vouch_" + b.name + "_" + strings.ToLower(rand.Text())
	data, err := json.Marshal(handle{Role: role, Session: b.session})
	if err != nil {
		return credential.Plan{}, err
	}
	return credential.Plan{Handle: credential.Handle{Name: role, Data: secret.Of(data)}}, nil
}

// Issue makes the role and grants it what the definition says, all or nothing.
func (b *Broker) Issue(ctx context.Context, r credential.Request, p credential.Plan) (credential.Issued, error) {
	role := p.Handle.Name
	grants, err := b.grants(role, r.Params)
	if err != nil {
		return credential.Issued{}, err
	}
	password := []byte(rand.Text())
	err = b.with(ctx, "making role "+role, func(conn *pgx.Conn) error {
		// From the next line on the connection can be told by the role's name,
		// and Recover ends it. The answer must be here before the role is made.
		var until string
		err := conn.QueryRow(ctx, "SELECT set_config('application_name', $1, false), (clock_timestamp() + make_interval(secs => $2))::text",
			role, r.TTL.Seconds()).Scan(nil, &until)
		if err != nil {
			return err
		}
		create := fmt.Sprintf("CREATE ROLE %s LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD %s VALID UNTIL %s CONNECTION LIMIT %d",
			identifier(role), literal(verifier(password)), literal(until), b.settings.ConnectionLimit)
		return transact(ctx, conn, append([]string{create}, grants...), b.session)
	})
	if err != nil {
		return credential.Issued{}, err
	}
	return credential.Issued{Fields: b.fields(role, password), Scope: grants}, nil
}

// grants expands the definition's statements.
func (b *Broker) grants(role string, params map[string]string) ([]string, error) {
	values := map[string]string{"role": role}
	for name, value := range params {
		values[name] = value
	}
	var statements []string
	for _, g := range b.settings.Grants {
		s, err := g.Value.Expand(values, quote)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", credential.ErrParameter, err)
		}
		statements = append(statements, s)
	}
	return statements, nil
}

// ddlLock is the advisory lock under which roles are made and dropped: two
// transactions that change the rights on one table at a time fail otherwise.
const ddlLock = "SELECT pg_advisory_xact_lock(1987013480, 1)"

// transact runs statements as one transaction and in one round trip, and gives
// the connection its name at rest back. It is tried again where somebody else, who knows
// nothing of the lock, has changed the same rights meanwhile.
func transact(ctx context.Context, conn *pgx.Conn, statements []string, name string) error {
	all := append([]string{"BEGIN", ddlLock}, statements...)
	all = append(all, "COMMIT", "SET application_name = "+literal(name))
	for try := 1; ; try++ {
		_, err := conn.PgConn().Exec(ctx, strings.Join(all, ";\n")).ReadAll()
		if err == nil || try == maxTries || !conflicts(err) {
			return err
		}
		if _, failed := conn.PgConn().Exec(ctx, "ROLLBACK").ReadAll(); failed != nil {
			return err
		}
	}
}

const maxTries = 5

// conflicts reports whether a transaction failed for another one alone. What PostgreSQL says
// of a row of its catalogue that was changed meanwhile has the code of an internal error.
func conflicts(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == "XX000" || e.Code == "40001" || e.Code == "40P01")
}

// fields are what a client needs to log in.
func (b *Broker) fields(role string, password []byte) []credential.Field {
	s := b.settings
	port := strconv.Itoa(s.Port)
	u := url.URL{Scheme: "postgresql", User: url.UserPassword(role, string(password)), Path: "/" + s.Database}
	query := url.Values{"sslmode": {"verify-full"}}
	if s.TLS.Value == "off" {
		query.Set("sslmode", "disable")
	}
	if strings.HasPrefix(s.Host.Value, "/") {
		query.Set("host", s.Host.Value)
		query.Set("port", port)
	} else {
		u.Host = net.JoinHostPort(s.Host.Value, port)
	}
	u.RawQuery = query.Encode()
	public := func(name, value string) credential.Field {
		return credential.Field{Name: name, Value: secret.Of([]byte(value)), Public: true}
	}
	return []credential.Field{
		{Name: "password", Value: secret.Of(password)},
		public("username", role),
		public("host", s.Host.Value),
		public("port", port),
		public("database", s.Database),
		{Name: "url", Value: secret.Of([]byte(u.String()))},
	}
}

// Renew moves the end of the role's logins.
func (b *Broker) Renew(ctx context.Context, h credential.Handle, ttl time.Duration) (time.Time, error) {
	at, err := decodeHandle(h)
	if err != nil {
		return time.Time{}, err
	}
	return time.Time{}, b.with(ctx, "renewing role "+at.Role, func(conn *pgx.Conn) error {
		var until string
		if err := conn.QueryRow(ctx, "SELECT (clock_timestamp() + make_interval(secs => $1))::text", ttl.Seconds()).Scan(&until); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, "ALTER ROLE "+identifier(at.Role)+" VALID UNTIL "+literal(until))
		return err
	})
}

// with runs do on a connection, which is closed unless do succeeds: after an
// error, it may be in any state.
func (b *Broker) with(ctx context.Context, what string, do func(*pgx.Conn) error) error {
	pool, err := b.connections()
	if err != nil {
		return err
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return failure(what, err)
	}
	defer conn.Release()
	if err := do(conn.Conn()); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Conn().Close(closing)
		return failure(what, err)
	}
	return nil
}

// failure says whether the server refused or did not answer.
func failure(what string, err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		kind := credential.ErrRefused
		switch e.Code[:min(2, len(e.Code))] {
		case "08", "40", "53", "55", "57", "58", "XX": // connection, conflict, resources, locks, operator, system, internal
			kind = credential.ErrUpstream
		}
		detail := ""
		if e.Code == dependentObjects { // names what somebody else has to take back
			detail = fmt.Sprintf(" (%.300s); have that revoked or dropped, or set heir for what depends on the role", e.Detail)
		}
		return fmt.Errorf("%s: %w: SQLSTATE %s: %.200s%s", what, kind, e.Code, e.Message, detail)
	}
	return fmt.Errorf("%s: %w: %w", what, credential.ErrUpstream, err)
}
