package vaultca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/vaultca"
	"github.com/vouchd/vouchd/identity/vaultca/vaultcatest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

var domain = spiffeid.RequireTrustDomainFromString("example.org")

func settings(s *vaultcatest.Server) vaultca.Settings {
	return vaultca.Settings{Address: s.URL, CAFile: s.CAFile, Mount: "pki", AuthMount: "cert", Role: "vouchd", Life: 24 * time.Hour, Root: s.Root, Domain: domain}
}

// proof is a certificate of the key that the server lets in.
func proof(t testing.TB, s *vaultcatest.Server, key *ecdsa.PrivateKey) vaultca.Proof {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	must(t, err)
	parsed, err := x509.ParseCertificate(der)
	must(t, err)
	s.Lock()
	s.Clients.AddCert(parsed)
	s.Unlock()
	return vaultca.Proof{Certificate: &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
}

func TestNodeIsCertifiedWithinItsTrustDomainAndItsLoginEnds(t *testing.T) {
	t.Parallel()
	for _, old := range []bool{false, true} {
		s := vaultcatest.New(t)
		s.OldServer = old
		key := newKey(t)
		u, err := settings(s).Certify(t.Context(), key, proof(t, s, key))
		must(t, err)
		c := u.Chain[0]
		if len(u.Chain) != 1 || !key.PublicKey.Equal(c.PublicKey) || c.MaxPathLen != 1 || c.URIs[0].String() != "spiffe://example.org" || u.Root != s.Root {
			t.Errorf("certified %v", c)
		}
		if vaultca.Constrained(u) == old {
			t.Errorf("constrained: %t, by a server that does not know how: %t", !old, old)
		}
		if n := s.Tokens(); n != 0 {
			t.Errorf("%d logins are left", n)
		}
		again, err := settings(s).Parse(vaultca.Encode(u), key.Public(), time.Now())
		if err != nil || !again.Chain[0].Equal(c) {
			t.Errorf("read again: %v", err)
		}
	}
}

func TestCertificateThatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	other := newKey(t)
	foreign, err := url.Parse("spiffe://other.example")
	must(t, err)
	for want, change := range map[string]func(*x509.Certificate){
		"is for another key": func(c *x509.Certificate) { c.PublicKey = other.Public() },
		"is not one of a CA": func(c *x509.Certificate) {
			c.IsCA, c.MaxPathLen, c.KeyUsage, c.PermittedURIDomains = false, 0, x509.KeyUsageDigitalSignature, nil
		},
		"leaves no room":            func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true },
		"not trust domain":          func(c *x509.Certificate) { c.URIs = []*url.URL{foreign}; c.PermittedURIDomains = nil },
		"is constrained to":         func(c *x509.Certificate) { c.URIs, c.PermittedURIDomains = nil, []string{"other.example"} },
		"does not lead to the root": func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) },
	} {
		s := vaultcatest.New(t)
		s.Change = change
		key := newKey(t)
		if _, err := settings(s).Certify(t.Context(), key, proof(t, s, key)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	s, another := vaultcatest.New(t), vaultcatest.New(t)
	of := settings(s)
	of.Root = another.Root
	key := newKey(t)
	if _, err := of.Certify(t.Context(), key, proof(t, s, key)); err == nil || !strings.Contains(err.Error(), "does not lead to the root") {
		t.Errorf("below another root: %v", err)
	}
}

func TestServerThatErrsIsNeitherBelievedNorRepeated(t *testing.T) {
	t.Parallel()
	const said = "what-the-server-said"
	for name, tt := range map[string]struct {
		path    string
		do      http.HandlerFunc
		refused bool
	}{
		"no login": {"auth/cert/login", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"errors":["`+said+`"]}`, http.StatusForbidden)
		}, true},
		"login of nothing": {"auth/cert/login", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"auth":{}}`)) }, false},
		"an empty login":   {"auth/cert/login", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, false},
		"no signature": {"pki/root/sign-intermediate", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"errors":["`+said+`"]}`, http.StatusBadRequest)
		}, true},
		"sealed":   {"pki/root/sign-intermediate", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, said, http.StatusServiceUnavailable) }, false},
		"too busy": {"pki/root/sign-intermediate", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, said, http.StatusTooManyRequests) }, false},
		"nothing":  {"pki/root/sign-intermediate", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"data":{}}`)) }, false},
		"no data":  {"pki/root/sign-intermediate", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, false},
		"other types": {"pki/root/sign-intermediate", func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(`{"data":{"certificate":1,"ca_chain":"x"}}`))
		}, false},
		"rubbish": {"pki/root/sign-intermediate", func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(`{"data":{"certificate":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"}}`))
		}, false},
		"no end": {"pki/root/sign-intermediate", func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(`{"data":"` + strings.Repeat("a", 5<<20)))
		}, false},
		"another's address": {"pki/root/sign-intermediate", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "https://192.0.2.1/")
			w.WriteHeader(307)
		}, false},
	} {
		s := vaultcatest.New(t)
		s.Fault = func(w http.ResponseWriter, path string) bool {
			if path != tt.path {
				return false
			}
			tt.do(w, nil)
			return true
		}
		key := newKey(t)
		_, err := settings(s).Certify(t.Context(), key, proof(t, s, key))
		if err == nil || errors.Is(err, vaultca.ErrRefused) != tt.refused || strings.Contains(err.Error(), said) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// files keeps what is saved, in memory.
type files struct {
	mu   sync.Mutex
	data map[string][]byte
}

func (f *files) Load(name string, _ int) ([]byte, int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.data[name]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return b, 1, nil
}

func (f *files) Save(name string, _ int, b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data[name] = b
	return nil
}

// keeping is a keeper in a bubble of its own time, whose server is away.
type keeping struct {
	vaultca.Keeper
	mu     sync.Mutex
	failed []error
	asked  []time.Time
}

// newKeeping returns one that notes when it would have asked.
func newKeeping(t *testing.T, store *files, key *ecdsa.PrivateKey) *keeping {
	k := new(keeping)
	k.Keeper = vaultca.Keeper{
		Key: key, Store: store, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Record: func(_ context.Context, u identity.Upstream, err error) error {
			k.mu.Lock()
			defer k.mu.Unlock()
			if err != nil {
				k.failed = append(k.failed, err)
			}
			return nil
		},
		Proof: func() (vaultca.Proof, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.asked = append(k.asked, time.Now())
			return vaultca.Proof{}, errors.New("it is away")
		},
		Apply: func(_ context.Context, u identity.Upstream) error { return nil },
	}
	return k
}

func TestServerThatStaysAwayIsAskedLessAndLessAndToldOfOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, &files{data: make(map[string][]byte)}, newKey(t))
		if u := k.Load(); u.Root != nil {
			t.Error("there is a certificate")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); k.Run(ctx) }()
		time.Sleep(24 * time.Hour) // of the bubble
		cancel()
		<-done
		n := len(k.asked)
		if n < 24*60/8 || n > 24*60/5+10 {
			t.Errorf("it was asked %d times in a day", n)
		}
		if first := k.asked[1].Sub(k.asked[0]); first < 5*time.Second || first > 8*time.Second {
			t.Errorf("it was asked again after %v", first)
		}
		if len(k.failed) != 1 {
			t.Errorf("it was recorded %d times", len(k.failed))
		}
		if s := k.State(); s.Failure == nil || s.Since.IsZero() || !s.Next.After(time.Now().Add(-time.Minute)) {
			t.Errorf("state %+v", s)
		}
	})
}

