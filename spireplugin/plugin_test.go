package spireplugin_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/spireplugin"
	"github.com/vouchd/vouchd/spireplugin/exchange"
	"github.com/vouchd/vouchd/spireplugin/host"
	"github.com/vouchd/vouchd/spireplugin/pluginv1"
	"github.com/vouchd/vouchd/state"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program builds vouchd-spire once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vouchd-spire")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "vouchd-spire")
	out, err := exec.Command("go", "build", "-o", path, "github.com/vouchd/vouchd/cmd/vouchd-spire").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// dispenser is a client as SPIRE is one: it wants the bare connection.
type dispenser struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (dispenser) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("this is no server")
}

func (dispenser) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}

// start runs the program as SPIRE's server does.
func start(t *testing.T, kind string) *grpc.ClientConn {
	t.Helper()
	path, err := program()
	must(t, err)
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  goplugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: kind, MagicCookieValue: kind},
		Cmd:              exec.Command(path),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Plugins:          map[string]goplugin.Plugin{kind: dispenser{}},
		Logger:           hclog.NewNullLogger(),
	})
	t.Cleanup(client.Kill)
	c, err := client.Client()
	must(t, err)
	raw, err := c.Dispense(kind)
	must(t, err)
	conn := raw.(*grpc.ClientConn)
	services, err := pluginv1.NewInitClient(conn).Init(t.Context(), new(pluginv1.InitRequest))
	must(t, err)
	if !slices.Contains(services.PluginServiceNames, "spire.service.common.config.v1.Config") || len(services.PluginServiceNames) != 2 {
		t.Fatalf("it has the services %q", services.PluginServiceNames)
	}
	return conn
}

func configure(t *testing.T, conn *grpc.ClientConn, hcl string) error {
	t.Helper()
	_, err := pluginv1.NewConfigClient(conn).Configure(t.Context(), &pluginv1.ConfigureRequest{
		CoreConfiguration: &pluginv1.CoreConfiguration{TrustDomain: "example.org"}, HclConfiguration: hcl,
	})
	return err
}

// newNode is a machine with a TPM of its own.
func newNode(t *testing.T) *node.Node {
	t.Helper()
	tpm, err := node.Open(t.Context(), tpmtest.StartManufactured(t).Address)
	must(t, err)
	t.Cleanup(func() { tpm.Close() })
	dir, err := state.Open(filepath.Join(t.TempDir(), "state"))
	must(t, err)
	t.Cleanup(func() { dir.Close() })
	n, err := node.Load(t.Context(), tpm, dir)
	must(t, err)
	return n
}

// policyFor admits these machines, however they booted.
func policyFor(t *testing.T, nodes ...*node.Node) (file string) {
	t.Helper()
	var keys []string
	for _, n := range nodes {
		keys = append(keys, n.EKSHA256())
	}
	file = filepath.Join(t.TempDir(), "policy.yaml")
	must(t, os.WriteFile(file, []byte("endorsement: {keys: ["+strings.Join(keys, ", ")+"]}\nboot_state: any\n"), 0o644))
	return file
}

// An answerer is a host's side.
type answerer interface {
	Payload() []byte
	Answer(ctx context.Context, challenge []byte) ([]byte, error)
}

// attest passes messages on as a server does.
func attest(t *testing.T, conn *grpc.ClientConn, a answerer) (*pluginv1.AgentAttributes, error) {
	t.Helper()
	stream, err := pluginv1.NewNodeAttestorClient(conn).Attest(t.Context())
	must(t, err)
	if err := stream.Send(&pluginv1.AttestRequest{Request: &pluginv1.AttestRequest_Payload{Payload: a.Payload()}}); err != nil && err != io.EOF { // whose reason Recv has
		return nil, err
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if attributes := r.GetAgentAttributes(); attributes != nil {
			return attributes, nil
		}
		answer, err := a.Answer(t.Context(), r.GetChallenge())
		if err != nil {
			return nil, err
		}
		if err := stream.Send(&pluginv1.AttestRequest{Request: &pluginv1.AttestRequest_ChallengeResponse{ChallengeResponse: answer}}); err != nil {
			return nil, err
		}
	}
}

func begin(t *testing.T, n *node.Node) *host.Attempt {
	t.Helper()
	a, err := host.Begin(n, node.Sources{Hostname: "what-it-says"})
	must(t, err)
	return a
}

