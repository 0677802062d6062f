package workloadapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/workloadapi/credentialapi"
	"github.com/vouchd/vouchd/workloadapi/gate"
	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

func TestStockSourcesAndMutualTLS(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent/research", os.Getuid()))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	addr := workloadapi.WithClientOptions(workloadapi.WithAddr("unix://" + s.Socket))
	source, err := workloadapi.NewX509Source(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://example.org/agent/research")
	if svid.ID != id {
		t.Errorf("X509-SVID of %s, want %s", svid.ID, id)
	}
	tokens, err := workloadapi.NewJWTSource(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer tokens.Close()
	token, err := tokens.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "api", Subject: id})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(token.Marshal(), tokens, []string{"api"}); err != nil {
		t.Errorf("the JWT source does not validate its own token: %v", err)
	}

	server, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(id)))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		if c, err := server.Accept(); err == nil {
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	conn, err := (&tls.Dialer{Config: tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id))}).DialContext(ctx, "tcp", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("over mutual TLS came %q, %v", got, err)
	}
}

func TestSVIDIsRenewedByHalfOfItsLife(t *testing.T) {
	t.Parallel()
	s := startStack(t, fmt.Sprintf("  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], x509_svid_ttl: 1m}\n", os.Getuid()))
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+s.Socket)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	first, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if err := source.WaitUntilUpdated(ctx); err != nil {
		t.Fatal(err)
	}
	second, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if first.Certificates[0].Equal(second.Certificates[0]) {
		t.Error("the update brings the same SVID")
	}
	if left := time.Until(first.Certificates[0].NotAfter); left < 29*time.Second {
		t.Errorf("renewed with %v left of a minute, want half of it or more", left)
	}
}

func TestRecordsComeBeforeTheReplyAndTellOfIt(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	client := s.client(t.Context())
	svid, err := client.FetchX509SVID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	records := s.Records(audit.EventX509SVID)
	if len(records) != 1 {
		t.Fatalf("%d records of an X509-SVID, want 1", len(records))
	}
	r := records[0]
	if r.SPIFFEID != svid.ID.String() || r.SVID.SHA256 != hexSHA256(svid.Certificates[0].Raw) || r.SVID.ID != svid.Certificates[0].SerialNumber.Text(16) {
		t.Errorf("the record tells of %s %+v, handed out was %s", r.SPIFFEID, r.SVID, svid.ID)
	}
	if r.SVID.KeyID != hex.EncodeToString(svid.Certificates[1].SubjectKeyId) {
		t.Errorf("the record names issuing CA %s, the chain has %x", r.SVID.KeyID, svid.Certificates[1].SubjectKeyId)
	}
	if r.Workload.PID != os.Getpid() || len(r.Workload.Selectors) == 0 || !strings.HasSuffix(r.Workload.Entry, "test.yaml:2") {
		t.Errorf("the record's workload is %+v", r.Workload)
	}
	token, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api"})
	if err != nil {
		t.Fatal(err)
	}
	records = s.Records(audit.EventJWTSVID)
	if len(records) != 1 || records[0].SVID.SHA256 != hexSHA256([]byte(token.Marshal())) || records[0].SVID.Audience[0] != "api" {
		t.Errorf("records of the JWT-SVID: %+v", records)
	}
}

