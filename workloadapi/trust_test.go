package workloadapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"maps"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/foreign"
	"github.com/vouchd/vouchd/workloadapi/credentialapi/client"
	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

// others are trust domains whose bundles a test replaces.
type others struct {
	mu      sync.Mutex
	bundles map[spiffeid.TrustDomain]*foreign.Bundle
	changed chan struct{}
}

func newOthers() *others {
	return &others{bundles: make(map[spiffeid.TrustDomain]*foreign.Bundle), changed: make(chan struct{})}
}

func (o *others) Bundle(td spiffeid.TrustDomain) *foreign.Bundle {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bundles[td]
}

func (o *others) Changed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// set gives a trust domain so many new roots and JWT keys; none of either: no bundle.
func (o *others) set(t *testing.T, name string, roots, keys int) *foreign.Bundle {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString(name)
	b := spiffebundle.New(td)
	for i := range max(roots, keys) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if i < roots {
			b.AddX509Authority(cert)
		}
		if i < keys {
			b.AddJWTAuthority(fmt.Sprint("key", i), key.Public())
		}
	}
	document, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var parsed *foreign.Bundle
	if !b.Empty() {
		if parsed, err = foreign.ParseBundle(td, document); err != nil {
			t.Fatal(err)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bundles[td] = parsed
	close(o.changed)
	o.changed = make(chan struct{})
	return parsed
}

// startFederated is startStack where there are other trust domains.
func startFederated(t *testing.T, o *others, entries string) *stack {
	t.Helper()
	s := &stack{gatetest.Start(t, entries)}
	api := New(Options{Gate: s.Gate, Watcher: s.Watcher, Authority: s.Authority, Foreign: o, Logger: s.Logger})
	s.Serve(func(ctx context.Context, l *net.UnixListener) error { return Serve(ctx, l, s.Gate, api) })
	return s
}

func federating(with ...string) string {
	return fmt.Sprintf("  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], federates_with: [%s]}\n", os.Getuid(), strings.Join(with, ", "))
}

func names(bundles map[string][]byte) []string { return slices.Sorted(maps.Keys(bundles)) }

func TestForeignBundlesAreGivenToWhoFederatesAndToNobodyElse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		entries string
		x509    []string
		jwt     []string
	}{
		{"without federates_with", federating(), nil, nil},
		{"with one", federating("a.example"), []string{"spiffe://a.example"}, []string{"spiffe://a.example"}},
		{"with roots alone", federating("roots.example"), []string{"spiffe://roots.example"}, nil},
		{"with keys alone", federating("keys.example"), nil, []string{"spiffe://keys.example"}},
		{"with one of which nothing is known", federating("unknown.example"), nil, nil},
		{"by several entries", federating("a.example") + strings.Replace(federating("b.example", "a.example"), "/agent", "/other", 1), []string{"spiffe://a.example", "spiffe://b.example"}, []string{"spiffe://a.example", "spiffe://b.example"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := newOthers()
			a := o.set(t, "a.example", 2, 1)
			o.set(t, "b.example", 1, 1)
			o.set(t, "roots.example", 1, 0)
			o.set(t, "keys.example", 0, 1)
			s := startFederated(t, o, tt.entries)
			client, ctx := s.raw(t, securityHeader, "true")
			svids, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := svids.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(names(got.FederatedBundles), tt.x509) {
				t.Errorf("beside X509-SVIDs are bundles of %q, want %q", names(got.FederatedBundles), tt.x509)
			}
			if len(tt.x509) > 0 && tt.x509[0] == "spiffe://a.example" {
				if certs, err := x509.ParseCertificates(got.FederatedBundles["spiffe://a.example"]); err != nil || len(certs) != 2 || !certs[0].Equal(a.Roots[0]) {
					t.Errorf("the bundle of a.example has %d roots, %v", len(certs), err)
				}
			}
			roots, err := client.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			rootsOf, err := roots.Recv()
			if err != nil {
				t.Fatal(err)
			}
			keys, err := client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			keysOf, err := keys.Recv()
			if err != nil {
				t.Fatal(err)
			}
			const own = "spiffe://example.org"
			if want := slices.Sorted(slices.Values(append([]string{own}, tt.x509...))); !slices.Equal(names(rootsOf.Bundles), want) {
				t.Errorf("X.509 bundles are of %q, want %q", names(rootsOf.Bundles), want)
			}
			if want := slices.Sorted(slices.Values(append([]string{own}, tt.jwt...))); !slices.Equal(names(keysOf.Bundles), want) {
				t.Errorf("JWT bundles are of %q, want %q", names(keysOf.Bundles), want)
			}
			// Merged, one could forge the identities of another (Federation §4.2).
			if string(rootsOf.Bundles[own]) != string(s.Authority.Bundle().X509) || string(keysOf.Bundles[own]) != string(s.Authority.Bundle().JWKS) {
				t.Error("the own bundle has something else in it")
			}
		})
	}
}