func TestAHostThatSatisfiesThePolicyIsAdmittedByTheKeyInItsTPM(t *testing.T) {
	t.Parallel()
	n, other := newNode(t), newNode(t)
	conn := start(t, spireplugin.NodeAttestor)
	policy := policyFor(t, n)
	must(t, configure(t, conn, fmt.Sprintf("policy_file = %q\npolicy_name = \"prod\"\nhosts = { web1 = %q }\n", policy, strings.ToUpper(n.EKSHA256()))))
	a := begin(t, n)
	got, err := attest(t, conn, a)
	must(t, err)
	key, err := n.Key(t.Context(), "spire")
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	if want := fmt.Sprintf("spiffe://example.org/spire/agent/vouchd/%x", sha256.Sum256(der)); got.SpiffeId != want || !got.CanReattest {
		t.Errorf("admitted as %v, want %s", got, want)
	}
	for _, want := range []string{"secureboot:off", "ek:sha256:" + n.EKSHA256(), "hostname:web1", "policy:prod"} {
		if !slices.Contains(got.SelectorValues, want) {
			t.Errorf("selectors %q lack %s", got.SelectorValues, want)
		}
	}
	if slices.ContainsFunc(got.SelectorValues, func(s string) bool { return strings.Contains(s, "what-it-says") }) {
		t.Errorf("a host's own word is a selector: %q", got.SelectorValues)
	}
	if a.EvidenceSHA256() == "" {
		t.Error("the host does not know what it has shown")
	}
	if _, err := attest(t, conn, begin(t, other)); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "does not satisfy the policy") {
		t.Errorf("another machine: %v", err)
	}
	must(t, os.WriteFile(policy, []byte("endorsement: {keys: ["+other.EKSHA256()+"]}\nboot_state: any\n"), 0o644))
	if _, err := attest(t, conn, begin(t, other)); err != nil {
		t.Errorf("once the policy names it: %v", err)
	}
	if _, err := attest(t, conn, begin(t, n)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("once the policy does not name it any more: %v", err)
	}
	must(t, os.WriteFile(policy, []byte("endorsement: [\n"), 0o644))
	if _, err := attest(t, conn, begin(t, other)); err != nil {
		t.Errorf("with a policy that is of no use the former one holds: %v", err)
	}
}

// A liar changes what a host says.
type liar struct {
	answerer
	change func(round int, answer []byte) []byte
	round  int
}

func (l *liar) Answer(ctx context.Context, challenge []byte) ([]byte, error) {
	answer, err := l.answerer.Answer(ctx, challenge)
	l.round++
	return l.change(l.round, answer), err
}