func TestEntrySaysWhatFetchJWTSVIDSignsWithAndElseTheClientMay(t *testing.T) {
	t.Parallel()
	s := startStack(t, fmt.Sprintf(`  - {spiffe_id: "spiffe://example.org/any", selectors: ["unix:uid:%d"]}
  - {spiffe_id: "spiffe://example.org/es", selectors: ["unix:uid:%[1]d"], jwt_algorithm: ES256}
  - {spiffe_id: "spiffe://example.org/rs", selectors: ["unix:uid:%[1]d"], jwt_algorithm: RS256}
`, os.Getuid()))
	ask := func(preferred, id, want string) {
		t.Helper()
		client, err := workloadapi.New(t.Context(), workloadapi.WithAddr("unix://"+s.Socket), workloadapi.WithDialOptions(grpc.WithUnaryInterceptor(
			func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				if preferred != "" {
					ctx = metadata.AppendToOutgoingContext(ctx, "vouchd-jwt-algorithm", preferred)
				}
				return call(ctx, method, req, reply, cc, opts...)
			})))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		svid, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api", Subject: spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("example.org"), id)})
		if want == "" {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%q is answered with %v", preferred, err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		header, _, _ := strings.Cut(svid.Marshal(), ".")
		if b, err := base64.RawURLEncoding.DecodeString(header); err != nil || !strings.Contains(string(b), `"alg":"`+want+`"`) {
			t.Errorf("%s: header %s, want %s", id, b, want)
		}
		if _, err := client.ValidateJWTSVID(t.Context(), svid.Marshal(), "api"); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	ask("", "/any", "ES256")
	ask("RS256", "/any", "RS256")
	ask("", "/es", "ES256")
	ask("RS256", "/es", "ES256")
	ask("", "/rs", "RS256")
	ask("ES256", "/rs", "RS256")
	ask("none", "/any", "")
}

func TestNamesOfAnEntryAreInTheCertificateAndInTheRecord(t *testing.T) {
	t.Parallel()
	entry := func(names string) string {
		return fmt.Sprintf("  - {spiffe_id: \"spiffe://example.org/db\", selectors: [\"unix:uid:%d\"], %s}\n", os.Getuid(), names)
	}
	s := startStack(t, entry("dns_names: [db.example.org, localhost], cn: reader"))
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+s.Socket)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	check := func(cn string, dns ...string) {
		t.Helper()
		svid, err := source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		leaf := svid.Certificates[0]
		if leaf.Subject.CommonName != cn || !slices.Equal(leaf.DNSNames, dns) || len(leaf.URIs) != 1 {
			t.Errorf("the certificate is of %s, %q, %v", leaf.Subject, leaf.DNSNames, leaf.URIs)
		}
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		certs, err := x509.ParseCertificates(s.Authority.Bundle().X509)
		if err != nil {
			t.Fatal(err)
		}
		roots.AddCert(certs[0])
		between.AddCert(svid.Certificates[1])
		for _, name := range dns {
			if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between}); err != nil {
				t.Errorf("a client that wants %s: %v", name, err)
			}
		}
		records := s.Records(audit.EventX509SVID)
		if last := records[len(records)-1].SVID; last.CommonName != cn || !slices.Equal(last.DNSNames, dns) {
			t.Errorf("the record says %q, %q", last.CommonName, last.DNSNames)
		}
	}
	check("reader", "db.example.org", "localhost")
	s.SetEntries(entry("dns_names: [other.example.org]")) // the stream is sent another
	if err := source.WaitUntilUpdated(ctx); err != nil {
		t.Fatal(err)
	}
	check("other.example.org", "other.example.org")
}

func TestNothingIsHandedOutWithoutARecord(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	client := s.client(t.Context())
	s.Log.Close(t.Context())
	if svid, err := client.FetchX509SVID(t.Context()); err == nil {
		t.Errorf("handed out %s", svid.ID)
	}
	if token, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api"}); err == nil {
		t.Errorf("handed out a token for %s", token.ID)
	}
	if _, err := client.FetchJWTBundles(t.Context()); err == nil {
		t.Error("handed out a bundle")
	}
}

