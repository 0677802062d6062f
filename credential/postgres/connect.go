package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vouchd/vouchd/credential"
)

// maxConns bounds a broker's connections to its database.
const maxConns = 4

// connections returns the pool, made at its first use: opening a definition
// must not need the server.
func (b *Broker) connections() (*pgxpool.Pool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("%w: the broker is closed", credential.ErrUpstream)
	}
	if b.pool != nil {
		return b.pool, nil
	}
	c, err := b.connConfig()
	if err != nil {
		return nil, err
	}
	pc, err := pgxpool.ParseConfig(nothingElse)
	if err != nil {
		return nil, err
	}
	pc.ConnConfig = c
	pc.MaxConns = maxConns
	pc.MaxConnIdleTime = 5 * time.Minute
	pc.MaxConnLifetime = time.Hour
	pc.BeforeConnect = b.logIn
	b.pool, err = pgxpool.NewWithConfig(context.Background(), pc)
	return b.pool, err
}

// Close closes the connections.
func (b *Broker) Close() {
	b.mu.Lock()
	pool := b.pool
	b.pool, b.closed = nil, true
	b.mu.Unlock()
	if pool != nil {
		pool.Close()
	}
}

// nothingElse keeps password files and the environment out of where we connect.
const nothingElse = "host=localhost user=none password=none dbname=none sslmode=disable passfile=/dev/null"

// connConfig says where to connect, without the secrets.
func (b *Broker) connConfig() (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(nothingElse)
	if err != nil {
		return nil, err
	}
	s := b.settings
	c.Host, c.Port, c.Database, c.User, c.Password = s.Host.Value, uint16(s.Port), s.Database, s.User, ""
	c.Fallbacks = nil
	c.ConnectTimeout = 5 * time.Second
	c.DefaultQueryExecMode = pgx.QueryExecModeExec // one round trip, and no prepared statements for a pooler to lose
	c.RuntimeParams = map[string]string{
		"application_name":                    b.session,
		"standard_conforming_strings":         "on",
		"statement_timeout":                   "15s",
		"lock_timeout":                        "10s",
		"idle_in_transaction_session_timeout": "10s",
		"search_path":                         "pg_catalog",
	}
	return c, nil
}

// logIn reads the secrets again for each connection: changing them needs no restart.
func (b *Broker) logIn(_ context.Context, c *pgx.ConnConfig) error {
	if path := b.settings.PasswordFile.Value; path != "" {
		password, err := credential.ReadSecret(path)
		if err != nil {
			return err
		}
		c.Password = string(password.Reveal())
	}
	if b.settings.TLS.Value == "off" {
		return nil
	}
	t, err := b.tls()
	c.TLSConfig = t
	return err
}

func (b *Broker) tls() (*tls.Config, error) {
	s := b.settings
	t := &tls.Config{ServerName: s.Host.Value, MinVersion: tls.VersionTLS12}
	if path := s.CAFile.Value; path != "" {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", path)
		}
	}
	if s.CertFile.Value == "" {
		return t, nil
	}
	chain, err := os.ReadFile(s.CertFile.Value)
	if err != nil {
		return nil, err
	}
	key, err := credential.ReadSecret(s.KeyFile.Value)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(chain, key.Reveal())
	if err != nil {
		return nil, errors.New("client_cert_file and client_key_file are not a certificate and its key")
	}
	t.Certificates = []tls.Certificate{pair}
	return t, nil
}
