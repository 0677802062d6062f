// Package sshagent is an ssh-agent whose one key has a short-lived certificate.
//
// The key is made in memory and never leaves it. ssh gets signatures and the certificate,
// which is requested when ssh needs it and the last one has aged. Nothing can be added,
// removed or locked: the agent holds what vouchd grants.
//
// Out of reach: anyone who can connect to the agent's socket can sign with its key, as with
// any ssh-agent. The socket is accessible only to the user.
package sshagent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"
)

// A Source gets certificates.
type Source interface {
	// Certificate returns one for a public key in the form of
	// authorized_keys, as a line of that form itself.
	Certificate(ctx context.Context, publicKey string) ([]byte, error)
}

const (
	// maxMessage bounds what a client may send at once, in bytes, as OpenSSH
	// does.
	maxMessage = 256 << 10
	// maxClients bounds connections; every running ssh may hold one.
	maxClients = 128
	// askTimeout bounds how long a client waits for a certificate.
	askTimeout = 30 * time.Second
)

// An Agent holds one key. It is safe for concurrent use.
type Agent struct {
	source Source
	log    func(error) // what a client cannot be told
	now    func() time.Time
	signer ssh.Signer
	public string

	mu   sync.Mutex // guards cert, and keeps all but one from asking for the next
	cert *ssh.Certificate
}

// New makes a key in memory. Log is called with why there is no certificate, which the
// protocol cannot express.
func New(source Source, log func(error)) (*Agent, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, err
	}
	public := string(bytes.TrimSuffix(ssh.MarshalAuthorizedKey(signer.PublicKey()), []byte("\n")))
	return &Agent{source: source, log: log, now: time.Now, signer: signer, public: public}, nil
}

// Certificate returns a certificate that is valid for a while, requesting the next once a
// third of the last one's life is left. If that fails, it returns the last one until that
// expires.
func (a *Agent) Certificate(ctx context.Context) (*ssh.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if a.cert != nil {
		left, life := lives(a.cert, now)
		if left > life/3 {
			return a.cert, nil
		}
		if left <= 0 {
			a.cert = nil
		}
	}
	next, err := a.ask(ctx)
	switch {
	case err == nil:
		a.cert = next
	case a.cert != nil:
		a.log(fmt.Errorf("the next certificate is late, and the last one lives on: %w", err))
	default:
		return nil, err
	}
	return a.cert, nil
}

// lives returns how long a certificate has left, of how long a life.
func lives(c *ssh.Certificate, now time.Time) (left, life time.Duration) {
	end := time.Unix(int64(min(c.ValidBefore, 1<<62)), 0)
	return end.Sub(now), end.Sub(time.Unix(int64(c.ValidAfter), 0))
}

func (a *Agent) ask(ctx context.Context) (*ssh.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	line, err := a.source.Certificate(ctx, a.public)
	if err != nil {
		return nil, err
	}
	k, _, _, _, err := ssh.ParseAuthorizedKey(line)
	cert, ok := k.(*ssh.Certificate)
	if err != nil || !ok || !bytes.Equal(cert.Key.Marshal(), a.signer.PublicKey().Marshal()) {
		return nil, errors.New("what came is not a certificate of the agent's key")
	}
	if left, _ := lives(cert, a.now()); left <= 0 {
		return nil, errors.New("the certificate that came has ended already; compare the clocks")
	}
	return cert, nil
}

// Serve answers clients of the listener until ctx ends. Only processes of this
// user, and root's, are answered.
func (a *Agent) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	room := make(chan struct{}, maxClients)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting a client: %w", err)
		}
		if !ours(conn) {
			conn.Close()
			continue
		}
		select {
		case room <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		clients.Go(func() {
			defer func() { <-room }()
			closed := context.AfterFunc(ctx, func() { conn.Close() })
			defer closed()
			defer conn.Close()
			// How a client goes is its own affair.
			agent.ServeAgent(&client{agent: a, ctx: ctx}, &bounded{ReadWriter: conn})
		})
	}
}

// ours reports whether the kernel says that the other end is of this user, or
// root's.
func ours(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return errors.Join(err, credErr) == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
}

// bounded refuses messages that are longer than an agent needs, before anybody
// makes room for them. A message is its length and its bytes
// (draft-miller-ssh-agent, 3).
type bounded struct {
	io.ReadWriter
	header [4]byte
	had    int    // bytes of the header
	left   uint32 // of the message
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left == 0 {
		p = p[:min(len(p), len(b.header)-b.had)]
	} else {
		p = p[:min(uint64(len(p)), uint64(b.left))]
	}
	n, err := b.ReadWriter.Read(p)
	if b.left > 0 {
		b.left -= uint32(n)
		return n, err
	}
	b.had += copy(b.header[b.had:], p[:n])
	if b.had == len(b.header) {
		b.had, b.left = 0, binary.BigEndian.Uint32(b.header[:])
		if b.left > maxMessage {
			return 0, fmt.Errorf("message of %d bytes: %w", b.left, syscall.EMSGSIZE)
		}
	}
	return n, err
}

// errReadOnly is the answer to requests that would change the agent. The client only learns
// that they failed.
var errReadOnly = errors.New("the agent holds what vouchd grants, and nothing else")

// A client is the agent as one client sees it.
type client struct {
	agent *Agent
	ctx   context.Context // of the connection
}

var _ agent.ExtendedAgent = (*client)(nil)

// List returns the certificate, or nothing if there is none: ssh then tries its other keys.
func (c *client) List() ([]*agent.Key, error) {
	cert, err := c.agent.Certificate(c.ctx)
	if err != nil {
		c.agent.log(err)
		return nil, nil
	}
	return []*agent.Key{{Format: cert.Type(), Blob: cert.Marshal(), Comment: cert.KeyId}}, nil
}

// Sign signs for the certificate that was listed.
func (c *client) Sign(key ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	return c.SignWithFlags(key, data, 0)
}

// SignWithFlags signs. The flags choose among RSA's hashes, and the key is none.
func (c *client) SignWithFlags(key ssh.PublicKey, data []byte, _ agent.SignatureFlags) (*ssh.Signature, error) {
	if !c.agent.alive() {
		return nil, errors.New("there is no certificate, or it has ended")
	}
	if !c.agent.certified(key) {
		return nil, errors.New("the key is not this agent's")
	}
	return c.agent.signer.Sign(rand.Reader, data)
}

// alive reports whether there is a certificate to sign for.
func (a *Agent) alive() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cert == nil {
		return false
	}
	left, _ := lives(a.cert, a.now())
	return left > 0
}

// certified reports whether key is a certificate of the agent's key. It may be
// the last one: the next may have come while ssh was at it.
func (a *Agent) certified(key ssh.PublicKey) bool {
	parsed, err := ssh.ParsePublicKey(key.Marshal())
	if err != nil {
		return false
	}
	cert, ok := parsed.(*ssh.Certificate)
	return ok && bytes.Equal(cert.Key.Marshal(), a.signer.PublicKey().Marshal())
}

func (c *client) Add(agent.AddedKey) error       { return errReadOnly }
func (c *client) Remove(ssh.PublicKey) error     { return errReadOnly }
func (c *client) RemoveAll() error               { return errReadOnly }
func (c *client) Lock([]byte) error              { return errReadOnly }
func (c *client) Unlock([]byte) error            { return errReadOnly }
func (c *client) Signers() ([]ssh.Signer, error) { return nil, errReadOnly }

// Extension knows none.
func (c *client) Extension(string, []byte) ([]byte, error) {
	return nil, agent.ErrExtensionUnsupported
}