func TestWhoMatchesNoEntryIsRefusedAndRecorded(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/other", os.Getuid()+1))
	client := s.client(t.Context())
	for _, tt := range []struct {
		event audit.Event
		call  func() error
	}{
		{audit.EventX509SVID, func() error { _, err := client.FetchX509SVID(t.Context()); return err }},
		{audit.EventJWTSVID, func() error {
			_, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api"})
			return err
		}},
		{audit.EventBundle, func() error { _, err := client.FetchX509Bundles(t.Context()); return err }},
		{audit.EventJWTValidated, func() error { _, err := client.ValidateJWTSVID(t.Context(), "a.b.c", "api"); return err }},
	} {
		if code := status.Code(tt.call()); code != codes.PermissionDenied {
			t.Errorf("%s: %v, want PermissionDenied", tt.event, code)
		}
		records := s.Records(tt.event)
		if len(records) != 1 || records[0].Outcome != audit.Denied || records[0].Reason == "" {
			t.Errorf("%s: records %+v, want one refusal with its reason", tt.event, records)
		}
	}
}

func TestRefusalsOfAFloodAreCountedAndNotRecorded(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/other", os.Getuid()+1))
	client := s.client(t.Context())
	const asked = gatetest.Flood
	var suppressed bool
	for range asked {
		_, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api"})
		switch code := status.Code(err); code {
		case codes.PermissionDenied:
		case codes.Unavailable:
			suppressed = true
		default:
			t.Fatalf("got %v, want PermissionDenied or Unavailable", err)
		}
	}
	if !suppressed {
		t.Errorf("%d refusals at once were all recorded", asked)
	}
	if n := len(s.Records(audit.EventJWTSVID)); n >= asked {
		t.Errorf("%d records of %d refusals", n, asked)
	}
}

// Every token that the process was handed is in the log, and the log does not
// grow with each time that it asks.
func TestAProcessThatAsksTooOftenIsHandedTheSameAgain(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	client := s.client(t.Context())
	const asked = gatetest.Flood
	got := make(map[string]bool)
	for range asked {
		svid, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api"})
		if err != nil {
			t.Fatal(err)
		}
		got[hexSHA256([]byte(svid.Marshal()))] = true
	}
	records := s.Records(audit.EventJWTSVID)
	if len(records) != len(got) || len(got) >= asked {
		t.Errorf("%d answers hold %d tokens, and the log %d", asked, len(got), len(records))
	}
	for _, r := range records {
		if !got[r.SVID.SHA256] {
			t.Errorf("the log has token %s, which nobody got", r.SVID.SHA256)
		}
	}
	if n := s.Gate.Limited().Repeats; n != uint64(asked-len(got)) {
		t.Errorf("%d answers are counted as given again, of %d", n, asked-len(got))
	}
	if svid, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "other"}); err != nil || got[hexSHA256([]byte(svid.Marshal()))] {
		t.Errorf("for another audience: the same token, or %v", err)
	}
}

// raw calls without the stock client, which would not let a test do wrong.
func (s *stack) raw(t *testing.T, header ...string) (workload.SpiffeWorkloadAPIClient, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // what does not come fails the test, and not the run
	t.Cleanup(cancel)
	return workload.NewSpiffeWorkloadAPIClient(s.Dial()), metadata.AppendToOutgoingContext(ctx, header...)
}

func TestSecurityHeaderIsRequired(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	for _, tt := range []struct {
		name   string
		header []string
	}{
		{"missing", nil},
		{"false", []string{securityHeader, "false"}},
		{"empty", []string{securityHeader, ""}},
		{"given twice", []string{securityHeader, "true", securityHeader, "true"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, ctx := s.raw(t, tt.header...)
			_, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"api"}})
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("FetchJWTSVID = %v, want InvalidArgument", err)
			}
			stream, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("FetchX509SVID = %v, want InvalidArgument", err)
			}
		})
	}
}

