package spire

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/identity/foreign"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

const (
	callTimeout    = 20 * time.Second
	signTimeout    = 10 * time.Second // a workload waits
	statusTimeout  = 2 * time.Second
	connectTimeout = 5 * time.Second
	maxRounds      = 8        // challenges of one attestation
	maxMessage     = 32 << 20 // bytes; of 10,000 entries whole, a few MiB
	pageSize       = 500      // entries that are asked for at a time
	maxEntries     = 100_000
)

// entryMask is what this host needs of an entry.
var entryMask = &spirev1.EntryMask{
	SpiffeId: true, ParentId: true, Selectors: true, X509SvidTtl: true, JwtSvidTtl: true, FederatesWith: true, Admin: true, Downstream: true,
	ExpiresAt: true, DnsNames: true, RevisionNumber: true, StoreSvid: true, Hint: true, CreatedAt: true, AdditionalAttributes: true,
}

// A connection is to the server, which is verified with the roots in force at the handshake.
// With a certificate it is this host's as an agent.
type connection struct {
	*grpc.ClientConn
	address string
}

// dial does not wait for the server, and the connection is made by the first call. One that
// is lost is not to be used again, lest gRPC comes back at times of its own.
func (k *Keeper) dial(agent *tls.Certificate) (*connection, error) {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection does: SPIFFE IDs are not host names
		VerifyConnection:   k.verifyServer,
	}
	if agent != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return agent, nil }
	}
	conn, err := grpc.NewClient("dns:///"+k.o.Server,
		grpc.WithTransportCredentials(credentials.NewTLS(c)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
	if err != nil {
		return nil, fmt.Errorf("SPIRE server %s: %w", k.o.Server, err)
	}
	return &connection{conn, k.o.Server}, nil
}

// verifyServer holds the server to the trust domain's roots and to its own SPIFFE ID.
func (k *Keeper) verifyServer(s tls.ConnectionState) error {
	want, err := spiffeid.FromPath(k.o.TrustDomain, "/spire/server")
	if err != nil {
		return err
	}
	if len(s.PeerCertificates) == 0 {
		return errors.New("the server has no certificate")
	}
	leaf := s.PeerCertificates[0]
	if id, err := x509svid.IDFromCert(leaf); err != nil || id != want {
		return fmt.Errorf("the server is %v and not %s", cmp.Or(id.String(), "nobody of SPIFFE's"), want)
	}
	now := k.o.Now()
	_, _, err = x509svid.Verify(s.PeerCertificates, verifying{k}, x509svid.WithTime(now))
	if err == nil {
		return nil
	}
	if off := beside(leaf, now); off != 0 {
		k.noteSkew(off)
		return fmt.Errorf("this machine's clock is %v %s what the server's certificate is good for; set the clock: %w", off.Abs().Round(time.Second), direction(off), err)
	}
	return err
}

// beside is how far a time is past the end of a certificate, or, negative, before its
// beginning.
func beside(c *x509.Certificate, now time.Time) time.Duration {
	switch {
	case now.After(c.NotAfter):
		return now.Sub(c.NotAfter)
	case now.Before(c.NotBefore):
		return now.Sub(c.NotBefore)
	}
	return 0
}

func direction(off time.Duration) string {
	if off < 0 {
		return "before"
	}
	return "after"
}

// noteSkew takes note of how far this machine's clock is ahead of the server's.
func (k *Keeper) noteSkew(skew time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state.Skew = skew.Round(time.Second)
}

// A callError is a call that failed. The server's words in it are printable.
type callError struct {
	text string
	err  error
}

func (e *callError) Error() string { return e.text }
func (e *callError) Unwrap() error { return e.err }

// connecting is how gRPC wraps why it has no connection.
var connecting = regexp.MustCompile(`^connection error: desc = "(?:transport: )?(?:Error while dialing: )?(.*)"$`)

// words are those of a call's error, without gRPC's wrapping.
func words(err error) string {
	s := status.Convert(err)
	if m := connecting.FindStringSubmatch(s.Message()); m != nil {
		return m[1]
	}
	return cmp.Or(s.Message(), s.Code().String())
}

// maxWords bounds what of a server's words is told.
const maxWords = 500

func (c *connection) failed(call string, err error) error {
	if err == nil {
		return nil
	}
	return &callError{fmt.Sprintf("%s at SPIRE server %s: %s", call, c.address, printable(words(err))), err}
}

// printable leaves nothing in a text that a terminal or a log would act upon.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	if len(text) > maxWords {
		text = strings.ToValidUTF8(text[:maxWords], "") + " and more"
	}
	return text
}

