package spiretest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

type front struct {
	spirev1.UnimplementedAgentServer
	spirev1.UnimplementedEntryServer
	spirev1.UnimplementedSVIDServer
	s *Server
}

type bundleFront struct {
	spirev1.UnimplementedBundleServer
	s *Server
}

func serial() *big.Int { return new(big.Int).SetBytes([]byte(rand.Text()[:16])) }

func uris(id string) []*url.URL {
	u, err := url.Parse(id)
	if err != nil {
		panic(err)
	}
	return []*url.URL{u}
}

func cut(selector string) (kind, value string, ok bool) { return strings.Cut(selector, ":") }

// certificate is the server's own SVID, which it keeps until it is started anew or its end is
// near.
func (s *Server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.Lock()
	defer s.Unlock()
	if s.own != nil && s.clock().Before(s.own.Leaf.NotAfter.Add(-time.Minute)) {
		return s.own, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	chain, err := s.sign(s.TrustDomain.IDString()+"/spire/server", key.Public(), time.Hour, nil)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	s.own = &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
	return s.own, nil
}

// sign makes an X509-SVID as a server does. The caller holds the lock.
func (s *Server) sign(id string, key crypto.PublicKey, ttl time.Duration, dns []string) ([][]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	ski := sha1.Sum(der)
	c := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"SPIRE"}}, URIs: uris(id), NotBefore: s.clock().Add(-10 * time.Second), NotAfter: s.clock().Add(ttl), SubjectKeyId: ski[:],
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		DNSNames: dns,
	}
	if len(dns) > 0 {
		c.Subject.CommonName = dns[0]
	}
	if s.Change != nil && !strings.Contains(id, "/spire/") {
		s.Change(c)
	}
	a := s.authorities[len(s.authorities)-1]
	leaf, err := x509.CreateCertificate(rand.Reader, c, a.cert, key, a.key)
	return [][]byte{leaf}, err
}

func denied(reason spirev1.PermissionDeniedDetails_Reason, format string, args ...any) error {
	s, err := status.New(codes.PermissionDenied, fmt.Sprintf(format, args...)).WithDetails(&spirev1.PermissionDeniedDetails{Reason: reason})
	if err != nil {
		return err
	}
	return s.Err()
}

// caller returns the agent that calls. The caller holds the lock.
func (s *Server) caller(ctx context.Context) (id string, a *agent, err error) {
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return "", nil, status.Error(codes.PermissionDenied, "no certificate")
	}
	cert := info.State.PeerCertificates[0]
	roots := x509.NewCertPool()
	for _, a := range s.authorities {
		roots.AddCert(a.cert)
	}
	if len(cert.URIs) != 1 {
		return "", nil, status.Error(codes.PermissionDenied, "no SPIFFE ID")
	}
	id = cert.URIs[0].String()
	if s.clock().After(cert.NotAfter) {
		return id, nil, denied(spirev1.PermissionDeniedDetails_AGENT_EXPIRED, "agent %q SVID is expired", id)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: s.clock(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return id, nil, status.Error(codes.Unauthenticated, err.Error())
	}
	switch a = s.agents[id]; {
	case a == nil:
		return id, nil, denied(spirev1.PermissionDeniedDetails_AGENT_NOT_ATTESTED, "agent %q is not attested", id)
	case a.banned:
		return id, nil, denied(spirev1.PermissionDeniedDetails_AGENT_BANNED, "agent %q is banned", id)
	case a.next != "" && a.next == cert.SerialNumber.String():
		a.serial, a.next = a.next, ""
	case a.serial != cert.SerialNumber.String():
		return id, nil, denied(spirev1.PermissionDeniedDetails_AGENT_NOT_ACTIVE, "agent %q expected to have serial number %q", id, a.serial)
	}
	return id, a, nil
}

