// Package host attests this host to a SPIRE server that has the plug-in vouchd-spire: by its
// TPM, which also has the agent's key.
package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/spireplugin/exchange"
)

// An Attempt is one attestation. It implements the Attempt of package spire.
type Attempt struct {
	node     *node.Node
	from     node.Sources
	hello    []byte
	evidence string
	rounds   int
}

// Begin begins an attestation with evidence from these sources. What only some policies ask
// for and can be large, the list of measured files (IMA), is left out.
func Begin(n *node.Node, from node.Sources) (*Attempt, error) {
	hello, err := exchange.NewHello()
	from.IMA = ""
	return &Attempt{node: n, from: from, hello: hello}, err
}

// Payload returns what begins the exchange.
func (a *Attempt) Payload() []byte { return a.hello }

// EvidenceSHA256 is of the evidence that was shown, hexadecimal; empty: none was.
func (a *Attempt) EvidenceSHA256() string { return a.evidence }

// Granted does nothing: there is nothing that could be used up.
func (a *Attempt) Granted() error { return nil }

// Answer answers the plug-in, first by evidence for its nonce and then by the proof that the
// keys in it are of one TPM.
func (a *Attempt) Answer(ctx context.Context, challenge []byte) ([]byte, error) {
	a.rounds++
	switch a.rounds {
	case 1:
		nonce, err := exchange.ReadQuestion(challenge)
		if err != nil {
			return nil, fmt.Errorf("reading the question of vouchd-spire: %w", err)
		}
		evidence, err := a.node.Evidence(ctx, nonce, a.from)
		if err != nil {
			return nil, err
		}
		key, err := a.node.AgentKey(ctx)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(evidence)
		a.evidence = hex.EncodeToString(sum[:])
		return exchange.NewProof(key, evidence)
	case 2:
		return a.node.Activate(ctx, challenge)
	}
	return nil, fmt.Errorf("the plug-in at the server asks %d times, and vouchd-spire does twice", a.rounds)
}
