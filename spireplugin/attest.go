package spireplugin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/spireplugin/exchange"
	"github.com/vouchd/vouchd/spireplugin/pluginv1"
)

// An attestor admits hosts.
type attestor struct {
	pluginv1.UnimplementedNodeAttestorServer
	log   hclog.Logger
	rules atomic.Pointer[rules] // nil: SPIRE has not configured it yet
}

// rules are those by which hosts are admitted.
type rules struct {
	trustDomain spiffeid.TrustDomain
	name        string // of the policy
	policy      *file[appraisal.Policy]
	hosts       map[string]string // names, by the digest of the endorsement key
}

// settings are what server.conf says.
type settings struct {
	PolicyFile string            `hcl:"policy_file"`
	PolicyName string            `hcl:"policy_name"`
	Hosts      map[string]string `hcl:"hosts"` // digests of endorsement keys, by name
}

func (a *attestor) configure(trustDomain, text string, try bool) error {
	r, err := parseRules(trustDomain, text)
	if err != nil {
		return err
	}
	if !try {
		a.rules.Store(r)
	}
	return nil
}

func parseRules(trustDomain, text string) (*rules, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain: %w", err)
	}
	var s settings
	if err := decode(text, &s, "policy_file", "policy_name", "hosts"); err != nil {
		return nil, err
	}
	if s.PolicyFile == "" {
		return nil, errors.New("policy_file is missing: the policy that hosts are appraised by, as vouch node policy learn writes one")
	}
	r := &rules{trustDomain: td, name: s.PolicyName, hosts: make(map[string]string)}
	if r.policy, err = open(s.PolicyFile, appraisal.ParsePolicy); err != nil {
		return nil, fmt.Errorf("policy_file: %w", err)
	}
	for name, ek := range s.Hosts {
		ek = strings.ToLower(ek)
		if err := appraisal.CheckHostName(name); err != nil {
			return nil, fmt.Errorf("hosts: %w", err)
		}
		if b, err := hex.DecodeString(ek); err != nil || len(b) != sha256.Size {
			return nil, fmt.Errorf("hosts: %s is not given the SHA-256 of an endorsement key, in hexadecimal; vouch status on the host has it", name)
		}
		if other, ok := r.hosts[ek]; ok {
			return nil, fmt.Errorf("hosts: %s and %s have the same endorsement key", name, other)
		}
		r.hosts[ek] = name
	}
	return r, nil
}

// decode reads HCL whose keys are known: a key that is misspelt says nothing otherwise.
func decode(text string, to any, known ...string) error {
	parsed, err := hcl.Parse(text)
	if err != nil {
		return fmt.Errorf("plugin_data: %w", err)
	}
	list, ok := parsed.Node.(*ast.ObjectList)
	if !ok {
		return errors.New("plugin_data is not a block of keys and values")
	}
	for _, item := range list.Items {
		if len(item.Keys) == 0 {
			continue
		}
		key, _ := item.Keys[0].Token.Value().(string)
		if !slices.Contains(known, key) {
			return fmt.Errorf("plugin_data: %q is no key; use %s", key, strings.Join(known, ", "))
		}
	}
	if err := hcl.DecodeObject(to, parsed); err != nil {
		return fmt.Errorf("plugin_data: %w", err)
	}
	return nil
}

// attestTime bounds an attestation. A TPM takes a second for some of it, and firmware ones
// several.
const attestTime = time.Minute

// Attest implements [pluginv1.NodeAttestorServer].
func (a *attestor) Attest(stream grpc.BidiStreamingServer[pluginv1.AttestRequest, pluginv1.AttestResponse]) error {
	r := a.rules.Load()
	if r == nil {
		return status.Error(codes.FailedPrecondition, "vouchd-spire is not configured yet")
	}
	ctx, cancel := context.WithTimeout(stream.Context(), attestTime)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.attest(r, stream) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return status.Errorf(codes.DeadlineExceeded, "the host was not attested within %v", attestTime)
	}
}

