package endpoint

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// writePair writes a certificate with this serial number, and its key.
func writePair(t *testing.T, dir string, serial int64) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(1e9+serial, 0)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestRenewedCertificateIsServedAndABrokenOneIsNot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := writePair(t, dir, 1)
	var said bytes.Buffer
	p, err := loadPair(cert, key, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	serves := func(serial int64) {
		t.Helper()
		p.looked = p.looked.Add(-lookAtFiles)
		got, err := p.get(nil)
		if err != nil || got.Leaf.SerialNumber.Int64() != serial {
			t.Errorf("served is %v, %v; want %d", got.Leaf.SerialNumber, err, serial)
		}
	}
	serves(1)
	writePair(t, dir, 2)
	serves(2)
	writePair(t, dir, 3)
	if err := os.WriteFile(key, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	serves(2)
	if !strings.Contains(said.String(), "serving with the last one") || strings.Contains(said.String(), "PRIVATE") {
		t.Errorf("said is %s", &said)
	}
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	serves(2)
	writePair(t, dir, 4)
	serves(4)
}

// Whoever connects and says nothing, or little, takes a connection for seconds and not for
// ever.
func TestConnectionThatSaysNothingEnds(t *testing.T) {
	t.Parallel()
	cert, key := writePair(t, t.TempDir(), 1)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	bundle := new(published)
	bundle.document.Store(&document{spiffebundle.New(spiffeid.RequireTrustDomainFromString("example.org")), []byte("{}")})
	ended := make(chan error, 1)
	go func() {
		ended <- serve(t.Context(), l, &tls.Config{Certificates: []tls.Certificate{pair}}, "/bundle", bundle)
	}()
	t.Cleanup(func() { // after the context has ended
		if err := <-ended; err != nil {
			t.Errorf("serving ends with %v", err)
		}
	})
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	slow, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	fmt.Fprint(slow, "GET /bundle HTTP/1.1\r\nHost: ")
	for name, conn := range map[string]net.Conn{"silent": silent, "slow": slow} {
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err := conn.Read(make([]byte, 1))
		if e, ok := err.(net.Error); err == nil || ok && e.Timeout() {
			t.Errorf("the %s connection stays: %v", name, err)
		}
	}
}
