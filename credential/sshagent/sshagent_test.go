package sshagent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// An authority certifies what it is asked for, and counts.
type authority struct {
	ssh.Signer
	life time.Duration

	mu     sync.Mutex // guards the fields below
	asked  int
	broken error
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	must(t, err)
	return &authority{Signer: signer, life: 5 * time.Minute}
}

func (a *authority) Certificate(_ context.Context, publicKey string) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	if a.broken != nil {
		return nil, a.broken
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(publicKey))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	c := &ssh.Certificate{
		Key: key, Serial: uint64(a.asked), CertType: ssh.UserCert, KeyId: "agent", ValidPrincipals: []string{"deploy"},
		ValidAfter: uint64(now.Unix()), ValidBefore: uint64(now.Add(a.life).Unix()),
	}
	if err := c.SignCert(rand.Reader, a); err != nil {
		return nil, err
	}
	return ssh.MarshalAuthorizedKey(c), nil
}

func (a *authority) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broken = err
}

// serve returns the path of an agent's socket.
func serve(t *testing.T, a *Agent) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "va") // short, because a socket's path is
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "agent.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return path
}

func newAgent(t *testing.T, source Source) *Agent {
	t.Helper()
	a, err := New(source, func(err error) { t.Log(err) })
	must(t, err)
	return a
}

// at sets the agent's clock.
func (a *Agent) at(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = func() time.Time { return now }
}

func dial(t *testing.T, path string) agent.ExtendedAgent {
	t.Helper()
	conn, err := net.Dial("unix", path)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return agent.NewClient(conn)
}

func TestNextCertificateIsAskedForWhenTheLastIsOld(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	a := newAgent(t, ca)
	started := time.Now()
	for _, step := range []struct {
		after time.Duration
		asked int
	}{{0, 1}, {3 * time.Minute, 1}, {3*time.Minute + 30*time.Second, 2}} {
		a.at(started.Add(step.after))
		if _, err := a.Certificate(t.Context()); err != nil || ca.asked != step.asked {
			t.Errorf("after %v: asked %d times, want %d; %v", step.after, ca.asked, step.asked, err)
		}
	}
}

func TestLastCertificateServesWhileTheNextCannotBeHad(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	a := newAgent(t, ca)
	client := dial(t, serve(t, a))
	first, err := client.List()
	if err != nil || len(first) != 1 {
		t.Fatalf("%v, %v", first, err)
	}
	key, err := ssh.ParsePublicKey(first[0].Blob)
	must(t, err)
	ca.fail(errors.New("the daemon is gone"))
	started := time.Now()
	a.at(started.Add(4 * time.Minute))
	if keys, err := client.List(); err != nil || len(keys) != 1 {
		t.Errorf("while the last one lives: %v, %v", keys, err)
	}
	if _, err := client.Sign(key, []byte("x")); err != nil {
		t.Errorf("signing while it lives: %v", err)
	}
	a.at(started.Add(6 * time.Minute))
	if _, err := client.Sign(key, []byte("x")); err == nil {
		t.Error("signed for a certificate that has ended")
	}
	if keys, err := client.List(); err != nil || len(keys) != 0 {
		t.Errorf("after its end: %v, %v", keys, err)
	}
}

func TestCertificateOfAnotherKeyIsNotTaken(t *testing.T) {
	t.Parallel()
	other := newAgent(t, newAuthority(t))
	a := newAgent(t, swapped{newAuthority(t), other.public})
	if c, err := a.Certificate(t.Context()); err == nil {
		t.Errorf("took %v", c)
	}
	ended := newAuthority(t)
	ended.life = -time.Second
	if c, err := newAgent(t, ended).Certificate(t.Context()); err == nil {
		t.Errorf("took %v, which has ended", c)
	}
}

// swapped certifies another key than it is asked to.
type swapped struct {
	*authority
	key string
}

func (s swapped) Certificate(ctx context.Context, _ string) ([]byte, error) {
	return s.authority.Certificate(ctx, s.key)
}

