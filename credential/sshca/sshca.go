// Package sshca certifies SSH keys of workloads with the key of an SSH CA, which is
// in the machine's TPM.
//
// A server that trusts the CA (TrustedUserCAKeys of sshd_config) admits a workload
// for minutes, as the principals that the definition names, and its log names the
// workload: the certificate's key ID is the SPIFFE ID and the request in vouchd's own
// log. No other machine is asked.
//
// Out of reach: only its clock tells a server that a certificate has expired, and a
// server that has admitted a user does not look at the certificate again. An open
// session stays open.
package sshca

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/secret"
)

const (
	// backdate lets a server in whose clock is behind.
	backdate = time.Minute
	// longest bounds certificates, which cannot be revoked.
	longest = 24 * time.Hour
	// keyPrefix separates the keys of CAs from the daemon's others.
	keyPrefix = "ssh-"
)

// Keys are the signing keys in the TPM, made on first use.
type Keys interface {
	// Key returns the ECDSA P-256 key of a name: lower-case letters, digits
	// and hyphens, at most 32.
	Key(ctx context.Context, name string) (crypto.Signer, error)
}

// PublicKey returns a CA's public key as TrustedUserCAKeys expects it: one line with
// the name as its comment.
func PublicKey(ctx context.Context, keys Keys, ca string) (string, error) {
	signer, err := authority(ctx, keys, ca)
	if err != nil {
		return "", err
	}
	return line(signer.PublicKey()) + " vouchd-" + ca + "\n", nil
}

func authority(ctx context.Context, keys Keys, ca string) (ssh.Signer, error) {
	key, err := keys.Key(ctx, keyPrefix+ca)
	if err != nil {
		return nil, fmt.Errorf("key of SSH CA %s: %w", ca, err)
	}
	return ssh.NewSignerFromSigner(key)
}

// line is a key as authorized_keys has it, without a comment.
func line(k ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(k)), "\n")
}

// A Broker certifies keys for one definition.
type Broker struct {
	settings settings
	keys     Keys
	now      func() time.Time
}

// Opener returns the [credential.Opener] of this kind of source. Keys may be nil
// where nothing is issued.
func Opener(keys Keys) credential.Opener {
	return func(d *credential.Definition, section config.Section) (credential.Broker, error) {
		s, err := readSettings(d, section)
		if err != nil {
			return nil, err
		}
		d.Parameters = append(d.Parameters, publicKeyParameter())
		return &Broker{settings: s, keys: keys, now: time.Now}, nil
	}
}

// Traits says that a certificate can only expire.
func (b *Broker) Traits() credential.Traits {
	ca := b.settings.CA.Value
	return credential.Traits{Upstream: "ssh-ca:" + ca, SSHCA: ca, Revocation: credential.ExpiryOnly}
}

// Plan chooses the certificate's serial number and its end.
func (b *Broker) Plan(_ context.Context, r credential.Request) (credential.Plan, error) {
	var serial [8]byte
	rand.Read(serial[:])
	return credential.Plan{
		Handle:   credential.Handle{Name: fmt.Sprintf("serial %d", binary.BigEndian.Uint64(serial[:])), Data: secret.Of(serial[:])},
		NotAfter: b.now().Add(r.TTL).Truncate(time.Second),
	}, nil
}

// Issue certifies the caller's key, or a new one that it returns.
func (b *Broker) Issue(ctx context.Context, r credential.Request, p credential.Plan) (credential.Issued, error) {
	cert, err := b.certificate(r, p)
	if err != nil {
		return credential.Issued{}, err
	}
	var fields []credential.Field
	if given := r.Params[publicKey]; given != newKey {
		cert.Key, err = parseKey(given)
	} else {
		var private secret.Bytes
		cert.Key, private, err = makeKey()
		fields = append(fields, credential.Field{Name: "private_key", Value: private})
	}
	if err != nil {
		return credential.Issued{}, err
	}
	signer, err := authority(ctx, b.keys, b.settings.CA.Value)
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%w: %w", credential.ErrUpstream, err)
	}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		return credential.Issued{}, fmt.Errorf("%w: signing with the key of SSH CA %s: %w", credential.ErrUpstream, b.settings.CA.Value, err)
	}
	fields = append(fields, credential.Field{Name: "certificate", Value: secret.Of([]byte(line(cert) + "\n")), Public: true})
	return credential.Issued{Fields: fields, NotAfter: p.NotAfter, Scope: scope(cert)}, nil
}