// AttestAgent implements [spirev1.AgentServer].
func (f front) AttestAgent(stream grpc.BidiStreamingServer[spirev1.AttestAgentRequest, spirev1.AttestAgentResponse]) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	p := req.GetParams()
	csr, err := x509.ParseCertificateRequest(p.GetParams().GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return status.Error(codes.InvalidArgument, "malformed CSR")
	}
	var id string
	reattestable := false
	switch kind, payload := p.GetData().GetType(), p.GetData().GetPayload(); kind {
	case "join_token":
		f.s.Lock()
		known := f.s.tokens[string(payload)]
		delete(f.s.tokens, string(payload))
		f.s.Unlock()
		if !known {
			return status.Error(codes.InvalidArgument, "failed to attest: join token does not exist or has already been used")
		}
		id = "/spire/agent/join_token/" + string(payload)
	case "x509pop":
		if id, err = f.pop(stream, payload); err != nil {
			return err
		}
		reattestable = true
	default:
		return status.Errorf(codes.FailedPrecondition, "could not find node attestor type %q", kind)
	}
	f.s.Lock()
	defer f.s.Unlock()
	id = f.s.TrustDomain.IDString() + id
	if a := f.s.agents[id]; a != nil && a.banned {
		return status.Error(codes.PermissionDenied, "failed to attest: agent is banned")
	}
	svid, err := f.agentSVID(id, csr.PublicKey, reattestable, time.Now())
	if err != nil {
		return err
	}
	return stream.Send(&spirev1.AttestAgentResponse{Step: &spirev1.AttestAgentResponse_Result_{Result: &spirev1.AttestAgentResponse_Result{Svid: svid, Reattestable: reattestable}}})
}

// agentSVID signs for an agent. The caller holds the lock.
func (f front) agentSVID(id string, key crypto.PublicKey, reattestable bool, attested time.Time) (*spirev1.X509SVID, error) {
	if f.s.OtherKey {
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		key = other.Public()
	}
	chain, err := f.s.sign(id, key, f.s.TTL, nil)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	if old := f.s.agents[id]; old != nil && !reattestable {
		old.next = cert.SerialNumber.String()
	} else {
		f.s.agents[id] = &agent{serial: cert.SerialNumber.String(), reattestable: reattestable, attested: attested}
	}
	return &spirev1.X509SVID{CertChain: chain, Id: f.id(id), ExpiresAt: cert.NotAfter.Unix()}, nil
}

func (f front) id(id string) *spirev1.SPIFFEID {
	return &spirev1.SPIFFEID{TrustDomain: f.s.TrustDomain.Name(), Path: strings.TrimPrefix(id, f.s.TrustDomain.IDString())}
}

// pop has the caller prove that it has the key of a certificate.
func (f front) pop(stream grpc.BidiStreamingServer[spirev1.AttestAgentRequest, spirev1.AttestAgentResponse], payload []byte) (path string, err error) {
	var data struct{ Certificates [][]byte }
	if err := json.Unmarshal(payload, &data); err != nil || len(data.Certificates) == 0 {
		return "", status.Error(codes.InvalidArgument, "malformed payload")
	}
	leaf, err := x509.ParseCertificate(data.Certificates[0])
	if err != nil {
		return "", status.Error(codes.InvalidArgument, err.Error())
	}
	between := x509.NewCertPool()
	for _, der := range data.Certificates[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	f.s.Lock()
	roots, now := f.s.PopRoots, f.s.clock()
	f.s.Unlock()
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return "", status.Errorf(codes.PermissionDenied, "nodeattestor(x509pop): certificate verification failed: %v", err)
	}
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 || !ok {
		return "", status.Error(codes.Internal, "nodeattestor(x509pop): unable to generate challenge: certificate not intended for digital signature use")
	}
	type nonces struct {
		ECDSA struct {
			Nonce []byte `json:"nonce"`
			R     []byte `json:"r,omitempty"`
			S     []byte `json:"s,omitempty"`
		} `json:"ecdsa_signature"`
	}
	var ask, got nonces
	ask.ECDSA.Nonce = make([]byte, 32)
	rand.Read(ask.ECDSA.Nonce)
	challenge, err := json.Marshal(ask)
	if err != nil {
		return "", err
	}
	if err := stream.Send(&spirev1.AttestAgentResponse{Step: &spirev1.AttestAgentResponse_Challenge{Challenge: challenge}}); err != nil {
		return "", err
	}
	req, err := stream.Recv()
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(req.GetChallengeResponse(), &got); err != nil {
		return "", status.Error(codes.InvalidArgument, err.Error())
	}
	digest := sha256.Sum256(slices.Concat(ask.ECDSA.Nonce, got.ECDSA.Nonce))
	if len(got.ECDSA.Nonce) != 32 || !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(got.ECDSA.R), new(big.Int).SetBytes(got.ECDSA.S)) {
		return "", status.Error(codes.PermissionDenied, "nodeattestor(x509pop): challenge response verification failed")
	}
	fingerprint := sha1.Sum(leaf.Raw)
	return fmt.Sprintf("/spire/agent/x509pop/%x", fingerprint), nil
}

