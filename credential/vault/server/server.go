// Package server connects to a Vault or OpenBao. Answers are bounded in size and time, and
// nothing follows a redirect.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/openbao/openbao/api/v2"
)

const (
	timeout = 15 * time.Second
	maxBody = 4 << 20 // bytes of an answer
)

// Client returns a client of the server at an address, over h. Namespace and token may be
// empty. The environment has no say.
func Client(address, namespace string, h *http.Client, token string) (*api.Client, error) {
	c, err := api.NewClient(&api.Config{
		Address:            address,
		HttpClient:         h,
		MaxRetries:         0,
		Timeout:            timeout,
		DisableRedirects:   true,
		DisableEnvironment: true,
	})
	if err != nil {
		return nil, err
	}
	c.SetToken(token)
	if namespace != "" {
		c.SetNamespace(namespace)
	}
	return c, nil
}

// HTTP returns a client that trusts the machine's roots, or only those in caFile, and
// presents a certificate if there is one. The file is read at each connection.
func HTTP(caFile string, certificate *tls.Certificate) *http.Client {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		t := &tls.Config{MinVersion: tls.VersionTLS12}
		if certificate != nil {
			t.Certificates = []tls.Certificate{*certificate}
		}
		if caFile != "" {
			pem, err := os.ReadFile(caFile)
			if err != nil {
				return nil, err
			}
			t.RootCAs = x509.NewCertPool()
			if !t.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s holds no certificate", caFile)
			}
		}
		return (&tls.Dialer{Config: t}).DialContext(ctx, network, addr)
	}
	return &http.Client{
		Transport:     bounded{&http.Transport{DialTLSContext: dial, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: timeout, MaxResponseHeaderBytes: 64 << 10}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// bounded ends an answer that takes too long, and refuses redirects: the client would take
// one for success, and a revocation for confirmed.
type bounded struct{ *http.Transport }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		resp.Body.Close()
		return nil, fmt.Errorf("the server redirects (status %d), and secrets do not follow; name the active server, or let standbys forward", resp.StatusCode)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{&limited{resp.Body, maxBody}, resp.Body}
	return resp, nil
}

type limited struct {
	r    io.Reader
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errors.New("the answer is too long")
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}
