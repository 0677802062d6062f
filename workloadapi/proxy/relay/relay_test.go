package relay

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// greeting is what a client of TLS sends first.
func greeting(t testing.TB, name string) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		tls.Client(theirs, &tls.Config{ServerName: name}).Handshake() // ends with the pipe
		theirs.Close()
	}()
	b := make([]byte, 64<<10)
	n, err := ours.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// A deaf connection has nobody at its other end.
type deaf struct{ net.Conn }

func (deaf) SetReadDeadline(time.Time) error { return nil }

func TestNameOfAGreetingIsReadAndNothingIsLost(t *testing.T) {
	t.Parallel()
	sent := append(greeting(t, "api.example.com"), "what follows"...)
	name, again, err := ServerName(deaf{}, bytes.NewReader(sent), time.Minute)
	if err != nil || name != "api.example.com" {
		t.Fatalf("%q (%v)", name, err)
	}
	if got, err := io.ReadAll(again); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d follow (%v)", len(got), len(sent), err)
	}
}

func FuzzServerName(f *testing.F) {
	f.Add(greeting(f, "api.example.com"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		_, again, err := ServerName(deaf{}, bytes.NewReader(sent), time.Minute)
		if err != nil {
			return
		}
		if got, err := io.ReadAll(again); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes of %d follow (%v)", len(got), len(sent), err)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(`{"door":"loopback","host":"api.example.com","handles":{"api":"h"},"processes":[{"pid":1,"start":2}],"authority":"aa"}`)
	f.Add(`{"door":"sandbox","attempt":{"kind":"udp","target":"203.0.113.7:53","count":2}}`)
	f.Fuzz(func(t *testing.T, text string) {
		h, err := Of(&http.Request{ProtoMajor: 1, Header: http.Header{"Upgrade": {Protocol}, header: {text}}})
		if err != nil {
			return
		}
		if h == nil || len(h.Processes) > MaxProcesses || len(h.Handles) > MaxHandles || h.Attempt != nil && (len(h.Attempt.Target) > MaxText || h.Attempt.Count < 0) ||
			!strings.Contains(Loopback+Connect+Sandbox, h.Door) {
			t.Errorf("taken: %+v", h)
		}
	})
}
