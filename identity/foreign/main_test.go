package foreign

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	own     = spiffeid.RequireTrustDomainFromString("example.org")
	partner = spiffeid.RequireTrustDomainFromString("partner.example")
	other   = spiffeid.RequireTrustDomainFromString("other.example")
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A root is a trust domain's root and its key.
type root struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newRoot(td spiffeid.TrustDomain) root {
	return newRootUntil(td, time.Now().Add(24*time.Hour*365))
}

func newRootUntil(td spiffeid.TrustDomain, until time.Time) root {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62))), NotBefore: time.Unix(0, 0), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{must(url.Parse(td.IDString()))},
		Subject: pkix.Name{Organization: []string{td.Name()}},
	}
	return root{must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)))), key}
}

// leaf returns a certificate that the root signs, and its key.
func (r root) leaf(change func(*x509.Certificate)) ([]byte, crypto.Signer) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62))), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	change(template)
	return must(x509.CreateCertificate(rand.Reader, template, r.cert, key.Public(), r.key)), key
}

// documentOf is a trust domain's bundle as go-spiffe writes it.
func documentOf(td spiffeid.TrustDomain, sequence uint64, hint time.Duration, roots ...root) []byte {
	b := spiffebundle.New(td)
	for _, r := range roots {
		b.AddX509Authority(r.cert)
	}
	if sequence > 0 {
		b.SetSequenceNumber(sequence)
	}
	if hint > 0 {
		b.SetRefreshHint(hint)
	}
	if len(roots) == 0 {
		return must(json.Marshal(map[string]any{"keys": []any{}, "spiffe_sequence": sequence}))
	}
	return must(b.Marshal())
}

// jwkOf is a key as it stands in a bundle.
func jwkOf(key any, kid, use string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key, KeyID: kid, Use: use}
}

// memory is a state directory that can fail, as a process does that is killed: before a
// write or after it.
type memory struct {
	mu     sync.Mutex
	files  map[string][]byte
	writes int
	fail   int  // the write that fails, from 1; 0: none
	after  bool // it is done nonetheless
}

var errKilled = errors.New("killed")

func newMemory() *memory { return &memory{files: make(map[string][]byte)} }

func (m *memory) Load(name string, _ int) ([]byte, int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.files[name]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return slices.Clone(data), 1, nil
}

func (m *memory) Save(name string, _ int, data []byte) error {
	return m.write(func() { m.files[name] = slices.Clone(data) })
}

func (m *memory) Remove(name string) error { return m.write(func() { delete(m.files, name) }) }

func (m *memory) write(do func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if m.fail > 0 && m.writes >= m.fail {
		if m.after && m.writes == m.fail {
			do()
		}
		return errKilled
	}
	do()
	return nil
}

// copied is the store as a new process finds it.
func (m *memory) copied() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{files: maps.Clone(m.files)}
}

// endpoints answers in place of the network.
type endpoints struct {
	mu     sync.Mutex
	answer map[spiffeid.TrustDomain]func(context.Context, x509bundle.Source) ([]byte, error)
	asked  map[spiffeid.TrustDomain][]time.Time
}

func newEndpoints() *endpoints {
	return &endpoints{
		answer: make(map[spiffeid.TrustDomain]func(context.Context, x509bundle.Source) ([]byte, error)),
		asked:  make(map[spiffeid.TrustDomain][]time.Time),
	}
}

func (e *endpoints) Fetch(ctx context.Context, d Domain, roots x509bundle.Source) ([]byte, error) {
	e.mu.Lock()
	e.asked[d.TrustDomain] = append(e.asked[d.TrustDomain], time.Now())
	answer := e.answer[d.TrustDomain]
	e.mu.Unlock()
	if answer == nil {
		return nil, errUnreachable
	}
	return answer(ctx, roots)
}

func (e *endpoints) serve(td spiffeid.TrustDomain, document []byte) {
	e.fail(td, document, nil)
}

func (e *endpoints) fail(td spiffeid.TrustDomain, document []byte, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer[td] = func(context.Context, x509bundle.Source) ([]byte, error) { return document, err }
}

func (e *endpoints) times(td spiffeid.TrustDomain) []time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.asked[td])
}

// recorded is the log of a keeper.
type recorded struct {
	testing.TB
	mu   sync.Mutex
	all  []Decision
	full error // the log takes nothing
	then func(Decision)
}

func (r *recorded) record(_ context.Context, d Decision) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full != nil {
		return r.full
	}
	r.all = append(r.all, d)
	if r.then != nil {
		r.then(d)
	}
	return nil
}

// lines say what was decided, one word each.
func (r *recorded) lines() (lines []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.all {
		switch {
		case d.Err == nil:
			lines = append(lines, "took")
		case d.Absent:
			lines = append(lines, "absent")
		default:
			lines = append(lines, "refused")
		}
	}
	return lines
}