func (a *attestor) attest(r *rules, stream grpc.BidiStreamingServer[pluginv1.AttestRequest, pluginv1.AttestResponse]) error {
	policy, problem := r.policy.now()
	if problem != "" {
		a.log.Error("the policy on disk is not in force", "problem", problem)
	}
	hello, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := exchange.ReadHello(hello.GetPayload()); err != nil {
		return status.Errorf(codes.InvalidArgument, "the host's payload: %v", err)
	}
	nonce := make([]byte, exchange.NonceLen)
	rand.Read(nonce)
	question, err := exchange.NewQuestion(nonce)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	answer, err := ask(stream, question)
	if err != nil {
		return err
	}
	proof, err := exchange.ReadProof(answer)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "the host's evidence: %v", err)
	}
	challenge, kept, err := appraisal.Challenge(proof.Evidence)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "the host's evidence: %v", err)
	}
	if answer, err = ask(stream, challenge); err != nil {
		return err
	}
	activation, err := appraisal.VerifyActivation(kept, answer)
	if err != nil {
		return status.Errorf(codes.PermissionDenied, "%v", err)
	}
	result := appraisal.Appraise(proof.Evidence, policy, appraisal.Given{Nonce: nonce, Activation: &activation, Now: time.Now()})
	if err := result.Err(); err != nil {
		a.log.Warn("refused a host", "ek_sha256", activation.EKSHA256, "evidence_sha256", result.EvidenceSHA256, "reason", err.Error())
		return status.Errorf(codes.PermissionDenied, "%v", err)
	}
	key, err := appraisal.VerifyAgentKey(proof.Evidence, proof.AgentKey)
	if err != nil {
		return status.Errorf(codes.PermissionDenied, "%v", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	attributes := &pluginv1.AgentAttributes{SpiffeId: agentID(r.trustDomain, der), SelectorValues: r.selectors(result), CanReattest: true}
	a.log.Info("admitted a host", "agent", attributes.SpiffeId, "ek_sha256", activation.EKSHA256, "evidence_sha256", result.EvidenceSHA256)
	return stream.Send(&pluginv1.AttestResponse{Response: &pluginv1.AttestResponse_AgentAttributes{AgentAttributes: attributes}})
}

// ask sends a challenge and returns the host's answer.
func ask(stream grpc.BidiStreamingServer[pluginv1.AttestRequest, pluginv1.AttestResponse], challenge []byte) ([]byte, error) {
	if err := stream.Send(&pluginv1.AttestResponse{Response: &pluginv1.AttestResponse_Challenge{Challenge: challenge}}); err != nil {
		return nil, err
	}
	r, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return r.GetChallengeResponse(), nil
}

// agentPath is where the IDs of hosts are that this plug-in admits. What follows is the
// SHA-256 of the agent's key (DER SubjectPublicKeyInfo), hexadecimal.
const agentPath = "/spire/agent/" + exchange.Name + "/"

func agentID(td spiffeid.TrustDomain, spki []byte) string {
	sum := sha256.Sum256(spki)
	return td.IDString() + agentPath + hex.EncodeToString(sum[:])
}

// selectors are the facts about a host that entries for hosts can ask for. Its name is the
// one that server.conf gives its endorsement key, never its own word.
func (r *rules) selectors(result appraisal.Result) []string {
	boot := "off"
	if result.SecureBoot {
		boot = "on"
	}
	list := []string{"secureboot:" + boot}
	if result.EKSHA256 != "" {
		list = append(list, "ek:sha256:"+result.EKSHA256)
		if name, ok := r.hosts[result.EKSHA256]; ok {
			list = append(list, "hostname:"+name)
		}
	}
	if pcr, ok := result.PCRs[7]; ok && result.Bank == appraisal.BankSHA256 {
		list = append(list, "pcr:7:"+pcr)
	}
	if r.name != "" {
		list = append(list, "policy:"+r.name)
	}
	return list
}