func TestCertificateOfAnEarlierRunIsUsedUntilItEnds(t *testing.T) {
	t.Parallel()
	s := vaultcatest.New(t)
	key, store := newKey(t), &files{data: make(map[string][]byte)}
	start := func(after time.Duration, key *ecdsa.PrivateKey) (*identity.Upstream, vaultca.State) {
		k := newKeeping(t, store, key)
		k.Settings, k.Now = settings(s), func() time.Time { return time.Now().Add(after) }
		u := k.Load()
		return u, k.State()
	}
	u, err := settings(s).Certify(t.Context(), key, proof(t, s, key))
	must(t, err)
	must(t, store.Save("vault-ca", 1, vaultca.Encode(u)))
	if of, state := start(time.Hour, key); of.Root == nil || state.Next.Before(time.Now().Add(11*time.Hour)) || state.Next.After(time.Now().Add(13*time.Hour)) {
		t.Errorf("of a start an hour later: %v, %+v", of.Root, state)
	}
	if of, state := start(25*time.Hour, key); of.Root != nil || state.Next.After(time.Now().Add(25*time.Hour)) {
		t.Errorf("after its end: %v, %+v", of.Root, state)
	}
	if of, _ := start(0, newKey(t)); of.Root != nil {
		t.Error("it is used for another key")
	}
	for _, rubbish := range []string{"", "x", strings.Repeat(string(vaultca.Encode(u)), 100)} {
		must(t, store.Save("vault-ca", 1, []byte(rubbish)))
		if of, _ := start(0, key); of.Root != nil {
			t.Errorf("%.20q is used", rubbish)
		}
	}
}

func TestCertificateIsKeptAndRecordedBeforeItIsUsed(t *testing.T) {
	t.Parallel()
	s := vaultcatest.New(t)
	key, store := newKey(t), &files{data: make(map[string][]byte)}
	k := newKeeping(t, store, key)
	with := proof(t, s, key)
	k.Settings, k.Proof = settings(s), func() (vaultca.Proof, error) { return with, nil }
	var order []string
	used := make(chan struct{})
	k.Record = func(context.Context, identity.Upstream, error) error { order = append(order, "recorded"); return nil }
	k.Apply = func(context.Context, identity.Upstream) error {
		if store.data["vault-ca"] != nil {
			order = append(order, "kept")
		}
		order = append(order, "used")
		close(used)
		return nil
	}
	k.Load()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.Run(ctx) }()
	<-used
	cancel()
	<-done
	if got := strings.Join(order, " "); got != "recorded kept used" {
		t.Errorf("it was %s", got)
	}
}

func FuzzParse(f *testing.F) {
	s := vaultcatest.New(f)
	key := newKey(f)
	u, err := settings(s).Certify(f.Context(), key, proof(f, s, key))
	must(f, err)
	f.Add(vaultca.Encode(u))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"))
	f.Fuzz(func(t *testing.T, text []byte) {
		u, err := settings(s).Parse(text, key.Public(), time.Now())
		if err == nil && (len(u.Chain) == 0 || !key.PublicKey.Equal(u.Chain[0].PublicKey) || u.Root != s.Root) {
			t.Errorf("accepted %v", u)
		}
	})
}
