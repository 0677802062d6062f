// Package spiretest is a SPIRE server for tests: the calls that an agent makes, over real TLS,
// with real certificates. It checks what a real one checks: certificates of clients,
// signatures of requests, possession of keys, masks, and that each token is used once. The
// suite of package spire runs against a real server too (make test-spire), which keeps this
// one honest.
package spiretest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// A Server is one SPIRE server. Its exported fields may be changed under Lock.
type Server struct {
	sync.Mutex
	t testing.TB

	TrustDomain spiffeid.TrustDomain
	Address     string // host and port, the same after Stop and Start
	BundleFile  string // PEM, of the roots as the server began

	PopRoots  *x509.CertPool                         // whose leaves x509pop takes
	TTL       time.Duration                          // of X509-SVIDs whose entry leaves it open, and of agents'
	JWTTTL    time.Duration                          // of JWT-SVIDs whose entry leaves it open
	Cache     time.Duration                          // until an agent that was just attested is sent its entries
	Page      int                                    // entries of one message
	NoSync    bool                                   // SyncAuthorizedEntries is not known
	Skew      time.Duration                          // of its clock
	Fault     func(method string) error              // answers in its place, unless it is nil
	Cut       func(method string, message int) error // ends a stream before it sends that message, unless it is nil
	OldTLS    bool                                   // TLS 1.1 alone
	Change    func(*x509.Certificate)                // of an X509-SVID about to be signed
	Refuse    func(entry string) error               // to sign for an entry, unless it is nil
	SignLimit int                                    // X509-SVIDs in a second; 0: none
	OtherKey  bool                                   // signs for another key than was asked for
	Federated map[string]*spirev1.Bundle

	Calls map[string]int // by method, such as BatchNewX509SVID
	Max   int            // of calls at a time, as far as seen

	pop         *popAuthority // of Leaf
	authorities []*authority  // the last one signs
	jwtKeys     []*tokenKey   // the last one signs
	witKeys     []*tokenKey   // likewise; none: it signs no WIT-SVIDs
	sequence    uint64
	agents      map[string]*agent
	tokens      map[string]bool
	entries     map[string]*spirev1.Entry
	signed      []time.Time // in the last second
	statuses    *rate.Limiter
	now         int
	server      *grpc.Server
	listener    net.Listener
	own         *tls.Certificate
}

type authority struct {
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	tainted bool
}

type tokenKey struct {
	id      string
	key     *ecdsa.PrivateKey
	tainted bool
}

// An agent is a host that was attested.
type agent struct {
	serial       string
	next         string // of an SVID that was renewed, until it is used
	reattestable bool
	banned       bool
	attested     time.Time
}

// New starts a server that the test ends.
func New(t testing.TB, trustDomain string) *Server {
	t.Helper()
	s := &Server{
		t: t, TrustDomain: spiffeid.RequireTrustDomainFromString(trustDomain), pop: newPopAuthority(t), PopRoots: x509.NewCertPool(),
		TTL: time.Hour, JWTTTL: 5 * time.Minute, Page: 500, Federated: make(map[string]*spirev1.Bundle), Calls: make(map[string]int),
		statuses: rate.NewLimiter(10, 10), // SPIRE's of an address, which is one here
		agents:   make(map[string]*agent), tokens: make(map[string]bool), entries: make(map[string]*spirev1.Entry),
	}
	s.PopRoots.AddCert(s.pop.cert)
	s.RotateX509()
	s.RotateJWT()
	s.BundleFile = filepath.Join(t.TempDir(), "bundle.pem")
	must(s.t, os.WriteFile(s.BundleFile, s.PEM(), 0o644))
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// Start listens, after Stop at the address that there was.
func (s *Server) Start() {
	s.t.Helper()
	address := s.Address
	if address == "" { // one of its own, which nobody else is given while it is stopped
		address = ownAddress()
	}
	l, err := net.Listen("tcp", address)
	must(s.t, err)
	s.Address = l.Addr().String()
	c := &tls.Config{ClientAuth: tls.RequestClientCert, GetCertificate: s.certificate, NextProtos: []string{"h2"}}
	if s.OldTLS {
		c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(c)), grpc.MaxRecvMsgSize(32<<20),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := s.count(info.FullMethod); err != nil {
				return nil, err
			}
			defer s.uncount()
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := s.count(info.FullMethod); err != nil {
				return err
			}
			defer s.uncount()
			s.Lock()
			cut := s.Cut
			s.Unlock()
			return next(srv, &cutStream{ServerStream: stream, cut: cut, method: filepath.Base(info.FullMethod)})
		}))
	f := front{s: s}
	spirev1.RegisterAgentServer(server, f)
	spirev1.RegisterBundleServer(server, bundleFront{s: s})
	spirev1.RegisterEntryServer(server, f)
	spirev1.RegisterSVIDServer(server, f)
	s.Lock()
	s.server, s.listener, s.own = server, l, nil
	s.Unlock()
	go server.Serve(l)
}

// A cutStream may end before its end.
type cutStream struct {
	grpc.ServerStream
	cut    func(method string, message int) error
	method string
	sent   int
}

func (c *cutStream) SendMsg(m any) error {
	c.sent++
	if c.cut != nil {
		if err := c.cut(c.method, c.sent); err != nil {
			return err
		}
	}
	return c.ServerStream.SendMsg(m)
}

// Stop ends the server at once, as a crash does.
func (s *Server) Stop() {
	s.Lock()
	server, l := s.server, s.listener
	s.server = nil
	s.Unlock()
	if server != nil {
		l.Close() // Serve may not have begun yet
		server.Stop()
	}
}