func TestAHostThatLiesIsNotAdmitted(t *testing.T) {
	t.Parallel()
	n, other := newNode(t), newNode(t)
	conn := start(t, spireplugin.NodeAttestor)
	must(t, configure(t, conn, fmt.Sprintf("policy_file = %q\n", policyFor(t, n, other))))
	var earlier, theirs []byte
	if _, err := attest(t, conn, &liar{answerer: begin(t, n), change: func(round int, b []byte) []byte {
		if round == 1 {
			earlier = b
		}
		return b
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := attest(t, conn, &liar{answerer: begin(t, other), change: func(round int, b []byte) []byte {
		if round == 1 {
			theirs = b
		}
		return b
	}}); err != nil {
		t.Fatal(err)
	}
	mixed := func(b []byte) []byte { // our evidence, and the other machine's key
		var mine, other map[string]json.RawMessage
		must(t, json.Unmarshal(b, &mine))
		must(t, json.Unmarshal(theirs, &other))
		mine["agent_key"] = other["agent_key"]
		out, err := json.Marshal(mine)
		must(t, err)
		return out
	}
	for name, change := range map[string]func(round int, b []byte) []byte{
		"evidence of before": func(round int, b []byte) []byte {
			if round == 1 {
				return earlier
			}
			return b
		},
		"a key of another TPM": func(round int, b []byte) []byte {
			if round == 1 {
				return mixed(b)
			}
			return b
		},
		"no activation": func(round int, b []byte) []byte {
			if round == 2 {
				return []byte(`{"version":1,"ek_sha256":"","ak_name":"","proof":""}`)
			}
			return b
		},
		"nothing":      func(int, []byte) []byte { return nil },
		"not JSON":     func(int, []byte) []byte { return []byte("{") },
		"far too much": func(int, []byte) []byte { return []byte(`{"x":"` + strings.Repeat("x", 3<<20) + `"}`) },
	} {
		if got, err := attest(t, conn, &liar{answerer: begin(t, n), change: change}); err == nil {
			t.Errorf("%s: admitted as %v", name, got)
		}
	}
	if _, err := attest(t, conn, begin(t, n)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestAnAgentsSVIDIsForTheKeyThatItsIDNames(t *testing.T) {
	t.Parallel()
	conn := start(t, spireplugin.CredentialComposer)
	must(t, configure(t, conn, ""))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	sum := sha256.Sum256(der)
	compose := func(id string) (*pluginv1.ComposeAgentX509SVIDResponse, error) {
		attributes := new(pluginv1.X509SVIDAttributes)
		must(t, proto.Unmarshal([]byte{0x12, 1, 'a'}, attributes)) // dns_sans, of which it knows nothing
		return pluginv1.NewCredentialComposerClient(conn).ComposeAgentX509SVID(t.Context(), &pluginv1.ComposeAgentX509SVIDRequest{SpiffeId: id, PublicKey: der, Attributes: attributes})
	}
	base := "spiffe://example.org/spire/agent/"
	for id, good := range map[string]bool{
		base + "vouchd/" + hex.EncodeToString(sum[:]): true,
		base + "vouchd/" + strings.Repeat("0", 64):    false,
		base + "vouchd/":                              false,
		base + "x509pop/anything":                     true, // another attestor's
		"spiffe://other.example/spire/agent/vouchd/x": true,
	} {
		r, err := compose(id)
		if good != (err == nil) {
			t.Errorf("%s: %v", id, err)
		}
		if err == nil {
			if b, err := proto.Marshal(r.Attributes); err != nil || string(b) != "\x12\x01a" {
				t.Errorf("%s: attributes become %q, %v", id, b, err)
			}
		}
	}
	client := pluginv1.NewCredentialComposerClient(conn)
	if _, err := client.ComposeWorkloadX509SVID(t.Context(), new(pluginv1.ComposeWorkloadX509SVIDRequest)); status.Code(err) != codes.Unimplemented { // by which SPIRE knows that it has no say
		t.Errorf("of workloads: %v", err)
	}
}

func TestSettingsThatCannotBeMeantAreRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	attestor, composer := start(t, spireplugin.NodeAttestor), start(t, spireplugin.CredentialComposer)
	if _, err := attest(t, attestor, begin(t, n)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("before it is configured: %v", err)
	}
	policy := policyFor(t, n)
	for hcl, want := range map[string]string{
		"":                               "policy_file is missing",
		"policy_file = \"/nonexistent\"": "no such file",
		"polcy_file = \"x\"":             `"polcy_file" is no key`,
		"policy_file = [":                "plugin_data",
		fmt.Sprintf("policy_file = %q\npolicy_file = %[1]q", policy):                               "already set",
		fmt.Sprintf("policy_file = %q\nhosts = { web1 = \"x\" }", policy):                          "web1 is not given the SHA-256",
		fmt.Sprintf("policy_file = %q\nhosts = { \"Web 1\" = %q }", policy, n.EKSHA256()):          "is not a host's name",
		fmt.Sprintf("policy_file = %q\nhosts = { web1 = %q, web2 = %[2]q }", policy, n.EKSHA256()): "the same endorsement key",
	} {
		if err := configure(t, attestor, hcl); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", hcl, err, want)
		}
	}
	if err := configure(t, composer, "policy_file = \"x\""); err == nil {
		t.Error("the composer takes settings")
	}
	v, err := pluginv1.NewConfigClient(attestor).Validate(t.Context(), &pluginv1.ValidateRequest{CoreConfiguration: &pluginv1.CoreConfiguration{TrustDomain: "example.org"}, HclConfiguration: "x = 1"})
	if err != nil || v.Valid || len(v.Notes) != 1 {
		t.Errorf("validated %v, %v", v, err)
	}
}

func TestItIsStartedBySPIREAlone(t *testing.T) {
	t.Parallel()
	path, err := program()
	must(t, err)
	out, err := exec.Command(path).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "spire-server starts it") {
		t.Errorf("%v: %s", err, out)
	}
	for _, arg := range []string{"--help", "--version"} {
		if out, err := exec.Command(path, arg).Output(); err != nil || !strings.Contains(string(out), "vouchd-spire") {
			t.Errorf("%s: %v: %s", arg, err, out)
		}
	}
}

func FuzzMessages(f *testing.F) {
	hello, err := exchange.NewHello()
	must(f, err)
	f.Add(hello)
	f.Add([]byte(`{"version":1,"nonce":"AAAA"}`))
	f.Add([]byte(`{"version":1,"agent_key":{},"evidence":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		exchange.ReadHello(b)
		if nonce, err := exchange.ReadQuestion(b); err == nil && len(nonce) != exchange.NonceLen {
			t.Errorf("a nonce of %d bytes", len(nonce))
		}
		exchange.ReadProof(b)
	})
}