// RenewAgent implements [spirev1.AgentServer].
func (f front) RenewAgent(ctx context.Context, req *spirev1.RenewAgentRequest) (*spirev1.RenewAgentResponse, error) {
	f.s.Lock()
	defer f.s.Unlock()
	id, a, err := f.s.caller(ctx)
	if err != nil {
		return nil, err
	}
	if a.reattestable {
		return nil, denied(spirev1.PermissionDeniedDetails_AGENT_MUST_REATTEST, "agent must reattest instead of renew")
	}
	csr, err := x509.ParseCertificateRequest(req.GetParams().GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "malformed CSR")
	}
	svid, err := f.agentSVID(id, csr.PublicKey, false, a.attested)
	return &spirev1.RenewAgentResponse{Svid: svid}, err
}

// PostStatus implements [spirev1.AgentServer]. As SPIRE does, it has those wait that are too
// many, and refuses at once whose time would be over by then.
func (f front) PostStatus(ctx context.Context, req *spirev1.PostStatusRequest) (*spirev1.PostStatusResponse, error) {
	if err := f.s.statuses.Wait(ctx); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	f.s.Lock()
	defer f.s.Unlock()
	_, _, err := f.s.caller(ctx)
	return new(spirev1.PostStatusResponse), err
}

// GetBundle implements [spirev1.BundleServer].
func (f bundleFront) GetBundle(context.Context, *spirev1.GetBundleRequest) (*spirev1.Bundle, error) {
	f.s.Lock()
	defer f.s.Unlock()
	return f.s.bundle()
}

// Bundle is what another server is given of this one's.
func (s *Server) Bundle() *spirev1.Bundle {
	s.Lock()
	defer s.Unlock()
	b, err := s.bundle()
	must(s.t, err)
	return b
}

func (s *Server) bundle() (*spirev1.Bundle, error) {
	b := &spirev1.Bundle{TrustDomain: s.TrustDomain.Name(), SequenceNumber: s.sequence, RefreshHint: 300}
	for _, a := range s.authorities {
		b.X509Authorities = append(b.X509Authorities, &spirev1.X509Certificate{Asn1: a.cert.Raw, Tainted: a.tainted})
	}
	until := s.clock().Add(24 * time.Hour).Unix()
	for _, k := range s.jwtKeys {
		der, err := x509.MarshalPKIXPublicKey(k.key.Public())
		if err != nil {
			return nil, err
		}
		b.JwtAuthorities = append(b.JwtAuthorities, &spirev1.JWTKey{PublicKey: der, KeyId: k.id, ExpiresAt: until, Tainted: k.tainted})
	}
	for _, k := range s.witKeys {
		der, err := x509.MarshalPKIXPublicKey(k.key.Public())
		if err != nil {
			return nil, err
		}
		b.WitAuthorities = append(b.WitAuthorities, &spirev1.WITKey{PublicKey: der, KeyId: k.id, ExpiresAt: until, Tainted: k.tainted})
	}
	return b, nil
}

// GetFederatedBundle implements [spirev1.BundleServer].
func (f bundleFront) GetFederatedBundle(ctx context.Context, req *spirev1.GetFederatedBundleRequest) (*spirev1.Bundle, error) {
	f.s.Lock()
	defer f.s.Unlock()
	if _, _, err := f.s.caller(ctx); err != nil {
		return nil, err
	}
	if b := f.s.Federated[req.TrustDomain]; b != nil {
		return b, nil
	}
	return nil, status.Error(codes.NotFound, "bundle not found")
}

// authorized are the entries of an agent, as the server's cache has them.
func (s *Server) authorized(ctx context.Context) (map[string]*spirev1.Entry, error) {
	s.Lock()
	defer s.Unlock()
	_, a, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	if time.Since(a.attested) < s.Cache {
		return nil, nil
	}
	return maps.Clone(s.entries), nil
}

// GetAuthorizedEntries implements [spirev1.EntryServer].
func (f front) GetAuthorizedEntries(ctx context.Context, req *spirev1.GetAuthorizedEntriesRequest) (*spirev1.GetAuthorizedEntriesResponse, error) {
	entries, err := f.s.authorized(ctx)
	return &spirev1.GetAuthorizedEntriesResponse{Entries: pick(entries, slices.Sorted(maps.Keys(entries)), req.OutputMask)}, err
}