func TestBadRequestsAreInvalidArguments(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	client, ctx := s.raw(t, securityHeader, "true")
	fetch := func(req *workload.JWTSVIDRequest) error { _, err := client.FetchJWTSVID(ctx, req); return err }
	validate := func(req *workload.ValidateJWTSVIDRequest) error {
		_, err := client.ValidateJWTSVID(ctx, req)
		return err
	}
	good, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"api"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		err  error
		want codes.Code
	}{
		{"no audience", fetch(&workload.JWTSVIDRequest{}), codes.InvalidArgument},
		{"an empty audience", fetch(&workload.JWTSVIDRequest{Audience: []string{""}}), codes.InvalidArgument},
		{"too many audiences", fetch(&workload.JWTSVIDRequest{Audience: strings.Split(strings.Repeat("a,", gate.MaxAudiences)+"a", ",")}), codes.InvalidArgument},
		{"a long audience", fetch(&workload.JWTSVIDRequest{Audience: []string{strings.Repeat("a", gate.MaxAudienceLen+1)}}), codes.InvalidArgument},
		{"a SPIFFE ID that is none", fetch(&workload.JWTSVIDRequest{Audience: []string{"api"}, SpiffeId: "spiffe://example.org/../x"}), codes.InvalidArgument},
		{"a SPIFFE ID of another", fetch(&workload.JWTSVIDRequest{Audience: []string{"api"}, SpiffeId: "spiffe://example.org/admin"}), codes.PermissionDenied},
		{"an oversized message", fetch(&workload.JWTSVIDRequest{Audience: []string{strings.Repeat("a", maxRequestLen)}}), codes.ResourceExhausted},
		{"validating nothing", validate(&workload.ValidateJWTSVIDRequest{Audience: "api"}), codes.InvalidArgument},
		{"validating for nobody", validate(&workload.ValidateJWTSVIDRequest{Svid: "a.b.c"}), codes.InvalidArgument},
		{"validating for an audience that the token does not name", validate(&workload.ValidateJWTSVIDRequest{Svid: good.Svids[0].Svid, Audience: "unknown"}), codes.InvalidArgument},
		{"validating nonsense", validate(&workload.ValidateJWTSVIDRequest{Svid: "a.b.c", Audience: "api"}), codes.InvalidArgument},
	} {
		if got := status.Code(tt.err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, tt.err, tt.want)
		}
	}
	// The connection outlives all of that.
	if err := fetch(&workload.JWTSVIDRequest{Audience: []string{"api"}}); err != nil {
		t.Errorf("a good request afterwards: %v", err)
	}
}

func TestWITSVIDsAreUnimplemented(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	client, ctx := s.raw(t, securityHeader, "true")
	svids, err := client.FetchWITSVID(ctx, &workload.WITSVIDRequest{})
	if err == nil {
		_, err = svids.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("FetchWITSVID = %v, want Unimplemented", err)
	}
	bundles, err := client.FetchWITBundles(ctx, &workload.WITBundlesRequest{})
	if err == nil {
		_, err = bundles.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("FetchWITBundles = %v, want Unimplemented", err)
	}
}

// open opens a stream of X509-SVIDs and returns its first message.
func (s *stack) open(t *testing.T) (grpc.ServerStreamingClient[workload.X509SVIDResponse], *workload.X509SVIDResponse) {
	t.Helper()
	client, ctx := s.raw(t, securityHeader, "true")
	stream, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return stream, first
}

func TestStreamFollowsItsEntries(t *testing.T) {
	t.Parallel()
	uid := os.Getuid()
	s := startStack(t, gatetest.Entry("/agent/a", uid))
	stream, _ := s.open(t)
	s.SetEntries(gatetest.Entry("/agent/a", uid) + gatetest.Entry("/agent/b", uid) + gatetest.Entry("/foreign", uid+1))
	m, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Svids) != 2 || m.Svids[0].SpiffeId != "spiffe://example.org/agent/a" || m.Svids[1].SpiffeId != "spiffe://example.org/agent/b" {
		t.Errorf("after the change came %v, want a then b, in the order of the file", m.Svids)
	}
	s.SetEntries(gatetest.Entry("/foreign", uid+1))
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("after the entry went: %v, want PermissionDenied", err)
	}
	ends := s.Records(audit.EventStreamEnd)
	if len(ends) != 1 || ends[0].Outcome != audit.Denied || ends[0].SPIFFEID != "spiffe://example.org/agent/a" ||
		!strings.Contains(ends[0].Reason, "the entry for spiffe://example.org/agent/b is no longer in force") {
		t.Errorf("records of the end: %+v, want one denial of what it had", ends)
	}
}

