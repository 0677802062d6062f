package node

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// Appraise makes evidence about this machine, challenges its own TPM, and
// appraises it as a verifier would. It returns the evidence too.
func (n *Node) Appraise(ctx context.Context, p appraisal.Policy, from Sources, previous *appraisal.BootState) (appraisal.Result, []byte, error) {
	nonce := make([]byte, 32)
	rand.Read(nonce)
	evidenceJSON, err := n.Evidence(ctx, nonce, from)
	if err != nil {
		return appraisal.Result{}, nil, err
	}
	challenge, kept, err := appraisal.Challenge(evidenceJSON)
	if err != nil {
		return appraisal.Result{}, nil, err
	}
	answer, err := n.Activate(ctx, challenge)
	if err != nil {
		return appraisal.Result{}, nil, err
	}
	activation, err := appraisal.VerifyActivation(kept, answer)
	if err != nil {
		return appraisal.Result{}, nil, err
	}
	return appraisal.Appraise(evidenceJSON, p, appraisal.Given{Nonce: nonce, Activation: &activation, Now: time.Now(), Previous: previous}), evidenceJSON, nil
}
