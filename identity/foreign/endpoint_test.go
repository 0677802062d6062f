package foreign

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// served starts an endpoint with this certificate, and returns its URL.
func served(t *testing.T, cert tls.Certificate, change func(*tls.Config), h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	if change != nil {
		change(s.TLS)
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL + "/bundle"
}

func certificate(r root, change func(*x509.Certificate)) tls.Certificate {
	der, key := r.leaf(change)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func named(id string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.URIs = []*url.URL{must(url.Parse(id))} }
}

func loopback(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }

func pool(r root) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(r.cert)
	return p
}

const bundleID = "spiffe://partner.example/bundle"

func TestEndpointIsBelievedOnlyWithTheRightCertificate(t *testing.T) {
	t.Parallel()
	web, foreign, stranger := newRoot(other), newRoot(partner), newRoot(partner)
	yesterday := func(c *x509.Certificate) { named(bundleID)(c); c.NotAfter = time.Now().Add(-time.Minute) }
	for _, tt := range []struct {
		name    string
		profile string
		cert    tls.Certificate
		change  func(*tls.Config)
		want    error
	}{
		{"web", Web, certificate(web, loopback), nil, nil},
		{"web, of another authority", Web, certificate(stranger, loopback), nil, errCertificate},
		{"web, for another name", Web, certificate(web, func(c *x509.Certificate) { c.DNSNames = []string{"other.example"} }), nil, errCertificate},
		{"web, with an X509-SVID", Web, certificate(foreign, named(bundleID)), nil, errCertificate},
		{"web, with TLS 1.1", Web, certificate(web, loopback), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, errUnreachable},
		{"spiffe", SPIFFE, certificate(foreign, named(bundleID)), nil, nil},
		{"spiffe, another ID", SPIFFE, certificate(foreign, named("spiffe://partner.example/workload")), nil, errCertificate},
		{"spiffe, another trust domain's ID", SPIFFE, certificate(foreign, named("spiffe://other.example/bundle")), nil, errCertificate},
		{"spiffe, another root", SPIFFE, certificate(stranger, named(bundleID)), nil, errCertificate},
		{"spiffe, expired", SPIFFE, certificate(foreign, yesterday), nil, errCertificate},
		{"spiffe, with a web certificate", SPIFFE, certificate(web, loopback), nil, errCertificate},
		{"spiffe, with the root itself", SPIFFE, tls.Certificate{Certificate: [][]byte{foreign.cert.Raw}, PrivateKey: foreign.key}, nil, errCertificate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{}, 1)
			d := Domain{TrustDomain: partner, Profile: tt.profile, Endpoint: served(t, tt.cert, tt.change, func(w http.ResponseWriter, _ *http.Request) {
				asked <- struct{}{}
				io.WriteString(w, `{"keys":[]}`)
			})}
			if tt.profile == SPIFFE {
				d.EndpointID = spiffeid.RequireFromString(bundleID)
			}
			document, err := Endpoint{Web: pool(web)}.Fetch(t.Context(), d, x509bundle.FromX509Authorities(partner, []*x509.Certificate{foreign.cert}))
			if !errors.Is(err, tt.want) || tt.want == nil && string(document) != `{"keys":[]}` {
				t.Errorf("fetched %q, %v; want %v", document, err, tt.want)
			}
			if tt.want != nil && len(asked) > 0 {
				t.Error("the endpoint was asked before it had proved itself")
			}
		})
	}
}

func TestAnswerOfAnEndpointIsBounded(t *testing.T) {
	t.Parallel()
	web := newRoot(other)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   error
		text   string
	}{
		{"10 MB", func(w http.ResponseWriter, _ *http.Request) { w.Write(bytes.Repeat([]byte(" "), 10<<20)) }, errDocument, "more than 262144 bytes"},
		{"a slow drip", func(w http.ResponseWriter, r *http.Request) {
			for {
				io.WriteString(w, " ")
				w.(http.Flusher).Flush()
				select {
				case <-time.After(time.Millisecond):
				case <-r.Context().Done():
					return
				}
			}
		}, errUnreachable, "deadline"},
		{"silence", func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}, errUnreachable, "deadline"},
		{"long headers", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 100<<10)) }, errUnreachable, "header"},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://"+r.Host+"/elsewhere", http.StatusFound)
		}, errDocument, "answers 302; redirects are not followed"},
		{"a sign that it is not there", http.NotFound, errDocument, "answers 404"},
		{"an error", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "{}", http.StatusInternalServerError) }, errDocument, "answers 500"},
		{"the end of the connection", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "{")
		}, errUnreachable, "unexpected EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := Domain{TrustDomain: partner, Profile: Web, Endpoint: served(t, certificate(web, loopback), nil, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					t.Error("a redirect was followed")
				}
				if r.Method != http.MethodGet {
					t.Errorf("asked by %s", r.Method)
				}
				tt.answer(w, r)
			})}
			e := Endpoint{Web: pool(web)}
			if tt.text == "deadline" {
				e.Timeout = 300 * time.Millisecond
			}
			document, err := e.Fetch(t.Context(), d, nil)
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.text) {
				t.Errorf("fetched %d bytes, %v; want %v with %q", len(document), err, tt.want, tt.text)
			}
		})
	}
}

func TestEndpointThatIsAwayIsToldApart(t *testing.T) {
	t.Parallel()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	l.Close()
	_, err := Endpoint{}.Fetch(context.Background(), Domain{TrustDomain: partner, Profile: Web, Endpoint: "https://" + l.Addr().String()}, nil)
	if !errors.Is(err, errUnreachable) {
		t.Errorf("an endpoint that is away gives %v", err)
	}
}

func TestWordsOfAnEndpointReachNoTerminal(t *testing.T) {
	t.Parallel()
	text := printable(fmt.Errorf("x509: certificate is valid for \x1b[2Jevil\n%s", strings.Repeat("x", 1000)))
	if strings.ContainsAny(text, "\x1b\n") || len(text) > 610 {
		t.Errorf("printed %q", text)
	}
}