func TestChangeThatConcernsOthersSendsNothing(t *testing.T) {
	t.Parallel()
	uid := os.Getuid()
	s := startStack(t, gatetest.Entry("/agent/a", uid))
	stream, _ := s.open(t)
	for i := range 10 {
		s.SetEntries(gatetest.Entry("/agent/a", uid) + gatetest.Entry(fmt.Sprintf("/foreign/%d", i), uid+1))
	}
	s.SetEntries(gatetest.Entry("/agent/b", uid))
	m, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Svids[0].SpiffeId; got != "spiffe://example.org/agent/b" {
		t.Errorf("the next message is of %s, want the change that concerns it", got)
	}
}

func TestEachIdentityComesOnceWithAUniqueHint(t *testing.T) {
	t.Parallel()
	uid := os.Getuid()
	with := func(path, selectors string) string {
		return fmt.Sprintf("  - {spiffe_id: \"spiffe://example.org%s\", selectors: [%s], hint: internal}\n", path, selectors)
	}
	user, group := fmt.Sprintf("\"unix:uid:%d\"", uid), fmt.Sprintf("\"unix:gid:%d\"", os.Getgid())
	s := startStack(t, with("/a", user)+with("/b", group)+with("/a", user+", "+group))
	_, m := s.open(t)
	var got []string
	for _, svid := range m.Svids {
		got = append(got, svid.SpiffeId+" "+svid.Hint)
	}
	want := "spiffe://example.org/a internal,spiffe://example.org/b "
	if strings.Join(got, ",") != want {
		t.Errorf("got %q, want %q", strings.Join(got, ","), want)
	}
	roots, err := x509.ParseCertificates(m.Svids[0].Bundle)
	if err != nil || len(roots) != 1 {
		t.Errorf("bundle of %d certificates, %v", len(roots), err)
	}
}

func TestStreamEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	cmd := gatetest.Helper(t, "hold", s.Socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil { // "held\n"
		t.Fatal(err)
	}
	// Its child keeps the socket open, so that only the process's end is seen.
	cmd.Process.Kill()
	if _, err := io.ReadAll(out); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if ends := s.Records(audit.EventStreamEnd); len(ends) != 1 || ends[0].Workload.PID != cmd.Process.Pid {
		t.Errorf("records of the end: %+v, want one of process %d", ends, cmd.Process.Pid)
	}
}

// helperHold opens a stream whose socket a child holds too, and waits. The
// child ends when the daemon closes the connection, and may take what is meant
// for its parent.
func helperHold(args []string) error {
	conn, stream, err := holdStream(args[0])
	if err != nil {
		return err
	}
	socket, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	child := exec.Command(exe, "helper:drain")
	child.ExtraFiles = []*os.File{socket}
	child.Stdout = os.Stdout // whose end tells the test of the child's
	if err := child.Start(); err != nil {
		return err
	}
	fmt.Println("held")
	_, err = stream.Recv()
	return err
}

// helperStay opens a stream, and waits for what comes after the first answer.
func helperStay(args []string) error {
	_, stream, err := holdStream(args[0])
	if err != nil {
		return err
	}
	fmt.Println("held")
	_, err = stream.Recv()
	return err
}

// holdStream opens a stream and takes its first answer.
func holdStream(socket string) (net.Conn, grpc.ServerStreamingClient[workload.X509SVIDResponse], error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, nil, err
	}
	cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	if err != nil {
		return nil, nil, err
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), securityHeader, "true")
	stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return nil, nil, err
	}
	_, err = stream.Recv()
	return conn, stream, err
}