func (c *connection) bundle(ctx context.Context) (*spirev1.Bundle, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b, err := spirev1.NewBundleClient(c).GetBundle(ctx, new(spirev1.GetBundleRequest))
	return b, c.failed("asking for the bundle", err)
}

// foreign returns the server's bundle of another trust domain, and as it was sent.
func (c *connection) foreign(ctx context.Context, td spiffeid.TrustDomain) (*foreign.Bundle, *spirev1.Bundle, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	raw, err := spirev1.NewBundleClient(c).GetFederatedBundle(ctx, &spirev1.GetFederatedBundleRequest{TrustDomain: td.Name()})
	if err != nil {
		return nil, nil, c.failed("asking for the bundle of "+td.Name(), err)
	}
	b, err := parseForeign(td, raw)
	return b, raw, err
}

// attest proves to the server which host this is. The server's serial is that of the SVID
// which it presented, hexadecimal.
func (c *connection) attest(ctx context.Context, name string, a Attempt, csr []byte) (result *spirev1.AttestAgentResponse_Result, serial string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*callTimeout) // a TPM may be slow
	defer cancel()
	stream, err := spirev1.NewAgentClient(c).AttestAgent(ctx)
	if err != nil {
		return nil, "", c.failed("attesting this host", err)
	}
	request := &spirev1.AttestAgentRequest{Step: &spirev1.AttestAgentRequest_Params_{Params: &spirev1.AttestAgentRequest_Params{
		Data: &spirev1.AttestationData{Type: name, Payload: a.Payload()}, Params: &spirev1.AgentX509SVIDParams{Csr: csr},
	}}}
	for range maxRounds {
		if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) { // whose reason Recv has
			return nil, "", c.failed("attesting this host", err)
		}
		answer, err := stream.Recv()
		serial = serverSerial(stream.Context())
		if err != nil {
			return nil, serial, c.failed("attesting this host", err)
		}
		if r := answer.GetResult(); r != nil {
			return r, serial, stream.CloseSend()
		}
		response, err := a.Answer(ctx, answer.GetChallenge())
		if err != nil {
			return nil, serial, err
		}
		request = &spirev1.AttestAgentRequest{Step: &spirev1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: response}}
	}
	return nil, serial, fmt.Errorf("attesting this host: SPIRE server %s challenges it more than %d times", c.address, maxRounds)
}

func serverSerial(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		if t, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
			return t.State.PeerCertificates[0].SerialNumber.Text(16)
		}
	}
	return ""
}

// renew has the server renew the SVID of an agent that can't attest again.
func (c *connection) renew(ctx context.Context, csr []byte) (*spirev1.X509SVID, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := spirev1.NewAgentClient(c).RenewAgent(ctx, &spirev1.RenewAgentRequest{Params: &spirev1.AgentX509SVIDParams{Csr: csr}})
	return r.GetSvid(), c.failed("renewing this host's SVID", err)
}

// postStatus gives up early: a server that limits how often it is told from one address has
// those wait that are too many, if they do.
func (c *connection) postStatus(ctx context.Context, sequence uint64, version string) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	_, err := spirev1.NewAgentClient(c).PostStatus(ctx, &spirev1.PostStatusRequest{CurrentBundleSerial: sequence, AgentVersion: version})
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	return c.failed("telling this host's status", err)
}

// sync returns the entries that the server authorizes for this host. Those that are known
// in the same revision are not sent again.
func (c *connection) sync(ctx context.Context, known map[string]*spirev1.Entry) (map[string]*spirev1.Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*callTimeout)
	defer cancel()
	got, err := c.syncStream(ctx, known)
	if status.Code(err) == codes.Unimplemented {
		var all *spirev1.GetAuthorizedEntriesResponse
		if all, err = spirev1.NewEntryClient(c).GetAuthorizedEntries(ctx, &spirev1.GetAuthorizedEntriesRequest{OutputMask: entryMask}); err == nil {
			got = make(map[string]*spirev1.Entry)
			err = take(got, all.Entries)
		}
	}
	return got, c.failed("asking for entries", err)
}