func TestOpenSSHCannotChangeTheAgent(t *testing.T) {
	t.Parallel()
	path := serve(t, newAgent(t, newAuthority(t)))
	add := func(args ...string) (string, error) {
		cmd := exec.Command("ssh-add", args...)
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+path, "SSH_ASKPASS_REQUIRE=force", "SSH_ASKPASS=/bin/echo")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	key := filepath.Join(t.TempDir(), "id")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	for _, args := range [][]string{{key}, {"-D"}, {"-d", key}, {"-x"}, {"-X"}} {
		if out, err := add(args...); err == nil {
			t.Errorf("ssh-add %q succeeds: %s", args, out)
		}
	}
	if out, err := add("-l"); err != nil || !strings.Contains(out, "ED25519-CERT") || strings.Count(out, "\n") != 1 {
		t.Errorf("ssh-add -l: %v: %s", err, out)
	}
}

func TestOnlyTheAgentsOwnKeySigns(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newAuthority(t))
	client := dial(t, serve(t, a))
	other := newAuthority(t)
	if _, err := client.Sign(other.PublicKey(), []byte("x")); err == nil {
		t.Error("signed before there was a certificate")
	}
	_, err := client.List()
	must(t, err)
	if _, err := client.Sign(other.PublicKey(), []byte("x")); err == nil {
		t.Error("signed for a key of somebody else")
	}
	if _, err := client.Sign(a.signer.PublicKey(), []byte("x")); err == nil {
		t.Error("signed for the bare key, which lasts for ever where somebody authorises it")
	}
}

func TestOversizedMessageEndsTheConnection(t *testing.T) {
	t.Parallel()
	path := serve(t, newAgent(t, newAuthority(t)))
	for name, message := range map[string][]byte{
		"a long one":     binary.BigEndian.AppendUint32(nil, maxMessage+1),
		"half a length":  {0, 0},
		"an unknown one": {0, 0, 0, 1, 255},
		"an empty one":   {0, 0, 0, 0},
	} {
		conn, err := net.Dial("unix", path)
		must(t, err)
		_, err = conn.Write(message)
		must(t, err)
		must(t, conn.(*net.UnixConn).CloseWrite())
		if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
	if keys, err := dial(t, path).List(); err != nil || len(keys) != 1 {
		t.Errorf("afterwards: %v, %v", keys, err)
	}
}

func TestAnotherUserIsNotAnswered(t *testing.T) {
	t.Parallel()
	path := serve(t, newAgent(t, newAuthority(t)))
	must(t, os.Chmod(filepath.Dir(path), 0o755))
	must(t, os.Chmod(path, 0o777)) // as careless as can be
	cmd := exec.Command("ssh-add", "-l")
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err == nil || strings.Contains(string(out), "CERT") {
		t.Errorf("ssh-add -l of nobody: %v: %s", err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What comes in pieces is what went in, up to the first message that is too
// long.
func FuzzBounded(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 11}, 1)
	f.Add([]byte{0, 0, 0, 2, 11, 0, 255, 255, 255, 255, 1}, 3)
	f.Fuzz(func(t *testing.T, in []byte, piece int) {
		b := &bounded{ReadWriter: struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(in), io.Discard}}
		want := in
		for rest := in; len(rest) >= 4; {
			n := uint64(binary.BigEndian.Uint32(rest))
			if n > maxMessage {
				want = in[:len(in)-len(rest)+3] // its length's last byte is withheld
				break
			}
			rest = rest[min(uint64(len(rest)), 4+n):]
		}
		var got []byte
		buffer := make([]byte, 1+uint(piece)%100)
		var err error
		for err == nil {
			var n int
			n, err = b.Read(buffer)
			got = append(got, buffer[:n]...)
		}
		if !bytes.HasPrefix(want, got) || len(want)-len(got) > 3 {
			t.Errorf("read %x of %x, want %x: %v", got, in, want, err)
		}
	})
}