func TestStreamsHaveAForeignBundleAsItIsNowAndOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	o := newOthers()
	o.set(t, "a.example", 1, 1)
	s := startFederated(t, o, federating("a.example"))
	client, ctx := s.raw(t, securityHeader, "true")
	svids, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func() (x509, jwt []byte) {
		t.Helper()
		of, err := svids.Recv()
		if err != nil {
			t.Fatal(err)
		}
		set, err := keys.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return of.FederatedBundles["spiffe://a.example"], set.Bundles["spiffe://a.example"]
	}
	next()
	o.set(t, "other.example", 1, 1) // which is not sent: what comes next has the change after it
	changed := o.set(t, "a.example", 2, 2)
	if roots, jwks := next(); string(roots) != string(changed.X509) || string(jwks) != string(changed.JWKS) {
		t.Errorf("a change sends %d and %d bytes", len(roots), len(jwks))
	}
	o.set(t, "a.example", 0, 0)
	if roots, jwks := next(); roots != nil || jwks != nil {
		t.Errorf("once the bundle is gone, a stream has %d and %d bytes of it", len(roots), len(jwks))
	}
	s.SetEntries(federating("b.example"))
	o.set(t, "b.example", 1, 0)
	of, err := svids.Recv()
	for err == nil && of.FederatedBundles["spiffe://b.example"] == nil {
		of, err = svids.Recv()
	}
	if err != nil {
		t.Error(err)
	}
}

func TestStreamSaysWhichBundleItBeginsWith(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	raw, ctx := s.raw(t, securityHeader, "true")
	stream, err := raw.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	header, err := stream.Header()
	if err != nil {
		t.Fatal(err)
	}
	if got := header.Get(sequenceHeader); !slices.Equal(got, []string{fmt.Sprint(s.Authority.Bundle().Sequence)}) {
		t.Errorf("the header says %q", got)
	}
	c, err := client.New("unix://" + s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		b, err := c.Bundle(t.Context(), "example.org", true)
		if err != nil {
			t.Fatal(err)
		}
		now := s.Authority.Bundle()
		if b.Sequence != now.Sequence || string(b.X509) != string(now.X509) || string(b.JWKS) != string(now.JWKS) {
			t.Errorf("fetched number %d, and it is %d", b.Sequence, now.Sequence)
		}
		s.Clock.Move(24*time.Hour + 30*time.Minute)
		if err := s.Authority.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Bundle(t.Context(), "other.example", false); err == nil {
		t.Error("the bundle of another trust domain is had without federating")
	}
}

func TestKeysOfAnotherTrustDomainAreGoodForNoIdentityOfOurs(t *testing.T) {
	t.Parallel()
	elsewhere := gatetest.Start(t, gatetest.Entry("/agent", os.Getuid())) // its trust domain is example.org too
	o := newOthers()
	s := startFederated(t, o, federating("a.example"))
	id := spiffeid.RequireFromString("spiffe://example.org/agent")
	svid, err := elsewhere.Authority.IssueJWT(t.Context(), identity.Entry{ID: id, JWTTTL: time.Minute}, []string{"api"}, identity.With{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := foreign.ParseBundle(spiffeid.RequireTrustDomainFromString("a.example"), elsewhere.Authority.Bundle().JWKS)
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	o.bundles[b.TrustDomain] = b
	o.mu.Unlock()
	client, ctx := s.raw(t, securityHeader, "true")
	if got, err := client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "api", Svid: svid.Token}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token of this trust domain by another one's key is %v, %v", got, err)
	}
}