// SyncAuthorizedEntries implements [spirev1.EntryServer].
func (f front) SyncAuthorizedEntries(stream grpc.BidiStreamingServer[spirev1.SyncAuthorizedEntriesRequest, spirev1.SyncAuthorizedEntriesResponse]) error {
	f.s.Lock()
	page, unknown := f.s.Page, f.s.NoSync
	f.s.Unlock()
	if unknown {
		return status.Error(codes.Unimplemented, "unknown method SyncAuthorizedEntries")
	}
	entries, err := f.s.authorized(stream.Context())
	if err != nil {
		return err
	}
	req, err := stream.Recv()
	switch {
	case err != nil:
		return err
	case len(req.Ids) > 0:
		return status.Error(codes.InvalidArgument, "specifying IDs on initial request is not supported")
	case req.OutputMask != nil && !req.OutputMask.RevisionNumber:
		return status.Error(codes.InvalidArgument, "revision number cannot be masked")
	}
	mask := req.OutputMask // that of later requests is not looked at
	ids := slices.Sorted(maps.Keys(entries))
	if len(ids) <= page {
		return stream.Send(&spirev1.SyncAuthorizedEntriesResponse{Entries: pick(entries, ids, mask)})
	}
	for part := range slices.Chunk(ids, page) {
		r := &spirev1.SyncAuthorizedEntriesResponse{More: part[len(part)-1] != ids[len(ids)-1]}
		for _, e := range pick(entries, part, mask) {
			r.EntryRevisions = append(r.EntryRevisions, &spirev1.EntryRevision{Id: e.Id, RevisionNumber: e.RevisionNumber, CreatedAt: e.CreatedAt})
		}
		if err := stream.Send(r); err != nil {
			return err
		}
	}
	for {
		req, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		wanted := pick(entries, req.Ids, mask)
		for len(wanted) > page {
			if err := stream.Send(&spirev1.SyncAuthorizedEntriesResponse{Entries: wanted[:page], More: true}); err != nil {
				return err
			}
			wanted = wanted[page:]
		}
		if err := stream.Send(&spirev1.SyncAuthorizedEntriesResponse{Entries: wanted}); err != nil {
			return err
		}
	}
}

// pick returns entries, with what the mask asks for; nil: everything.
func pick(entries map[string]*spirev1.Entry, ids []string, mask *spirev1.EntryMask) (list []*spirev1.Entry) {
	for _, id := range ids {
		if e := entries[id]; e != nil {
			list = append(list, masked(proto.CloneOf(e), mask))
		}
	}
	return list
}

func masked(e *spirev1.Entry, mask *spirev1.EntryMask) *spirev1.Entry {
	if mask == nil {
		return e
	}
	m, of := e.ProtoReflect(), mask.ProtoReflect()
	m.Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		wanted := of.Descriptor().Fields().ByName(field.Name())
		if field.Name() != "id" && (wanted == nil || !of.Get(wanted).Bool()) {
			m.Clear(field)
		}
		return true
	})
	return e
}

// BatchNewX509SVID implements [spirev1.SVIDServer].
func (f front) BatchNewX509SVID(ctx context.Context, req *spirev1.BatchNewX509SVIDRequest) (*spirev1.BatchNewX509SVIDResponse, error) {
	f.s.Lock()
	defer f.s.Unlock()
	if _, _, err := f.s.caller(ctx); err != nil {
		return nil, err
	}
	if len(req.Params) == 0 {
		return nil, status.Error(codes.InvalidArgument, "missing parameters")
	}
	if err := f.s.limit(len(req.Params)); err != nil {
		return nil, err
	}
	out := new(spirev1.BatchNewX509SVIDResponse)
	for _, p := range req.Params {
		svid, err := f.x509SVID(p)
		result := &spirev1.BatchNewX509SVIDResponse_Result{Status: &spirev1.Status{}, Svid: svid}
		if err != nil {
			result.Status = &spirev1.Status{Code: int32(status.Code(err)), Message: status.Convert(err).Message()}
		}
		out.Results = append(out.Results, result)
	}
	return out, nil
}

