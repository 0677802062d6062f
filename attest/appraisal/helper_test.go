package appraisal_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os/exec"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/state"
)

// event makes an event with the digests of its data.
func event(pcr, typ uint32, data []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, pcr)
	b = binary.LittleEndian.AppendUint32(b, typ)
	b = binary.LittleEndian.AppendUint32(b, 2)
	d := sha256.Sum256(data)
	b = append(binary.LittleEndian.AppendUint16(b, 4), d[:20]...)
	b = append(binary.LittleEndian.AppendUint16(b, 11), d[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func store(t testing.TB) *state.Dir {
	t.Helper()
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

func load(t testing.TB, tpm *node.TPM, s node.Store) *node.Node {
	t.Helper()
	n, err := node.Load(t.Context(), tpm, s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func reopen(t *testing.T, address string) *node.TPM {
	t.Helper()
	tpm, err := node.Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Close() })
	return tpm
}

// undefine removes an NV index, with platform authorisation where its maker
// asks for it.
func undefine(t *testing.T, real *tpmtest.TPM, index tpm2.TPMHandle) {
	t.Helper()
	real.Do(func(tr transport.TPM) error {
		r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tr)
		if err != nil {
			return err
		}
		public, err := r.NVPublic.Contents()
		if err != nil {
			return err
		}
		hierarchy := tpm2.TPMRHOwner
		if public.Attributes.PlatformCreate {
			hierarchy = tpm2.TPMRHPlatform
		}
		_, err = tpm2.NVUndefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: r.NVName},
		}.Execute(tr)
		return err
	})
}

func newLogKey(t testing.TB) ed25519.PublicKey {
	t.Helper()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// clone copies what has a JSON form, deep.
func clone[T any](t *testing.T, v T) (c T) {
	t.Helper()
	if err := json.Unmarshal(encode(t, v), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func open(t testing.TB) (*node.TPM, *tpmtest.TPM) {
	t.Helper()
	real := tpmtest.Start(t)
	tpm, err := node.Open(t.Context(), real.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Close() })
	return tpm, real
}

// someBytes are for tests that need any bytes but always others.
func someBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// tool runs a program of tpm2-tools on a TPM.
func tool(t *testing.T, real *tpmtest.TPM, name string, args ...string) {
	t.Helper()
	if err := runTool(real, name, args...); err != nil {
		t.Fatal(err)
	}
}

func runTool(real *tpmtest.TPM, name string, args ...string) error {
	if real != nil {
		args = append([]string{"--tcti", real.TCTI}, args...)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return errors.New(name + " (Debian package tpm2-tools): " + err.Error() + "\n" + string(out))
	}
	return nil
}

func statementOf(t *testing.T, n *node.Node) *appraisal.Verified {
	t.Helper()
	logKey := newLogKey(t)
	s, err := n.Statement(t.Context(), logKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := appraisal.VerifyStatement(s, logKey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
