package vault

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/openbao/openbao/api/v2"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/vault/server"
)

// logIn authenticates as the workload.
func (b *Broker) logIn(ctx context.Context, identity credential.Identity) (*api.SecretAuth, error) {
	s := b.settings
	mount := s.Mount.Value
	if mount == "" {
		mount = s.Auth.Value
	}
	var answer *api.Secret
	var err error
	if s.Auth.Value == "cert" {
		answer, err = b.logInByCert(ctx, identity, mount)
	} else {
		answer, err = b.logInByJWT(ctx, identity, mount)
	}
	if err != nil {
		return nil, err
	}
	if answer == nil || answer.Auth == nil {
		return nil, fmt.Errorf("%w: logging in gave no token", credential.ErrUpstream)
	}
	return answer.Auth, nil
}

func (b *Broker) logInByJWT(ctx context.Context, identity credential.Identity, mount string) (*api.Secret, error) {
	audience := b.settings.Audience.Value
	if audience == "" {
		audience = b.settings.Address.Value
	}
	svid, err := identity.JWT(ctx, credential.JWTRequest{Audience: audience, Algorithm: b.algorithm})
	if err != nil {
		return nil, fmt.Errorf("getting a JWT-SVID for %s: %w", audience, err)
	}
	c, err := b.client("")
	if err != nil {
		return nil, err
	}
	answer, err := c.Logical().WriteWithContext(ctx, "auth/"+mount+"/login", map[string]any{"role": b.settings.Role, "jwt": string(svid.Reveal())})
	if err != nil {
		return nil, failure("logging in by JWT-SVID", err)
	}
	return answer, nil
}

// logInByCert uses a separate connection: a kept one would log in the next workload as this
// one.
func (b *Broker) logInByCert(ctx context.Context, identity credential.Identity, mount string) (*api.Secret, error) {
	svid, err := identity.X509(ctx)
	if err != nil {
		return nil, fmt.Errorf("getting an X509-SVID: %w", err)
	}
	once := server.HTTP(b.settings.CAFile.Value, &svid)
	defer once.CloseIdleConnections()
	c, err := b.clientOver(once, "")
	if err != nil {
		return nil, err
	}
	answer, err := c.Logical().WriteWithContext(ctx, "auth/"+mount+"/login", map[string]any{"name": b.settings.Role})
	if err != nil {
		return nil, failure("logging in by X509-SVID", err)
	}
	return answer, nil
}

func (b *Broker) client(token string) (*api.Client, error) { return b.clientOver(b.base, token) }

func (b *Broker) clientOver(h *http.Client, token string) (*api.Client, error) {
	return server.Client(b.settings.Address.Value, b.settings.Namespace, h, token)
}

// withoutURL drops the URL that net/http puts before its errors.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// sshExpiration reads valid_before from an OpenSSH certificate
// (PROTOCOL.certkeys). Kinds of key differ only in how many parts the public key
// has. Zero if it is not one, or if it never ends.
func sshExpiration(line string) time.Time {
	parts := strings.Fields(line)
	if len(parts) < 2 {
		return time.Time{}
	}
	b, err := base64.StdEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	// Strings before serial: the type, the nonce and the key's own parts.
	keyParts := map[string]int{"ssh-ed25519-cert-v01@openssh.com": 1, "ssh-rsa-cert-v01@openssh.com": 2}
	n, ok := keyParts[parts[0]]
	if !ok && strings.HasPrefix(parts[0], "ecdsa-sha2-nistp") {
		n, ok = 2, true
	}
	if !ok || !skipStrings(&b, 2+n) || len(b) < 8+4 {
		return time.Time{}
	}
	b = b[8+4:] // serial, type of certificate
	if !skipStrings(&b, 2) || len(b) < 16 {
		return time.Time{} // key ID, principals
	}
	before := binary.BigEndian.Uint64(b[8:])
	if before == math.MaxUint64 || before > math.MaxInt64 {
		return time.Time{} // forever
	}
	return time.Unix(int64(before), 0)
}

func skipStrings(b *[]byte, n int) bool {
	for range n {
		if len(*b) < 4 {
			return false
		}
		length := binary.BigEndian.Uint32(*b)
		if uint64(len(*b)) < 4+uint64(length) {
			return false
		}
		*b = (*b)[4+length:]
	}
	return true
}