// helperDrain reads descriptor 3 to its end.
func helperDrain([]string) error {
	_, err := io.Copy(io.Discard, os.NewFile(3, "socket"))
	return err
}

func TestStoppingEndsStreamsAndSaysSo(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	stream, _ := s.open(t)
	s.Stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v, want Unavailable", err)
	}
}

func TestBundleChangeIsPushed(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	client, ctx := s.raw(t, securityHeader, "true")
	stream, err := client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	s.Clock.Move(24*time.Hour + 30*time.Minute) // the second key signs, and a third is there
	if err := s.Authority.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	const td = "spiffe://example.org"
	if len(second.Bundles[td]) <= len(first.Bundles[td]) {
		t.Errorf("the bundle went from %s to %s, want one more key", first.Bundles[td], second.Bundles[td])
	}
}

func TestClientThatNeverReadsGetsNothing(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()))
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := askAndNeverRead(conn); err != nil {
		t.Fatal(err)
	}
	// Others are served meanwhile.
	if _, err := s.client(t.Context()).FetchX509SVID(t.Context()); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for e, err := range reader.Follow(ctx, os.DirFS(s.Dir+"/log"), 0, 10*time.Millisecond) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Leaf.Event == audit.EventX509SVID && e.Leaf.Outcome == audit.Denied {
			return
		}
	}
	t.Error("the client was not refused")
}

// askAndNeverRead sends a request for X509-SVIDs in bare HTTP/2 frames.
func askAndNeverRead(conn net.Conn) error {
	var header bytes.Buffer
	enc := hpack.NewEncoder(&header)
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName},
		{":authority", "localhost"}, {"content-type", "application/grpc"}, {"te", "trailers"}, {securityHeader, "true"},
	} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return err
	}
	framer := http2.NewFramer(conn, nil)
	return errors.Join(
		framer.WriteSettings(),
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header.Bytes(), EndHeaders: true}),
		framer.WriteData(1, true, make([]byte, 5))) // an empty message
}

func TestReflectionListsTheStandardServiceUnextended(t *testing.T) {
	t.Parallel()
	s := startStack(t, gatetest.Entry("/agent", os.Getuid()), credentialapi.New(credentialapi.Options{}))
	stream, err := reflectionpb.NewServerReflectionClient(s.Dial()).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var services []string
	for _, s := range r.GetListServicesResponse().GetService() {
		if !strings.HasPrefix(s.Name, "grpc.reflection.") {
			services = append(services, s.Name)
		}
	}
	if want := []string{"SpiffeWorkloadAPI", "vouchd.credential.v1.CredentialAPI"}; !slices.Equal(services, want) {
		t.Errorf("services are %q, want %q", services, want)
	}
}

func TestStreamEndsWhenItsProgramIsReplacedOnDisk(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "agent")
	if out, err := exec.Command("cp", exe, program).CombinedOutput(); err != nil {
		t.Fatalf("cp: %s", out)
	}
	s := startStack(t, fmt.Sprintf("  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\", \"unix:path:%s\"]}\n", os.Getuid(), program))
	cmd := exec.CommandContext(t.Context(), program, "helper:stay", s.Socket)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil { // "held\n"
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", exe, program+".new").CombinedOutput(); err != nil {
		t.Fatalf("cp: %s", out)
	}
	if err := os.Rename(program+".new", program); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), "PermissionDenied") {
		t.Errorf("the agent ended with %v and said %s, want PermissionDenied", err, &said)
	}
	if ends := s.Records(audit.EventStreamEnd); len(ends) != 1 || ends[0].Outcome != audit.Denied ||
		!strings.Contains(ends[0].Reason, "it lacks unix:path:"+program) {
		t.Errorf("records of the end: %+v, want one denial with what it lacks", ends)
	}
}
