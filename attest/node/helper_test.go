package node

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/state"
)

func store(t testing.TB) *state.Dir {
	t.Helper()
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

func load(t testing.TB, tpm *TPM, s Store) *Node {
	t.Helper()
	n, err := Load(t.Context(), tpm, s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func reopen(t *testing.T, address string) *TPM {
	t.Helper()
	tpm, err := Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Close() })
	return tpm
}

func checkSignature(t *testing.T, s crypto.Signer) {
	t.Helper()
	der, err := x509.CreateCertificateRequest(nil, &x509.CertificateRequest{}, s)
	if err != nil {
		t.Error(err)
		return
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Error(err)
		return
	}
	if err := r.CheckSignature(); err != nil {
		t.Error(err)
	}
}

func evict(t *testing.T, real *tpmtest.TPM, h tpm2.TPMHandle) {
	t.Helper()
	real.Do(func(tr transport.TPM) error {
		r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(tr)
		if err != nil {
			return err
		}
		_, err = tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			ObjectHandle:     tpm2.NamedHandle{Handle: h, Name: r.Name},
			PersistentHandle: h,
		}.Execute(tr)
		return err
	})
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

// recorded is everything that went over a link.
type recorded struct {
	mu   sync.Mutex
	all  []byte
	sent int
}

func (r *recorded) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.all)
}

type recordingLink struct {
	link
	to *recorded
}

func (l lyingLink) exchange(ctx context.Context, command []byte) ([]byte, error) {
	response, err := l.link.exchange(ctx, command)
	if err == nil && bytes.Equal(command[6:10], []byte{0, 0, 1, 0x5d}) { // TPM2_Sign
		response[headerLen+4+4+2+5] ^= 1 // parameter length, algorithms, R's length
	}
	return response, err
}

func recording(open func(context.Context) (link, error), to *recorded) func(context.Context) (link, error) {
	return func(ctx context.Context) (link, error) {
		l, err := open(ctx)
		return recordingLink{l, to}, err
	}
}

func quoteOf(t *testing.T, n *Node, bank tpm2.TPMAlgID, pcrs []uint, data []byte) (q appraisal.Quote) {
	t.Helper()
	err := n.tpm.do(t.Context(), "quoting", operationLimit, func(tr transport.TPM) error {
		ak, err := n.load(tr, n.keys.AK)
		if err != nil {
			return err
		}
		if q.PCRs, err = readPCRs(tr, bank, pcrs); err != nil {
			return err
		}
		q.Signed, err = quoteOnce(tr, ak, bank, pcrs, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func created(t *testing.T, n *Node, template tpm2.TPMTPublic) (b blob) {
	t.Helper()
	err := n.tpm.do(t.Context(), "making a key", operationLimit, func(tr transport.TPM) error {
		r, err := tpm2.Create{ParentHandle: n.parent(tpm2.PasswordAuth(nil)), InPublic: tpm2.New2B(template)}.Execute(tr)
		if err == nil {
			b = newBlob(r)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func certified(t *testing.T, n *Node, ak, key blob, data []byte) (s appraisal.Signed) {
	t.Helper()
	err := n.tpm.do(t.Context(), "certifying", operationLimit, func(tr transport.TPM) (err error) {
		s, err = n.certify(tr, ak, key, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// softKey returns the public area of a key that is in no TPM.
func softKey(t *testing.T, template tpm2.TPMTPublic) blob {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return blob{Public: tpm2.Marshal(template)}
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

func open(t testing.TB) (*TPM, *tpmtest.TPM) {
	t.Helper()
	real := tpmtest.Start(t)
	tpm, err := Open(t.Context(), real.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Close() })
	return tpm, real
}

func random(ctx context.Context, tpm *TPM) error {
	return tpm.do(ctx, "drawing a random number", operationLimit, func(tr transport.TPM) error {
		_, err := tpm2.GetRandom{BytesRequested: 8}.Execute(tr)
		return err
	})
}

// someBytes are for tests that need any bytes but always others.
func someBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func policy(t testing.TB, text string) appraisal.Policy {
	t.Helper()
	p, err := appraisal.ParsePolicy("policy.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return p
}

// A machine is a node, its TPM, and where evidence about it takes its logs from.
type machine struct {
	*Node
	real *tpmtest.TPM
	from Sources
}

func extendPCR(tr transport.TPM, pcr int, sha1, sha256 []byte) error {
	digests := []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sha256}}
	if len(sha1) > 0 {
		digests = append(digests, tpm2.TPMTHA{HashAlg: tpm2.TPMAlgSHA1, Digest: sha1})
	}
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: digests},
	}.Execute(tr)
	return err
}

// evidence returns evidence and what a verifier that did everything right has
// in its hands.
func (m *machine) evidence(t testing.TB) ([]byte, appraisal.Given) {
	t.Helper()
	given := appraisal.Given{Nonce: someBytes(32), Now: time.Now()}
	e, err := m.Evidence(t.Context(), given.Nonce, m.from)
	if err != nil {
		t.Fatal(err)
	}
	challenge, kept, err := appraisal.Challenge(e)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := m.Activate(t.Context(), challenge)
	if err != nil {
		t.Fatal(err)
	}
	a, err := appraisal.VerifyActivation(kept, answer)
	if err != nil {
		t.Fatal(err)
	}
	given.Activation = &a
	return e, given
}
