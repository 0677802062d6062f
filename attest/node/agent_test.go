package node

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// agentTerms take a machine with this endorsement key.
func agentTerms(t *testing.T, n *Node) appraisal.Terms {
	t.Helper()
	return appraisal.Terms{Policy: policy(t, "endorsement: {keys: ["+n.EKSHA256()+"]}\nboot_state: any\n"), AnyNonce: true, Life: 24 * time.Hour, Now: time.Now()}
}

func TestAnAgentsCertificateIsALeafForAKeyOfTheMachineThatWasAppraised(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n, a := load(t, tpm, store(t)), newAuthority(t, exampleOrg)
	if _, err := n.Agent(t.Context(), time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before one is installed: %v", err)
	}
	request, err := n.AgentRequest(t.Context(), exampleOrg, nil, Sources{Hostname: "whatever-it-says"})
	if err != nil {
		t.Fatal(err)
	}
	approval, cert, _, err := a.ApproveAgent(request, "web1", agentTerms(t, n))
	if err != nil {
		t.Fatal(err)
	}
	if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.Subject.CommonName != "web1" || len(cert.URIs) != 1 || cert.URIs[0].String() != "x509pop://example.org/hostname/web1" {
		t.Errorf("signed %+v", cert)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.Root)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("as a SPIRE server verifies it: %v", err)
	}
	if _, err := n.Install(t.Context(), approval, rootSHA256(a)); !errors.Is(err, appraisal.ErrKind) {
		t.Errorf("installed as a CA: %v", err)
	}
	if _, err := n.InstallAgent(t.Context(), approval, strings.Repeat("0", 64)); err == nil {
		t.Error("one of another root is installed")
	}
	if _, err := n.InstallAgent(t.Context(), approval, rootSHA256(a)); err != nil {
		t.Fatal(err)
	}
	got, err := n.Agent(t.Context(), time.Now())
	if err != nil || got.Name != "web1" || !got.Chain[0].Equal(cert) {
		t.Errorf("installed %+v, %v", got, err)
	}
	key, err := n.Key(t.Context(), appraisal.AgentKey)
	if err != nil || !key.Public().(*ecdsa.PublicKey).Equal(cert.PublicKey) || n.NodeKey().Equal(cert.PublicKey) {
		t.Errorf("it is not for the agent's key, %v", err)
	}
	if _, err := n.Agent(t.Context(), time.Now().Add(25*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after its end: %v", err)
	}
}

func TestOneKindOfRequestIsNotApprovedAsTheOther(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n, a := load(t, tpm, store(t)), newAuthority(t, exampleOrg)
	agent, err := n.AgentRequest(t.Context(), exampleOrg, nil, Sources{})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := n.Request(t.Context(), exampleOrg, nil, Sources{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := a.Approve(agent, agentTerms(t, n)); !errors.Is(err, appraisal.ErrKind) || !strings.Contains(err.Error(), "--spire") {
		t.Errorf("an agent's as a CA's: %v", err)
	}
	if _, _, _, err := a.ApproveAgent(ca, "web1", agentTerms(t, n)); !errors.Is(err, appraisal.ErrKind) || !strings.Contains(err.Error(), "--spire") {
		t.Errorf("a CA's as an agent's: %v", err)
	}
	for _, name := range []string{"", "Web1", "web 1", "web1/../web2", "-web", "web_1", strings.Repeat("a", 65), "web1."} {
		if _, _, _, err := a.ApproveAgent(agent, name, agentTerms(t, n)); err == nil {
			t.Errorf("a host is called %q", name)
		}
	}
}

// A key that is not in the machine which was appraised gets no certificate: neither one of
// another TPM, nor one of the same TPM that was certified for another purpose.
func TestAKeyOfElsewhereIsNoAgents(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n, a := load(t, tpm, store(t)), newAuthority(t, exampleOrg)
	other := load(t, reopen(t, tpmtest.StartManufactured(t).Address), store(t))
	mine, err := n.AgentRequest(t.Context(), exampleOrg, nil, Sources{})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := other.AgentRequest(t.Context(), exampleOrg, nil, Sources{})
	if err != nil {
		t.Fatal(err)
	}
	replaced := func(with any) []byte {
		var r map[string]json.RawMessage
		if err := json.Unmarshal(mine, &r); err != nil {
			t.Fatal(err)
		}
		r["agent_key"] = encode(t, with)
		return encode(t, r)
	}
	var r struct {
		Key json.RawMessage `json:"agent_key"`
	}
	if err := json.Unmarshal(theirs, &r); err != nil {
		t.Fatal(err)
	}
	for name, request := range map[string][]byte{
		"another TPM's": replaced(r.Key),
		"the node key":  replaced(appraisal.CertifiedKey{Public: n.keys.Node.Public, Signed: n.keys.NodeCertified}),
	} {
		if _, _, _, err := a.ApproveAgent(request, "web1", agentTerms(t, n)); err == nil {
			t.Errorf("%s is signed", name)
		}
	}
	approval, _, _, err := a.ApproveAgent(mine, "web1", agentTerms(t, n))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.InstallAgent(t.Context(), approval, rootSHA256(a)); err == nil {
		t.Error("another machine has opened the approval")
	}
}
