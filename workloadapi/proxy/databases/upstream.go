package databases

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/workloadapi/proxy/address"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// dial connects to a definition's upstream, at an address that it may have. Whatever the
// address that is asked for resolves to is checked when it is connected to.
func dial(ctx context.Context, d *database.Definition, network, to string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: d.Connect, KeepAlive: 30 * time.Second, ControlContext: func(_ context.Context, network, to string, _ syscall.RawConn) error {
		if network == "unix" {
			return nil // the definition names it
		}
		return address.Check(to, d.Address)
	}}
	return dialer.DialContext(ctx, network, to)
}

// A login is what to log in to a database with.
type login struct {
	user, password string
	certificate    *tls.Certificate // of the client's, or nil
}

// loginOf finds in the fields of a credential what to log in with: a password and maybe a
// name, or a URL that has both, and a certificate.
func loginOf(d *database.Definition, fields []link.Field) (*login, error) {
	by := make(map[string]string, len(fields))
	for _, f := range fields {
		by[f.Name] = string(f.Value)
	}
	l := &login{user: d.User, password: by["password"]}
	if l.user == "" {
		l.user = by["username"]
	}
	if l.password == "" {
		text := by["url"]
		if text == "" {
			text = by["value"]
		}
		if err := l.parse(d, text); err != nil {
			return nil, err
		}
	}
	chain, key := by[link.FieldCertificate], by[link.FieldKey]
	if chain == "" {
		chain, key = by["certificate"], by["private_key"]
	}
	if chain != "" {
		pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
		if err != nil {
			return nil, errors.New("the client's certificate and its key do not fit together")
		}
		l.certificate = &pair
	}
	if l.user == "" && d.Protocol == database.Postgres {
		return nil, errors.New("the credential does not say as whom to log in; set user in its database block")
	}
	return l, nil
}

// parse takes a password, or a URL with it. The URL of another server is an error: what was
// meant for one is not sent to another.
func (l *login) parse(d *database.Definition, text string) error {
	text = strings.TrimSpace(text)
	scheme, _, isURL := strings.Cut(text, "://")
	if !isURL || scheme != "postgres" && scheme != "postgresql" && scheme != "redis" && scheme != "rediss" {
		l.password = text
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.User == nil {
		return errors.New("the credential is a URL that has no user and password in it")
	}
	port := u.Port()
	if port == "" {
		port = map[database.Protocol]string{database.Postgres: "5432", database.Redis: "6379"}[d.Protocol]
	}
	if host := u.Hostname(); host != "" && !d.OnSocket() && (host != d.Host() || port != d.Port()) {
		return fmt.Errorf("the credential is a URL of another server than its definition's upstream, %s", d.Place())
	}
	password, _ := u.User.Password()
	l.password = password
	if l.user == "" {
		l.user = u.User.Username()
	}
	return nil
}

// tlsOf is how the server has to show that it is the one. It is nil without TLS.
func tlsOf(d *database.Definition, l *login) *tls.Config {
	if d.Clear {
		return nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: d.Roots(), ServerName: d.Host()}
	if l.certificate != nil {
		c.Certificates = []tls.Certificate{*l.certificate}
	}
	return c
}

// unreachable is what an agent is told of an upstream that it was not connected to.
func unreachable(d *database.Definition, l *login, err error) error {
	var certificate *tls.CertificateVerificationError
	var private address.Error
	code := "upstream_unreachable"
	switch {
	case errors.As(err, &private):
		code, err = "upstream_address", private
	case errors.As(err, &certificate):
		code, err = "upstream_certificate", certificate
	}
	text := err.Error()
	if l != nil && l.password != "" {
		text = strings.ReplaceAll(text, l.password, "[redacted]")
	}
	return refuse(code, "%s: %s", d.Place(), text)
}
