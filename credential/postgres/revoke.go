package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/vouchd/vouchd/credential"
)

// Revoke ends the role and its sessions.
func (b *Broker) Revoke(ctx context.Context, h credential.Handle) (use credential.Use, err error) {
	at, err := decodeHandle(h)
	if err != nil {
		return use, err
	}
	err = b.with(ctx, "revoking role "+at.Role, func(conn *pgx.Conn) error {
		use, err = b.drop(ctx, conn, at.Role)
		return err
	})
	return use, err
}

// Recover ends whatever may still be making the role, and then the role. A
// daemon that died can leave its last statement on the way: only when the
// server's side of its connection is gone is it sure that no role comes after.
func (b *Broker) Recover(ctx context.Context, h credential.Handle) error {
	at, err := decodeHandle(h)
	if err != nil {
		return err
	}
	return b.with(ctx, "recovering role "+at.Role, func(conn *pgx.Conn) error {
		makers := []string{at.Role}
		if at.Session != b.session {
			makers = append(makers, at.Session)
		}
		if err := terminate(ctx, conn, "usename = current_user AND application_name = ANY($1)", makers); err != nil {
			return err
		}
		_, err := b.drop(ctx, conn, at.Role)
		return err
	})
}

// drop takes the steps of a revocation. Each can be taken again, and a role
// that is not there is done with.
func (b *Broker) drop(ctx context.Context, conn *pgx.Conn, role string) (use credential.Use, err error) {
	var oid uint32
	var standby bool
	if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
		return use, err
	}
	if standby {
		return use, errors.New("the server is a standby, which may not know the role yet; let host name the primary")
	}
	err = conn.QueryRow(ctx, "SELECT oid FROM pg_roles WHERE rolname = $1", role).Scan(&oid)
	if errors.Is(err, pgx.ErrNoRows) {
		return use, nil
	}
	if err != nil {
		return use, err
	}
	quoted := identifier(role)
	// Membership is what lets a user that is not a superuser terminate the
	// role's sessions and drop what it owns.
	if err := transact(ctx, conn, []string{"ALTER ROLE " + quoted + " NOLOGIN", "GRANT " + quoted + " TO CURRENT_USER"}, b.session); err != nil {
		return use, err
	}
	if use, err = sessions(ctx, conn, oid); err != nil {
		return use, err
	}
	if err := terminate(ctx, conn, "usesysid = $1", oid); err != nil {
		return use, err
	}
	if err := b.dropOwned(ctx, conn, role, oid); err != nil {
		return use, err
	}
	// Any session that logged in just before NOLOGIN is visible now.
	return use, terminate(ctx, conn, "usesysid = $1", oid)
}

// sessions returns what is known about the role's use: its open sessions. Closed ones have
// left no trace.
func sessions(ctx context.Context, conn *pgx.Conn, oid uint32) (use credential.Use, err error) {
	var first, last *time.Time
	err = conn.QueryRow(ctx, "SELECT count(*), min(backend_start), max(coalesce(state_change, backend_start)) FROM pg_stat_activity WHERE usesysid = $1", oid).
		Scan(&use.Count, &first, &last)
	if err == nil && use.Count > 0 && first != nil && last != nil {
		use.First, use.Last, use.Known = *first, *last, true
	}
	return use, err
}

// terminate ends the sessions that a condition chooses, and returns nil once
// they are gone.
func terminate(ctx context.Context, conn *pgx.Conn, condition string, arg any) error {
	rows, err := conn.Query(ctx, "SELECT pid, pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "+condition, arg)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var pid int32
		var gone bool
		if err := rows.Scan(&pid, &gone); err != nil {
			return err
		}
		if !gone {
			return fmt.Errorf("session %d did not end within 5s", pid)
		}
	}
	return rows.Err()
}

// dropOwned drops the role with all that it owns, in other databases too: it
// may have been let in there.
func (b *Broker) dropOwned(ctx context.Context, conn *pgx.Conn, role string, oid uint32) error {
	statements := []string{ownLocks, "DROP OWNED BY " + identifier(role), "DROP ROLE " + identifier(role)}
	err := transact(ctx, conn, statements, b.session)
	if !dependsOn(err) {
		return err
	}
	if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
		return err
	}
	if err := b.dropElsewhere(ctx, conn, role, oid); err != nil {
		return err
	}
	return b.reassigning(ctx, conn, role, statements)
}

// reassigning runs statements that drop what a role owns. What others depend on,
// such as with a view, becomes the heir's: dropping it would drop theirs. It is
// never the daemon's own, in whose name the role's functions and views would run.
func (b *Broker) reassigning(ctx context.Context, conn *pgx.Conn, role string, statements []string) error {
	err := transact(ctx, conn, statements, b.session)
	if !dependsOn(err) || b.settings.Heir == "" {
		return err
	}
	if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
		return err
	}
	var powerless bool
	err = conn.QueryRow(ctx, `SELECT NOT (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
		AND NOT EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid) FROM pg_roles r WHERE rolname = $1`, b.settings.Heir).Scan(&powerless)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	if !powerless {
		return fmt.Errorf("heir %s is not a role without login, attributes and memberships; make one with CREATE ROLE %[1]s", b.settings.Heir)
	}
	return transact(ctx, conn, append([]string{"REASSIGN OWNED BY " + identifier(role) + " TO " + identifier(b.settings.Heir)}, statements...), b.session)
}

// ownLocks bounds the wait for a table that a reader has open: everybody else's
// roles wait for the lock that is held meanwhile, and there is another attempt.
const ownLocks = "SET LOCAL lock_timeout = '500ms'"

func dependsOn(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == dependentObjects
}

const dependentObjects = "2BP01"

func (b *Broker) dropElsewhere(ctx context.Context, conn *pgx.Conn, role string, oid uint32) error {
	rows, err := conn.Query(ctx, `SELECT datname FROM pg_database WHERE datname <> current_database() AND oid IN
		(SELECT dbid FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = $1)`, oid)
	if err != nil {
		return err
	}
	databases, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, database := range databases {
		if err := b.dropIn(ctx, database, role); err != nil {
			return fmt.Errorf("in database %s: %w", database, err)
		}
	}
	return nil
}

func (b *Broker) dropIn(ctx context.Context, database, role string) error {
	c, err := b.connConfig()
	if err != nil {
		return err
	}
	c.Database = database
	if err := b.logIn(ctx, c); err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return b.reassigning(ctx, conn, role, []string{ownLocks, "DROP OWNED BY " + identifier(role)})
}
