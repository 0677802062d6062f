package dns

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// serve answers for api.example.com, and returns resolvers over UDP and TCP, and what was refused.
func serve(t *testing.T) (resolvers map[string]*net.Resolver, refused func() []string) {
	t.Helper()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var mu sync.Mutex
	var names []string
	s := &Server{Names: map[string]bool{"api.example.com": true}, Refused: func(name string) {
		mu.Lock()
		defer mu.Unlock()
		names = append(names, name)
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, udp, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	resolvers = make(map[string]*net.Resolver)
	for _, addr := range []net.Addr{udp.LocalAddr(), tcp.Addr()} {
		resolvers[addr.Network()] = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, addr.Network(), addr.String())
		}}
	}
	return resolvers, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(names)
	}
}

func TestGrantedNamesAreHereAndNoOtherExists(t *testing.T) {
	t.Parallel()
	resolvers, refused := serve(t)
	for network, r := range resolvers {
		for _, name := range []string{"api.example.com.", "API.Example.COM."} {
			if got, err := r.LookupHost(t.Context(), name); err != nil || !slices.Equal(got, []string{"127.0.0.1"}) {
				t.Errorf("%s: %s: %q (%v)", network, name, got, err)
			}
		}
		for _, name := range []string{"c2VjcmV0.x1.evil.example.", "example.com.", "x.api.example.com.", "com."} {
			_, err := r.LookupHost(t.Context(), name)
			if e, ok := errors.AsType[*net.DNSError](err); !ok || !e.IsNotFound {
				t.Errorf("%s: %s: %v", network, name, err)
			}
		}
	}
	if got := refused(); !slices.Contains(got, "evil.example (labels: 4, bytes: 24)") || strings.Contains(strings.Join(got, ""), "c2vjcmv0") {
		t.Errorf("%q", got)
	}
}

func TestManyQuestionsAreAnsweredOverOneConnection(t *testing.T) {
	t.Parallel()
	resolvers, _ := serve(t)
	var work sync.WaitGroup
	for range 20 {
		work.Go(func() {
			for _, r := range resolvers {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				if _, err := r.LookupIP(ctx, "ip4", "api.example.com."); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
}

func query(t testing.TB, name string, kind dnsmessage.Type, class dnsmessage.Class, h dnsmessage.Header) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name)
	must(t, err)
	m := dnsmessage.Message{Header: h, Questions: []dnsmessage.Question{{Name: n, Type: kind, Class: class}}}
	b, err := m.Pack()
	must(t, err)
	return b
}

func TestOddQueries(t *testing.T) {
	t.Parallel()
	s := &Server{Names: map[string]bool{"a.example": true}}
	for _, tt := range []struct {
		name    string
		query   []byte
		rcode   dnsmessage.RCode
		answers int
	}{
		{"an address", query(t, "a.example.", dnsmessage.TypeA, dnsmessage.ClassINET, dnsmessage.Header{}), dnsmessage.RCodeSuccess, 1},
		{"of IPv6, there is none", query(t, "a.example.", dnsmessage.TypeAAAA, dnsmessage.ClassINET, dnsmessage.Header{}), dnsmessage.RCodeSuccess, 0},
		{"text, there is none", query(t, "a.example.", dnsmessage.TypeTXT, dnsmessage.ClassINET, dnsmessage.Header{}), dnsmessage.RCodeSuccess, 0},
		{"text of no name", query(t, "b.example.", dnsmessage.TypeTXT, dnsmessage.ClassINET, dnsmessage.Header{}), dnsmessage.RCodeNameError, 0},
		{"the root", query(t, ".", dnsmessage.TypeNS, dnsmessage.ClassINET, dnsmessage.Header{}), dnsmessage.RCodeNameError, 0},
		{"another class", query(t, "a.example.", dnsmessage.TypeTXT, dnsmessage.ClassCHAOS, dnsmessage.Header{}), dnsmessage.RCodeRefused, 0},
		{"an update", query(t, "a.example.", dnsmessage.TypeSOA, dnsmessage.ClassINET, dnsmessage.Header{OpCode: 5}), dnsmessage.RCodeNotImplemented, 0},
		{"no question", make([]byte, 12), dnsmessage.RCodeFormatError, 0},
	} {
		var m dnsmessage.Message
		if err := m.Unpack(s.Answer(tt.query)); err != nil || m.RCode != tt.rcode || len(m.Answers) != tt.answers || !m.Response {
			t.Errorf("%s: %v (%v)", tt.name, m.GoString(), err)
		}
	}
	if b := s.Answer(query(t, "a.example.", dnsmessage.TypeA, dnsmessage.ClassINET, dnsmessage.Header{Response: true})); b != nil {
		t.Errorf("an answer is answered: %x", b)
	}
	if got := Remains("a\x1b.b\n" + strings.Repeat("x", 60)); got != "a?.b?xxxxxxxxxxxxxxxxxxxxxx~ (labels: 2, bytes: 65)" {
		t.Errorf("%q", got)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(query(f, "a.example.", dnsmessage.TypeA, dnsmessage.ClassINET, dnsmessage.Header{ID: 7}))
	f.Add(query(f, "x.b.example.", dnsmessage.TypeAAAA, dnsmessage.ClassINET, dnsmessage.Header{RecursionDesired: true}))
	s := &Server{Names: map[string]bool{"a.example": true}, Refused: func(string) {}}
	f.Fuzz(func(t *testing.T, b []byte) {
		answer := s.Answer(b)
		if answer == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(answer); err != nil || !m.Response || len(answer) > 512 || answer[0] != b[0] || answer[1] != b[1] {
			t.Errorf("%x is answered by %x (%v)", b, answer, err)
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