// limit holds an agent to how much it may ask for in a second. The caller holds the lock.
func (s *Server) limit(n int) error {
	const burst = 500
	if n > burst {
		return status.Errorf(codes.ResourceExhausted, "rate (%d) exceeds burst size (%d)", n, burst)
	}
	now := time.Now()
	s.signed = slices.DeleteFunc(s.signed, func(t time.Time) bool { return now.Sub(t) > time.Second })
	if s.SignLimit > 0 && len(s.signed)+n > s.SignLimit {
		return status.Error(codes.ResourceExhausted, "rejecting request due to certificate signing rate limiting")
	}
	s.signed = append(s.signed, slices.Repeat([]time.Time{now}, n)...)
	return nil
}

// x509SVID signs for an entry. The caller holds the lock.
func (f front) x509SVID(p *spirev1.NewX509SVIDParams) (*spirev1.X509SVID, error) {
	e := f.s.entries[p.EntryId]
	if e == nil {
		return nil, status.Error(codes.NotFound, "entry not found or not authorized")
	}
	if f.s.Refuse != nil {
		if err := f.s.Refuse(p.EntryId); err != nil {
			return nil, err
		}
	}
	csr, err := x509.ParseCertificateRequest(p.Csr)
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "malformed CSR")
	}
	key := csr.PublicKey
	if f.s.OtherKey {
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		key = other.Public()
	}
	ttl := f.s.TTL
	if e.X509SvidTtl > 0 {
		ttl = time.Duration(e.X509SvidTtl) * time.Second
	}
	chain, err := f.s.sign(f.s.TrustDomain.IDString()+e.SpiffeId.Path, key, ttl, e.DnsNames)
	return &spirev1.X509SVID{CertChain: chain, Id: e.SpiffeId, ExpiresAt: f.s.clock().Add(ttl).Unix()}, err
}

// NewJWTSVID implements [spirev1.SVIDServer].
func (f front) NewJWTSVID(ctx context.Context, req *spirev1.NewJWTSVIDRequest) (*spirev1.NewJWTSVIDResponse, error) {
	f.s.Lock()
	defer f.s.Unlock()
	if _, _, err := f.s.caller(ctx); err != nil {
		return nil, err
	}
	e := f.s.entries[req.EntryId]
	if e == nil {
		return nil, status.Error(codes.NotFound, "entry not found or not authorized")
	}
	if len(req.Audience) == 0 {
		return nil, status.Error(codes.InvalidArgument, "at least one audience is required")
	}
	ttl := f.s.JWTTTL
	if e.JwtSvidTtl > 0 {
		ttl = time.Duration(e.JwtSvidTtl) * time.Second
	}
	k := f.s.jwtKeys[len(f.s.jwtKeys)-1]
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k.key, KeyID: k.id}}, new(jose.SignerOptions).WithType("JWT"))
	if err != nil {
		return nil, err
	}
	now := f.s.clock().Truncate(time.Second)
	claims := jwt.Claims{Subject: f.s.TrustDomain.IDString() + e.SpiffeId.Path, Audience: req.Audience, Expiry: jwt.NewNumericDate(now.Add(ttl)), IssuedAt: jwt.NewNumericDate(now)}
	if e.GetAdditionalAttributes().GetJwtSvidIncludeJti() {
		claims.ID = rand.Text()
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	return &spirev1.NewJWTSVIDResponse{Svid: &spirev1.JWTSVID{Token: token, Id: e.SpiffeId, ExpiresAt: now.Add(ttl).Unix(), IssuedAt: now.Unix()}}, err
}

// BatchNewWITSVID implements [spirev1.SVIDServer].
func (f front) BatchNewWITSVID(ctx context.Context, req *spirev1.BatchNewWITSVIDRequest) (*spirev1.BatchNewWITSVIDResponse, error) {
	f.s.Lock()
	defer f.s.Unlock()
	if _, _, err := f.s.caller(ctx); err != nil {
		return nil, err
	}
	if len(f.s.witKeys) == 0 {
		return nil, status.Error(codes.Unimplemented, "WIT-SVID functionality is disabled")
	}
	if len(req.Params) == 0 {
		return nil, status.Error(codes.InvalidArgument, "missing parameters")
	}
	if err := f.s.limit(len(req.Params)); err != nil {
		return nil, err
	}
	out := new(spirev1.BatchNewWITSVIDResponse)
	for _, p := range req.Params {
		svid, err := f.witSVID(p)
		result := &spirev1.BatchNewWITSVIDResponse_Result{Svid: svid}
		if err != nil {
			result.Status = &spirev1.Status{Code: int32(status.Code(err)), Message: status.Convert(err).Message()}
		}
		out.Results = append(out.Results, result)
	}
	return out, nil
}