func (s *Server) count(method string) error {
	s.Lock()
	defer s.Unlock()
	name := filepath.Base(method)
	s.Calls[name]++
	s.now++
	s.Max = max(s.Max, s.now)
	if s.Fault != nil {
		if err := s.Fault(name); err != nil {
			s.now--
			return err
		}
	}
	return nil
}

func (s *Server) uncount() {
	s.Lock()
	defer s.Unlock()
	s.now--
}

// Called returns how often a method was called.
func (s *Server) Called(method string) int {
	s.Lock()
	defer s.Unlock()
	return s.Calls[method]
}

// Set changes fields.
func (s *Server) Set(change func()) {
	s.Lock()
	defer s.Unlock()
	change()
}

// PEM is the X.509 authorities.
func (s *Server) PEM() (text []byte) {
	s.Lock()
	defer s.Unlock()
	for _, a := range s.authorities {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
	}
	return text
}

// Roots are the X.509 authorities.
func (s *Server) Roots() (roots []*x509.Certificate) {
	s.Lock()
	defer s.Unlock()
	for _, a := range s.authorities {
		roots = append(roots, a.cert)
	}
	return roots
}

// RotateX509 has another authority sign from now on.
func (s *Server) RotateX509() {
	s.t.Helper()
	s.Lock()
	defer s.Unlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	must(s.t, err)
	c := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: s.TrustDomain.Name()}, NotBefore: s.clock().Add(-time.Minute), NotAfter: s.clock().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: uris(s.TrustDomain.IDString()),
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, c, c, key.Public(), key)
	must(s.t, err)
	cert, err := x509.ParseCertificate(der)
	must(s.t, err)
	s.authorities = append(s.authorities, &authority{cert: cert, key: key})
	s.sequence++
}

// RotateJWT has another key sign tokens from now on.
func (s *Server) RotateJWT() {
	s.t.Helper()
	s.Lock()
	defer s.Unlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	must(s.t, err)
	s.jwtKeys = append(s.jwtKeys, &tokenKey{id: cryptorand.Text(), key: key})
	s.sequence++
}

// RotateWIT has another key sign WIT-SVIDs from now on. Before the first there are none.
func (s *Server) RotateWIT() {
	s.t.Helper()
	s.Lock()
	defer s.Unlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	must(s.t, err)
	s.witKeys = append(s.witKeys, &tokenKey{id: cryptorand.Text(), key: key})
	s.sequence++
}

// SignUnknown has an authority sign that the bundle does not have. The caller holds the lock.
func (s *Server) SignUnknown() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	must(s.t, err)
	last := s.authorities[len(s.authorities)-1]
	s.authorities[len(s.authorities)-1] = &authority{cert: last.cert, key: key}
}

// SignUnknownWIT has a key sign WIT-SVIDs that the bundle does not have. The caller holds the
// lock.
func (s *Server) SignUnknownWIT() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	must(s.t, err)
	s.witKeys[len(s.witKeys)-1].key = key
}

// Taint says that the authorities before the last ones are not to be relied on.
func (s *Server) Taint() {
	s.Lock()
	defer s.Unlock()
	for _, a := range s.authorities[:len(s.authorities)-1] {
		a.tainted = true
	}
	for _, keys := range [][]*tokenKey{s.jwtKeys, s.witKeys} {
		for _, k := range keys[:max(0, len(keys)-1)] {
			k.tainted = true
		}
	}
	s.sequence++
}

// SetBack has the bundle be of an earlier sequence.
func (s *Server) SetBack() {
	s.Lock()
	defer s.Unlock()
	s.sequence--
}

// Token returns a join token for a new agent.
func (s *Server) Token() string {
	s.Lock()
	defer s.Unlock()
	token := cryptorand.Text()
	s.tokens[token] = true
	return token
}

// Ban bans every agent there is.
func (s *Server) Ban() {
	s.Lock()
	defer s.Unlock()
	for _, a := range s.agents {
		a.banned = true
	}
}

// Evict forgets every agent.
func (s *Server) Evict() {
	s.Lock()
	defer s.Unlock()
	clear(s.agents)
}

// Agents returns the IDs of the agents.
func (s *Server) Agents() (ids []string) {
	s.Lock()
	defer s.Unlock()
	for id := range s.agents {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Add registers an entry for all agents and returns its ID. One with the ID of another
// takes its place, as the next revision.
func (s *Server) Add(e *spirev1.Entry) string {
	s.Lock()
	defer s.Unlock()
	if e.Id == "" {
		e.Id = cryptorand.Text()
	}
	if old := s.entries[e.Id]; old != nil {
		e.RevisionNumber, e.CreatedAt = old.RevisionNumber+1, old.CreatedAt
	} else {
		e.CreatedAt = time.Now().Unix()
	}
	e.ParentId = &spirev1.SPIFFEID{TrustDomain: s.TrustDomain.Name(), Path: "/hosts"}
	s.entries[e.Id] = e
	return e.Id
}

// Entry is one for a path and selectors, such as unix:uid:0.
func (s *Server) Entry(path string, selectors ...string) *spirev1.Entry {
	e := &spirev1.Entry{SpiffeId: &spirev1.SPIFFEID{TrustDomain: s.TrustDomain.Name(), Path: path}}
	for _, text := range selectors {
		kind, value, ok := cut(text)
		if !ok {
			panic(fmt.Sprintf("selector %q", text))
		}
		e.Selectors = append(e.Selectors, &spirev1.Selector{Type: kind, Value: value})
	}
	return e
}

// Remove deletes an entry.
func (s *Server) Remove(id string) {
	s.Lock()
	defer s.Unlock()
	delete(s.entries, id)
}

// clock is the server's. The caller holds the lock.
func (s *Server) clock() time.Time { return time.Now().Add(s.Skew) }