func (c *connection) syncStream(ctx context.Context, known map[string]*spirev1.Entry) (map[string]*spirev1.Entry, error) {
	stream, err := spirev1.NewEntryClient(c).SyncAuthorizedEntries(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&spirev1.SyncAuthorizedEntriesRequest{OutputMask: entryMask}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	got := make(map[string]*spirev1.Entry)
	var missing []string
	for more := true; more; {
		r, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if err := take(got, r.Entries); err != nil {
			return nil, err
		}
		for _, rev := range r.EntryRevisions {
			if e := known[rev.Id]; e != nil && e.RevisionNumber == rev.RevisionNumber && e.CreatedAt == rev.CreatedAt {
				got[rev.Id] = e
			} else {
				missing = append(missing, rev.Id)
			}
		}
		if len(got)+len(missing) > maxEntries {
			return nil, fmt.Errorf("there are more than %d", maxEntries)
		}
		more = r.More
	}
	for len(missing) > 0 {
		page := missing[:min(len(missing), pageSize)]
		missing = missing[len(page):]
		if err := stream.Send(&spirev1.SyncAuthorizedEntriesRequest{Ids: page}); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		for more := true; more; {
			r, err := stream.Recv()
			if err != nil {
				return nil, err
			}
			if err := take(got, r.Entries); err != nil { // fewer than asked for: some were deleted just now
				return nil, err
			}
			more = r.More
		}
	}
	return got, stream.CloseSend()
}

// take adds entries, each by its ID.
func take(to map[string]*spirev1.Entry, entries []*spirev1.Entry) error {
	for _, e := range entries {
		if !isEntryID(e.GetId()) {
			return fmt.Errorf("an entry has the ID %.40q, which names none", e.GetId())
		}
		to[e.Id] = e
	}
	if len(to) > maxEntries {
		return fmt.Errorf("there are more than %d", maxEntries)
	}
	return nil
}

// isEntryID holds an ID to what a server takes for one.
func isEntryID(id string) bool {
	return id != "" && len(id) <= 255 && !strings.ContainsFunc(id, func(r rune) bool {
		return r <= ' ' || r > '~'
	})
}

// sign has the server sign X509-SVIDs. The results are in the order of the parameters.
func (c *connection) sign(ctx context.Context, params []*spirev1.NewX509SVIDParams) ([]*spirev1.BatchNewX509SVIDResponse_Result, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	r, err := spirev1.NewSVIDClient(c).BatchNewX509SVID(ctx, &spirev1.BatchNewX509SVIDRequest{Params: params})
	if err != nil {
		return nil, c.failed("having X509-SVIDs signed", err)
	}
	if len(r.Results) != len(params) {
		return nil, fmt.Errorf("having X509-SVIDs signed at SPIRE server %s: %d results for %d entries", c.address, len(r.Results), len(params))
	}
	return r.Results, nil
}

func (c *connection) jwt(ctx context.Context, entry string, audience []string) (*spirev1.JWTSVID, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	r, err := spirev1.NewSVIDClient(c).NewJWTSVID(ctx, &spirev1.NewJWTSVIDRequest{EntryId: entry, Audience: audience})
	return r.GetSvid(), c.failed("having a JWT-SVID signed", err)
}

func (c *connection) wit(ctx context.Context, param *spirev1.NewWITSVIDParams) (*spirev1.WITSVID, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	r, err := spirev1.NewSVIDClient(c).BatchNewWITSVID(ctx, &spirev1.BatchNewWITSVIDRequest{Params: []*spirev1.NewWITSVIDParams{param}})
	if err != nil {
		return nil, c.failed("having a WIT-SVID signed", err)
	}
	if len(r.Results) != 1 {
		return nil, fmt.Errorf("having a WIT-SVID signed at SPIRE server %s: %d results for one entry", c.address, len(r.Results))
	}
	s := r.Results[0].GetStatus()
	return r.Results[0].GetSvid(), c.failed("having a WIT-SVID signed", status.Error(codes.Code(s.GetCode()), s.GetMessage()))
}

// reason returns why the server refuses this host; UNKNOWN: for none of these.
func reason(err error) spirev1.PermissionDeniedDetails_Reason {
	if s, ok := status.FromError(err); ok && s.Code() == codes.PermissionDenied {
		for _, d := range s.Details() {
			if p, ok := d.(*spirev1.PermissionDeniedDetails); ok {
				return p.Reason
			}
		}
	}
	return spirev1.PermissionDeniedDetails_UNKNOWN
}
