package foreign

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

var (
	errCertificate = errors.New("the endpoint's certificate is not the right one")
	errUnreachable = errors.New("the endpoint cannot be reached")
)

// An Endpoint is where a bundle is fetched.
type Endpoint struct {
	// Web has the roots of https_web endpoints; nil: the system's.
	Web *x509.CertPool
	// Timeout bounds one request, from the name's look-up to the last byte; 0: 30 s.
	Timeout time.Duration
}

// Fetch asks an endpoint once. Roots verify one of profile https_spiffe. What is
// returned is at most [MaxDocument] bytes of whatever it says.
//
// Redirects, which Federation §5.2.1.4 would have followed, are refused: they lead to
// hosts that nobody configured (§7.5.1).
func (e Endpoint) Fetch(ctx context.Context, d Domain, roots x509bundle.Source) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(e.Timeout, 30*time.Second))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.Endpoint, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	transport := e.transport(d, roots)
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return nil, unreached(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why := ""
		if resp.StatusCode >= 300 && resp.StatusCode < 400 {
			why = "; redirects are not followed: name the address that it leads to, if its owner says so"
		}
		return nil, fmt.Errorf("%w: the endpoint answers %d%s", errDocument, resp.StatusCode, why)
	}
	document, err := io.ReadAll(io.LimitReader(resp.Body, MaxDocument+1))
	if err == nil {
		// A server that sees this side go at the deadline ends its answer properly, which may
		// still be read here.
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: reading its answer: %w", errUnreachable, err)
	}
	if len(document) > MaxDocument {
		return nil, fmt.Errorf("%w: it has more than %d bytes", errDocument, MaxDocument)
	}
	return document, nil
}

func (e Endpoint) transport(d Domain, roots x509bundle.Source) *http.Transport {
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  10 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableKeepAlives:      true,
		DisableCompression:     true, // what is bounded is what is read
		TLSClientConfig:        &tls.Config{RootCAs: e.Web, MinVersion: tls.VersionTLS12},
	}
	if d.Profile == SPIFFE { // Federation §5.2.2.4
		verify := tlsconfig.VerifyPeerCertificate(roots, tlsconfig.AuthorizeID(d.EndpointID))
		t.TLSClientConfig.InsecureSkipVerify = true // as an X509-SVID it is verified here, and has no name
		t.TLSClientConfig.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) error {
			if err := verify(raw, nil); err != nil {
				return fmt.Errorf("%w: %w", errCertificate, err)
			}
			return nil
		}
	}
	return t
}

// unreached says what a request without an answer failed by.
func unreached(err error) error {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%w: %w", errCertificate, err)
	}
	if errors.Is(err, errCertificate) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnreachable, err)
}

// printable is an error's text without what a terminal would obey: some of it is the
// endpoint's own words.
func printable(err error) string {
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, err.Error())
	const most = 600
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