// witSVID signs for an entry and a key. The caller holds the lock.
func (f front) witSVID(p *spirev1.NewWITSVIDParams) (*spirev1.WITSVID, error) {
	e := f.s.entries[p.EntryId]
	if e == nil {
		return nil, status.Error(codes.NotFound, "entry not found or not authorized")
	}
	public, err := x509.ParsePKIXPublicKey(p.PublicKey)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "malformed public key: %v", err)
	}
	key, ok := public.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() || p.SigningAlgorithm != string(jose.ES256) {
		return nil, status.Error(codes.InvalidArgument, "invalid signing algorithm or key type")
	}
	if f.s.OtherKey {
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		key = &other.PublicKey
	}
	ttl := f.s.TTL // there is none of WIT-SVIDs
	if e.X509SvidTtl > 0 {
		ttl = time.Duration(e.X509SvidTtl) * time.Second
	}
	k := f.s.witKeys[len(f.s.witKeys)-1]
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k.key, KeyID: k.id}}, new(jose.SignerOptions).WithType("wit+jwt"))
	if err != nil {
		return nil, err
	}
	now := f.s.clock().Truncate(time.Second)
	token, err := jwt.Signed(signer).Claims(map[string]any{
		"sub": f.s.TrustDomain.IDString() + e.SpiffeId.Path, "iat": now.Unix(), "exp": now.Add(ttl).Unix(),
		"cnf": map[string]any{"jwk": jose.JSONWebKey{Key: key, Algorithm: p.SigningAlgorithm}},
	}).Serialize()
	return &spirev1.WITSVID{Token: token, Id: e.SpiffeId, ExpiresAt: now.Add(ttl).Unix(), IssuedAt: now.Unix()}, err
}

// NewDownstreamX509CA implements [spirev1.SVIDServer]. As SPIRE does, it constrains the CA by
// nothing.
func (f front) NewDownstreamX509CA(ctx context.Context, req *spirev1.NewDownstreamX509CARequest) (*spirev1.NewDownstreamX509CAResponse, error) {
	f.s.Lock()
	defer f.s.Unlock()
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 || len(info.State.PeerCertificates[0].URIs) != 1 {
		return nil, status.Error(codes.PermissionDenied, "no certificate")
	}
	id, allowed := info.State.PeerCertificates[0].URIs[0].String(), false
	for _, e := range f.s.entries {
		allowed = allowed || e.Downstream && f.s.TrustDomain.IDString()+e.SpiffeId.Path == id
	}
	if !allowed {
		return nil, status.Errorf(codes.PermissionDenied, "%s is not a downstream server", id)
	}
	csr, err := x509.ParseCertificateRequest(req.Csr)
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "malformed CSR")
	}
	der, err := x509.MarshalPKIXPublicKey(csr.PublicKey)
	if err != nil {
		return nil, err
	}
	ski, a := sha1.Sum(der), f.s.authorities[len(f.s.authorities)-1]
	c := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"SPIRE"}, OrganizationalUnit: []string{"DOWNSTREAM-1"}}, SubjectKeyId: ski[:],
		NotBefore: f.s.clock().Add(-10 * time.Second), NotAfter: f.s.clock().Add(time.Duration(req.PreferredTtl) * time.Second),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: uris(f.s.TrustDomain.IDString()),
	}
	ca, err := x509.CreateCertificate(rand.Reader, c, a.cert, csr.PublicKey, a.key)
	return &spirev1.NewDownstreamX509CAResponse{CaCertChain: [][]byte{ca}, X509Authorities: [][]byte{a.cert.Raw}}, err
}

// Leaf returns a certificate for a key that x509pop takes.
func (s *Server) Leaf(key crypto.PublicKey) []*x509.Certificate {
	s.t.Helper()
	return []*x509.Certificate{s.pop.leaf(s.t, key)}
}

// Is reports whether a certificate was signed by the authority that signs now.
func (s *Server) Is(cert *x509.Certificate) bool {
	s.Lock()
	defer s.Unlock()
	a := s.authorities[len(s.authorities)-1].cert
	return bytes.Equal(cert.AuthorityKeyId, a.SubjectKeyId)
}