// certificate is what the definition says of it, without the key
// (PROTOCOL.certkeys of OpenSSH).
func (b *Broker) certificate(r credential.Request, p credential.Plan) (*ssh.Certificate, error) {
	c := &ssh.Certificate{
		Serial:      binary.BigEndian.Uint64(p.Handle.Data.Reveal()),
		CertType:    ssh.UserCert,
		KeyId:       fmt.Sprintf("%s request %s", r.Holder.ID, r.RequestID),
		ValidAfter:  uint64(b.now().Add(-backdate).Unix()),
		ValidBefore: uint64(p.NotAfter.Unix()),
		Permissions: ssh.Permissions{CriticalOptions: map[string]string{}, Extensions: map[string]string{}},
	}
	for _, t := range b.settings.Principals {
		principal, err := t.Value.Expand(r.Params, quotePrincipal)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", credential.ErrParameter, err)
		}
		c.ValidPrincipals = append(c.ValidPrincipals, principal)
	}
	for _, e := range b.settings.Extensions {
		c.Extensions[e.Value] = ""
	}
	if len(b.settings.SourceAddress) > 0 {
		var from []string
		for _, a := range b.settings.SourceAddress {
			from = append(from, a.Value)
		}
		c.CriticalOptions["source-address"] = strings.Join(from, ",")
	}
	if command := b.settings.ForceCommand.Value; command != "" {
		c.CriticalOptions["force-command"] = command
	}
	if len(c.ValidPrincipals) == 0 {
		return nil, errors.New("a certificate without principals is everybody's") // which settings rule out
	}
	return c, nil
}

// scope is what a certificate entitles to, in the words of OpenSSH.
func scope(c *ssh.Certificate) (words []string) {
	for _, p := range c.ValidPrincipals {
		words = append(words, "principal="+p)
	}
	for _, option := range []string{"source-address", "force-command"} {
		if value, ok := c.CriticalOptions[option]; ok {
			words = append(words, option+"="+value)
		}
	}
	for _, e := range extensions {
		if _, ok := c.Extensions[e]; ok {
			words = append(words, e)
		}
	}
	return append(words, "key="+ssh.FingerprintSHA256(c.Key))
}

// parseKey reads the caller's key. The parameter's pattern says which kinds.
func parseKey(text string) (ssh.PublicKey, error) {
	k, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(text))
	if err != nil || len(rest) > 0 || line(k) != text {
		return nil, fmt.Errorf("%w: %s is not one in the form of authorized_keys", credential.ErrParameter, publicKey)
	}
	return k, nil
}

func makeKey() (ssh.PublicKey, secret.Bytes, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, secret.Bytes{}, err
	}
	defer clear(private)
	block, err := ssh.MarshalPrivateKey(private, "vouchd")
	if err != nil {
		return nil, secret.Bytes{}, err
	}
	defer clear(block.Bytes)
	key, err := ssh.NewPublicKey(public)
	return key, secret.Of(pem.EncodeToMemory(block)), err
}

// Renew does not happen: the next certificate is a lease of its own.
func (b *Broker) Renew(context.Context, credential.Handle, time.Duration) (time.Time, error) {
	return time.Time{}, fmt.Errorf("%w: ssh certificates are not renewed", credential.ErrRefused)
}

// Revoke is not something that servers hear of.
func (b *Broker) Revoke(context.Context, credential.Handle) (credential.Use, error) {
	return credential.Use{}, credential.ErrOnlyExpires
}

// Recover finds nothing: a certificate whose answer was lost expires unseen.
func (b *Broker) Recover(context.Context, credential.Handle) error { return credential.ErrOnlyExpires }
